//! Restarting VMs.

use crate::config::ProjectConfig;

use super::disk::data;
use super::down::{DownOptions, IfSuspended, down};
use super::error::{StopError, VmError};
use super::parallel::{PerVm, side_by_side};
use super::plan::{Plan, VmPlan};
use super::project::ProjectRef;
use super::record::{Record, VmState, observe};
use super::start::{UpOptions, UpOutcome};
use super::up::{check_wait, up};

/// Stops the named VMs and starts them again, in parallel; without names, all that are declared,
/// and running clones. Everything is planned before anything is stopped, so that a mistake in the
/// configuration stops no running VM. The outcome is `None` for a suspended VM that stays
/// suspended.
///
/// # Errors
/// Returns errors of the plan, before anything is stopped. Each VM has an outcome of its own.
pub fn restart(
    names: &[String],
    config: &ProjectConfig,
    project: ProjectRef<'_>,
    stop: &DownOptions,
    start: UpOptions,
) -> Result<PerVm<Option<UpOutcome>>, VmError> {
    let records = Record::all(project.layout);
    let mut names = names.to_vec();
    if names.is_empty() {
        names.extend(config.vms.iter().map(|vm| vm.name.clone()));
        // Clones are not declared; those that run are restarted.
        let clones = records
            .values()
            .filter(|record| record.cloned.is_some() && !names.contains(&record.name));
        let running =
            clones.filter(|record| observe(record, &project.files(&record.name)).0.is_alive());
        let running: Vec<String> = running.map(|record| record.name.clone()).collect();
        names.extend(running);
    }
    let plan = Plan::of_start(config, &names, project.layout, &records)?;
    for vm in &plan.vms {
        data::check(vm.name(), &vm.definition.data_disks, records.get(vm.name()), project.layout)?;
    }
    Ok(side_by_side(&plan.vms, VmPlan::name, |vm| {
        let is_alive =
            |record: &&Record| observe(record, &project.files(&record.name)).0.is_alive();
        check_wait(vm, records.get(vm.name()).filter(is_alive), start)?;
        let is_known =
            records.contains_key(vm.name()) || project.files(vm.name()).pidfile().exists();
        restart_one(vm, is_known, project, stop, start)
    }))
}

fn restart_one(
    plan: &VmPlan,
    is_known: bool,
    project: ProjectRef<'_>,
    stop: &DownOptions,
    start: UpOptions,
) -> Result<Option<UpOutcome>, VmError> {
    let name = plan.definition.name.clone();
    let stopped = if is_known { down(&[name], project, stop)? } else { Vec::new() };
    let mut power_cut = None;
    for (_, state) in stopped {
        match state {
            Ok(VmState::Suspended) if stop.suspended == IfSuspended::Leave => return Ok(None),
            // The VM has stopped, although not cleanly, so start it again and report the error
            // afterwards.
            Err(
                error @ VmError::Stop(
                    StopError::PowerCut { .. }
                    | StopError::Unresponsive { .. }
                    | StopError::ButtonIgnored { .. },
                ),
            ) => power_cut = Some(error),
            state => drop(state?),
        }
    }
    let plan = Plan { vms: vec![plan.clone()] };
    let started = up(&plan, project, start).into_iter().map(|(_, outcome)| outcome).next();
    let started = started.transpose()?;
    power_cut.map_or(Ok(started), Err)
}
