//! Bringing up VMs: from a plan to VMs in which commands can run.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use crate::config::{BootProfile, ProjectConfig};
use crate::context::RuntimeContext;
use crate::files;
use crate::layout::ProjectLayout;
use crate::managed::ImageManager;
use crate::qemu::running_qemu;
use crate::report::Event;

use super::disk::{check_recorded, remove_unfinished_clone};
use super::down::await_stop;
use super::error::{StartError, StateError, VmDiskError, VmError};
use super::inspect::note;
use super::journal;
use super::lock::{ensure_reachable, lock};
use super::monitor::clean_up;
use super::parallel::{PerVm, side_by_side};
use super::plan::{BasePlan, Plan, VmPlan};
use super::project::ProjectRef;
use super::record::{Progress, Record, VmState, crash, observe};
use super::start::{
    UpOptions, UpOutcome, WaitFor, attach, bring_up, cancel_resume, cancel_suspend, copied,
    discard, is_stalled, predecessor, report_running, warn_of_change,
};
use super::suspend::resume;

/// Time for QEMU to end.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Brings up the named VMs, or all, with the built-in images.
///
/// # Errors
/// Returns errors of the plan, before anything is started. Each VM has an outcome of its own.
pub fn up_named(
    names: &[String],
    config: &ProjectConfig,
    project: ProjectRef<'_>,
    options: UpOptions,
) -> Result<PerVm<UpOutcome>, VmError> {
    let plan = Plan::of_start(config, names, project.layout, &Record::all(project.layout))?;
    Ok(up(&plan, project, options))
}

/// Brings up all VMs of the plan in parallel. One that fails does not keep the others from coming
/// up.
pub fn up(plan: &Plan, project: ProjectRef<'_>, options: UpOptions) -> PerVm<UpOutcome> {
    if let Some(Err(problem)) =
        plan.vms.first().map(|vm| vm.definition.overlay.bounds().claim_state_root())
    {
        let refused = |vm: &VmPlan| {
            let (vm, problem) = (vm.definition.name.clone(), Box::new(problem.clone()));
            (vm.clone(), Err(VmDiskError::OutOfBounds { vm, problem }.into()))
        };
        return plan.vms.iter().map(refused).collect();
    }
    note(project);
    journal::record("up", project, |project| {
        side_by_side(&plan.vms, VmPlan::name, |vm| up_one(vm, project, options))
    })
}

fn up_one(
    plan: &VmPlan,
    project: ProjectRef<'_>,
    options: UpOptions,
) -> Result<UpOutcome, VmError> {
    let vm = &plan.definition.name;
    let _span = tracing::debug_span!("up", %vm).entered();
    for warning in &plan.warnings {
        project.report(&Event::Warning { message: warning.clone() });
    }
    check_wait(plan, None, options)?;
    let _lock = lock(vm, project)?;
    // What cannot be removed does no harm.
    let own = project.files(vm);
    for directory in [own.directory(), &own.boots()] {
        let _ = files::remove_leftovers(directory);
    }
    let mut recorded = Record::load(project.layout, vm)?;
    if let Some(unfinished) = recorded.take_if(|record| record.is_unfinished_clone()) {
        remove_unfinished_clone(&unfinished, &plan.definition.overlay, project.layout)?;
    }
    let recorded = match recorded {
        Some(record) => match make_startable(plan, record, project, options)? {
            ControlFlow::Break(outcome) => return Ok(outcome),
            ControlFlow::Continue(record) => Some(record),
        },
        None => {
            ensure_no_qemu(vm, project.layout)?;
            None
        }
    };
    predecessor::refuse(vm, project)?;
    Ok(up_now(bring_up(plan, recorded, project, options)?, project.context))
}

/// Checks that no QEMU runs the VM, of which there is no record.
fn ensure_no_qemu(vm: &str, layout: &ProjectLayout) -> Result<(), VmError> {
    match running_qemu(&layout.vm(vm).pidfile()) {
        Some(qemu) => Err(StateError::Unrecorded { vm: vm.to_owned(), pid: qemu.pid() }.into()),
        None => Ok(()),
    }
}

/// Acts on the VM's state. Breaks with the outcome of a VM that runs or could be resumed, and
/// continues with the record of one to be started.
fn make_startable(
    plan: &VmPlan,
    mut record: Record,
    project: ProjectRef<'_>,
    options: UpOptions,
) -> Result<ControlFlow<UpOutcome, Record>, VmError> {
    let vm = &plan.definition.name;
    let attach = |record| match attach_running(plan, record, project, options) {
        // It was ending when it was observed, as after `kill -9` on a busy machine.
        Err(error) if has_ended(&error, &project.files(vm).pidfile()) => {
            tracing::debug!(%error, "the VM has ended meanwhile");
            match Record::load(project.layout, vm)? {
                Some(ended) => make_startable(plan, ended, project, options),
                None => Err(error),
            }
        }
        attached => attached.map(ControlFlow::Break),
    };
    match observe(&record, &project.files(vm)).0 {
        VmState::Starting if is_stalled(&record, project.context) => end_stalled(&record, project)?,
        VmState::Starting | VmState::Running | VmState::DiskFull => return attach(record),
        // A `suspend` that was killed halfway: the machine is paused, and should run.
        VmState::Suspending => return attach(cancel_suspend(record, project)?),
        VmState::Suspended | VmState::Resuming if options.discard_suspended => {
            check_recorded(plan, &record, project.layout)?;
            record = discard(record, project)?;
        }
        VmState::Suspended | VmState::Resuming => {
            check_recorded(plan, &record, project.layout)?;
            let record = cancel_resume(record, project)?;
            predecessor::refuse(vm, project)?;
            let record = resume(plan, record, project, options)?;
            return Ok(ControlFlow::Break(up_now(record, project.context)));
        }
        VmState::Stopping => {
            record = await_stop(record, project)?;
            if record.progress == Progress::Running {
                return attach(record);
            }
        }
        VmState::Elsewhere => ensure_reachable(vm, project.layout)?,
        VmState::Crashed => recover(&record, project),
        VmState::Copied => copied::prepare(&record, project)?,
        VmState::Stopped => {}
    }
    Ok(ControlFlow::Continue(record))
}

/// Checks that the awaited stage can be known, as far as that is seen before the VM's disk is read:
/// only the agent reports the guest's services. `running` is the record of a VM that runs.
///
/// # Errors
/// Returns [`StartError::ServicesUnseen`].
pub fn check_wait(
    plan: &VmPlan,
    running: Option<&Record>,
    options: UpOptions,
) -> Result<(), VmError> {
    let is_native = plan.definition.boot_profile == Some(BootProfile::Native)
        || running.is_some_and(|record| !record.has_agent());
    if is_native && options.wait == WaitFor::Services {
        return Err(StartError::ServicesUnseen { vm: plan.definition.name.clone() }.into());
    }
    Ok(())
}

fn up_now(record: Record, context: &RuntimeContext) -> UpOutcome {
    let boot_ms = record.boot.as_ref().and_then(|boot| boot.ready_ms);
    if record.progress == Progress::Running {
        report_running(&record, boot_ms, context);
    }
    UpOutcome { record, ran_already: false }
}

/// Attaches to a VM that runs already: reports changes to its image and definition, and makes ready
/// an unfinished start, or a guest that was rebooted and has lost its keys.
fn attach_running(
    plan: &VmPlan,
    record: Record,
    project: ProjectRef<'_>,
    options: UpOptions,
) -> Result<UpOutcome, VmError> {
    if let BasePlan::Image(image) = &plan.base {
        let manager = ImageManager::new(project.layout);
        if manager.is_cached(image, project.context) {
            manager.ensure_image(image, project.context)?;
        }
    }
    if record.boot.as_ref().is_some_and(|boot| !boot.is_of(&plan.definition))
        || record.data_disks != plan.definition.data_disks
    {
        let vm = &plan.definition.name;
        let message =
            format!("the definition of VM `{vm}` has changed; `castra restart {vm}` applies it");
        project.report(&Event::Warning { message });
    }
    warn_of_change(plan, &record, project);
    attach(record, project, options)
}

/// Returns `true` if no QEMU runs. One that is about to end, or has closed its connections, is
/// waited for.
fn has_ended(error: &VmError, pidfile: &Path) -> bool {
    let has_hung_up = matches!(error, VmError::Start(StartError::BootDied { .. }));
    running_qemu(pidfile)
        .is_none_or(|qemu| (has_hung_up || qemu.is_ending()) && qemu.wait(ANSWER_LIMIT))
}

/// Ends a machine that never ran. Its disk was created for a template's memory and not written to,
/// so it can boot.
fn end_stalled(record: &Record, project: ProjectRef<'_>) -> Result<(), VmError> {
    let files = project.files(&record.name);
    if let Some(qemu) = running_qemu(&files.pidfile()) {
        qemu.kill()?;
        qemu.wait(ANSWER_LIMIT);
    }
    clean_up(&files, &project.sockets(&record.name));
    Ok(())
}

fn recover(record: &Record, project: ProjectRef<'_>) {
    let vm = &record.name;
    let why = crash(record, &project.files(vm)).map_or(String::new(), |why| format!(" ({why})"));
    let message = format!("VM `{vm}` had crashed{why}; booting from its disk as it was left");
    project.report(&Event::Warning { message });
    clean_up(&project.files(vm), &project.sockets(vm));
}
