//! Bringing up VMs: from a plan to VMs in which commands can run.

use std::ops::ControlFlow;
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
use super::record::{Progress, Record, VmState, crash, observe};
use super::start::{
    UpOptions, UpOutcome, WaitFor, attach, bring_up, cancel_resume, cancel_suspend, copied,
    discard, is_stalled, predecessor, report_running,
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
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> Result<PerVm<UpOutcome>, VmError> {
    let plan = Plan::of_start(config, names, layout, &Record::all(layout))?;
    Ok(up(&plan, layout, context, options))
}

/// Brings up all VMs of the plan in parallel. One that fails does not keep the others from coming
/// up.
pub fn up(
    plan: &Plan,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> PerVm<UpOutcome> {
    if let Some(Err(problem)) =
        plan.vms.first().map(|vm| vm.definition.overlay.bounds().claim_state_root())
    {
        let refused = |vm: &VmPlan| {
            let (vm, problem) = (vm.definition.name.clone(), Box::new(problem.clone()));
            (vm.clone(), Err(VmDiskError::OutOfBounds { vm, problem }.into()))
        };
        return plan.vms.iter().map(refused).collect();
    }
    note(layout, context);
    journal::record("up", layout, context, |context| {
        side_by_side(&plan.vms, VmPlan::name, |vm| up_one(vm, layout, context, options))
    })
}

fn up_one(
    plan: &VmPlan,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> Result<UpOutcome, VmError> {
    let vm = &plan.definition.name;
    let _span = tracing::debug_span!("up", %vm).entered();
    for warning in &plan.warnings {
        context.reporter.report(&Event::Warning { message: warning.clone() });
    }
    check_wait(plan, options)?;
    let _lock = lock(vm, layout, context)?;
    // What cannot be removed does no harm.
    let own = layout.vm(vm);
    for directory in [own.directory(), &own.boots()] {
        let _ = files::remove_leftovers(directory);
    }
    let mut recorded = Record::load(layout, vm)?;
    if let Some(unfinished) = recorded.take_if(|record| record.is_unfinished_clone()) {
        remove_unfinished_clone(&unfinished, &plan.definition.overlay, layout)?;
    }
    let recorded = match recorded {
        Some(record) => match make_startable(plan, record, layout, context, options)? {
            ControlFlow::Break(outcome) => return Ok(outcome),
            ControlFlow::Continue(record) => Some(record),
        },
        None => {
            ensure_no_qemu(vm, layout)?;
            None
        }
    };
    predecessor::refuse(vm, layout, context)?;
    Ok(up_now(bring_up(plan, recorded, layout, context, options)?, context))
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
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> Result<ControlFlow<UpOutcome, Record>, VmError> {
    let vm = &plan.definition.name;
    let attach =
        |record| attach_running(plan, record, layout, context, options).map(ControlFlow::Break);
    match observe(&record, &layout.vm(vm)).0 {
        VmState::Starting if is_stalled(&record, context) => end_stalled(&record, layout, context)?,
        VmState::Starting | VmState::Running | VmState::DiskFull => return attach(record),
        // A `suspend` that was killed halfway: the machine is paused, and should run.
        VmState::Suspending => return attach(cancel_suspend(record, layout, context)?),
        VmState::Suspended | VmState::Resuming if options.discard_suspended => {
            check_recorded(plan, &record, layout)?;
            record = discard(record, layout, context)?;
        }
        VmState::Suspended | VmState::Resuming => {
            check_recorded(plan, &record, layout)?;
            let record = cancel_resume(record, layout)?;
            predecessor::refuse(vm, layout, context)?;
            let record = resume(plan, record, layout, context, options)?;
            return Ok(ControlFlow::Break(up_now(record, context)));
        }
        VmState::Stopping => {
            record = await_stop(record, layout, context)?;
            if record.progress == Progress::Running {
                return attach(record);
            }
        }
        VmState::Elsewhere => ensure_reachable(vm, layout)?,
        VmState::Crashed => recover(&record, layout, context),
        VmState::Copied => copied::prepare(&record, layout, context)?,
        VmState::Stopped => {}
    }
    Ok(ControlFlow::Continue(record))
}

/// Checks that the awaited stage can be known: only the agent reports the guest's services.
///
/// # Errors
/// Returns [`StartError::ServicesUnseen`].
pub fn check_wait(plan: &VmPlan, options: UpOptions) -> Result<(), VmError> {
    if plan.boot == BootProfile::Native && options.wait == WaitFor::Services {
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
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> Result<UpOutcome, VmError> {
    if let BasePlan::Image(image) = &plan.base {
        let manager = ImageManager::new(layout);
        if manager.is_cached(image, context) {
            manager.ensure_image(image, context)?;
        }
    }
    if record.boot.as_ref().is_some_and(|boot| !boot.is_of(&plan.definition)) {
        let vm = &plan.definition.name;
        let message =
            format!("the definition of VM `{vm}` has changed; `castra restart {vm}` applies it");
        context.reporter.report(&Event::Warning { message });
    }
    attach(record, layout, context, options)
}

/// Ends a machine that never ran. Its disk was created for a template's memory and not written to,
/// so it can boot.
fn end_stalled(
    record: &Record,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    let files = layout.vm(&record.name);
    if let Some(qemu) = running_qemu(&files.pidfile()) {
        qemu.kill()?;
        qemu.wait(ANSWER_LIMIT);
    }
    clean_up(&files, &layout.sockets(&context.runtime_root, &record.name));
    Ok(())
}

fn recover(record: &Record, layout: &ProjectLayout, context: &RuntimeContext) {
    let vm = &record.name;
    let why = crash(record, &layout.vm(vm)).map_or(String::new(), |why| format!(" ({why})"));
    let message = format!("VM `{vm}` had crashed{why}; booting from its disk as it was left");
    context.reporter.report(&Event::Warning { message });
    clean_up(&layout.vm(vm), &layout.sockets(&context.runtime_root, vm));
}
