//! `castra restart`: stops VMs and starts them again, each on a thread of its own.

use std::process::ExitCode;
use std::thread;

use crate::error::{Error, Result};
use crate::vm::{self, IfSuspended, Plan, UpOutcome, VmError, VmPlan, VmState};

use super::args::RestartArgs;
use super::context::CommandContext;
use super::outcome::{finish, tips};
use super::{down, project, up};

/// Stops VMs and starts them again, in parallel. The start is planned before anything is stopped,
/// so that a mistake in the configuration stops no running VM.
pub(super) fn run(restart: &RestartArgs, context: &CommandContext) -> Result<ExitCode> {
    let config = context.config()?;
    let runtime = &context.with_mirrors_of(config);
    let layout = context.layout()?;
    let records = project::records(layout);
    let mut names = restart.vms.clone();
    if names.is_empty() {
        names.extend(config.vms.iter().map(|vm| vm.name.clone()));
        // Clones are not declared; those that run are restarted.
        let clones =
            records.values().filter(|record| record.cloned.is_some() && !names.contains(&record.name));
        let running = clones.filter(|record| vm::state_of(record, layout).is_alive());
        let running: Vec<String> = running.map(|record| record.name.clone()).collect();
        names.extend(running);
    }
    let plan = project::plan(config, &names, layout, &records)?;
    let (down, up) = (down::options(&restart.stop, &restart.vms), up::options(&restart.start));
    let one = |vm: &VmPlan| {
        vm::check_wait(vm, up)?;
        let name = &vm.definition.name;
        let mut power_cut = None;
        if records.contains_key(name) || layout.vm(name).pidfile().exists() {
            for (_, state) in vm::down(std::slice::from_ref(name), layout, runtime, &down)? {
                match state {
                    Ok(VmState::Suspended) if down.suspended == IfSuspended::Leave => return Ok(None),
                    // The VM has stopped, although not cleanly, so start it again and report the
                    // error afterwards.
                    Err(error @ VmError::PowerCut { .. }) => power_cut = Some(error),
                    state => drop(state?),
                }
            }
        }
        let plan = Plan { vms: vec![vm.clone()] };
        let started = vm::up(&plan, layout, runtime, up).into_iter().map(|(_, outcome)| outcome).next();
        let started = started.transpose()?;
        power_cut.map_or(Ok(started), Err)
    };
    let outcomes = side_by_side(&plan, one);
    let started: Vec<&UpOutcome> =
        outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()?.as_ref()).collect();
    if !started.is_empty() {
        context.printer.tip(&tips(&started));
    }
    // A VM that is suspended and was left so has not changed.
    let changed = |(vm, outcome): (String, Outcome)| {
        (vm, outcome.map(|started| started.is_some()).map_err(Error::from))
    };
    finish(outcomes.into_iter().map(changed).collect(), layout, context.printer)
}

type Outcome = std::result::Result<Option<UpOutcome>, VmError>;

fn side_by_side(plan: &Plan, one: impl Fn(&VmPlan) -> Outcome + Sync) -> Vec<(String, Outcome)> {
    thread::scope(|scope| {
        let workers: Vec<_> = plan.vms.iter().map(|vm| (vm, scope.spawn(|| one(vm)))).collect();
        let join = |(vm, worker): (&VmPlan, thread::ScopedJoinHandle<'_, _>)| {
            let outcome = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (vm.definition.name.clone(), outcome)
        };
        workers.into_iter().map(join).collect()
    })
}
