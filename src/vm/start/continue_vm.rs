//! Continues a paused machine, and cancels a suspend or resume that was not finished.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::context::RuntimeContext;
use crate::guest::VmKeys;
use crate::layout::ProjectLayout;
use crate::qemu::running_qemu;
use crate::vm::error::VmError;
use crate::vm::monitor::{clean_up_run, to_leave_in_order, unanswered};
use crate::vm::record::{BootRecord, Progress, Record, StartKind};
use crate::vm::timeline::Stopwatch;
use crate::wait::WaitLimit;

use super::watch::BootWatch;

/// How long a QEMU may take to end that has loaded a state and not run.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long QEMU may take to be able to go on, after a saving that was given up.
const CONT_LIMIT: Duration = Duration::from_secs(10);
/// How often it is asked.
const CONT_POLL: Duration = Duration::from_millis(20);

/// Gives up a suspend that was begun: whatever is saved counts no more, since the machine will go on. It is up to
/// [`continue_vm`] to let it.
///
/// # Errors
/// [`VmError::Record`].
pub(in crate::vm) fn cancel_suspend(
    mut record: Record,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<Record, VmError> {
    record.suspended = None;
    record.progress = Progress::Starting;
    if let Some(boot) = &mut record.boot {
        boot.start = StartKind::Suspended;
    }
    record.save(layout)?;
    let files = layout.vm(&record.name);
    for path in [files.unfinished_machine_state(), files.machine_state()] {
        // What stays is written over by the next suspend.
        let _ = fs::remove_file(path);
    }
    if let Some(boot) = &record.boot
        && let Ok(mut qmp) = to_leave_in_order(&record.name, boot, &context.cancel)
    {
        // Where nothing is being saved there is nothing to cancel.
        let _ = qmp.execute("migrate_cancel", json!({}));
    }
    Ok(record)
}

/// Ends a resume that was begun and never let the machine run: the VM is suspended as before.
///
/// # Errors
/// [`VmError::Unkillable`], [`VmError::Record`].
pub(in crate::vm) fn cancel_resume(mut record: Record, layout: &ProjectLayout) -> Result<Record, VmError> {
    let files = layout.vm(&record.name);
    if let Some(qemu) = running_qemu(&files.pidfile()) {
        qemu.kill()?;
        if !qemu.wait(END_LIMIT) {
            return Err(VmError::Unkillable { vm: record.name, pid: qemu.pid() });
        }
    }
    if let Some(boot) = record.boot.take() {
        clean_up_run(&files, &boot.socket_paths());
    }
    record.progress = Progress::Suspended;
    record.save(layout)?;
    Ok(record)
}

/// Lets a machine go on that stands still with all that it needs, and sees to it that commands can run in it, with the
/// clock and the keys right.
///
/// # Errors
/// Those of the wait for the guest. QEMU is left running: its memory is nowhere else.
pub(in crate::vm) fn continue_vm(
    mut record: Record,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<Record, VmError> {
    let vm = record.name.clone();
    let Some(boot) = record.boot.as_ref() else { return Ok(record) };
    let files = layout.vm(&vm);
    let mut qmp = to_leave_in_order(&vm, boot, &context.cancel)?;
    let wait = WaitLimit::to_leave_in_order(CONT_LIMIT, &context.cancel).begin();
    // For a moment after a saving that was given up, QEMU refuses.
    while let Err(error) = qmp.execute("cont", json!({})) {
        wait.sleep(CONT_POLL).map_err(|_| unanswered(&vm, error))?;
    }
    drop(qmp);
    if boot.has_agent() {
        wake(&record, boot, layout, context)?;
    }
    record.progress = Progress::Running;
    record.save(layout)?;
    // Of no use any more. What stays is written over by the next suspend.
    let _ = fs::remove_file(files.machine_state());
    Ok(record)
}

fn wake(
    record: &Record,
    boot: &BootRecord,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    let (vm, files, disk) = (&record.name, &layout.vm(&record.name), &record.overlay_path(layout));
    let keys = VmKeys::load_or_create(files)?;
    let stopwatch = &Stopwatch::continuing(vm, None, &context.reporter);
    let watch = BootWatch::of_running(vm, files, disk, boot, context, stopwatch);
    let is_alive = || running_qemu(&files.pidfile()).is_some();
    let woken = watch.wake(&boot.socket_paths(), &keys, is_alive);
    woken.map_err(|end| watch.explain(end, None))
}

/// Drops the memory of a suspended VM, as its user asks for. Its disk stays, as of the moment it was suspended.
///
/// # Errors
/// [`VmError::Record`].
pub(in crate::vm) fn discard(record: Record, layout: &ProjectLayout) -> Result<Record, VmError> {
    let mut record = cancel_resume(record, layout)?;
    record.progress = Progress::Stopped;
    record.suspended = None;
    record.save(layout)?;
    // What stays is written over by the next suspend.
    let _ = fs::remove_file(layout.vm(&record.name).machine_state());
    Ok(record)
}
