//! Continues a paused machine, and cancels an unfinished suspend or resume.

use std::fs;
use std::time::Duration;

use serde_json::json;

use crate::command::Lifetime;
use crate::guest::VmKeys;
use crate::qemu::running_qemu;
use crate::report::Event;
use crate::vm::accompany;
use crate::vm::disk::data;
use crate::vm::error::{StopError, VmError};
use crate::vm::monitor::{clean_up_run, to_leave_in_order, unanswered};
use crate::vm::project::ProjectRef;
use crate::vm::record::{BootRecord, Progress, Record, StartKind};
use crate::vm::timeline::Stopwatch;
use crate::wait::WaitLimit;

use super::session::BootSession;
use super::watch::BootWatch;

/// Time to end for a QEMU that has loaded a state and not run.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Time until QEMU can continue after a cancelled save.
const CONT_LIMIT: Duration = Duration::from_secs(10);
/// Interval between attempts to continue.
const CONT_POLL: Duration = Duration::from_millis(20);

/// Cancels a suspend that was begun: any saved state counts no more, since the machine will
/// continue. [`continue_vm`] continues it.
///
/// # Errors
/// Returns [`VmError::Record`].
pub(in crate::vm) fn cancel_suspend(
    mut record: Record,
    project: ProjectRef<'_>,
) -> Result<Record, VmError> {
    record.suspended = None;
    record.progress = Progress::Starting;
    if let Some(boot) = &mut record.boot {
        boot.start = StartKind::Suspended;
    }
    record.save(project.layout)?;
    let files = project.files(&record.name);
    for path in [files.unfinished_machine_state(), files.machine_state()] {
        // The next suspend overwrites what remains.
        let _ = fs::remove_file(path);
    }
    if let Some(boot) = &record.boot
        && let Ok(mut qmp) = to_leave_in_order(&record.name, boot, project.cancel())
    {
        // If nothing is being saved, there is nothing to cancel.
        let _ = qmp.execute("migrate_cancel", json!({}));
    }
    Ok(record)
}

/// Cancels a resume that was begun and never let the machine run: the VM is suspended as before.
///
/// # Errors
/// Returns [`StopError::Unkillable`] or [`VmError::Record`].
pub(in crate::vm) fn cancel_resume(
    mut record: Record,
    project: ProjectRef<'_>,
) -> Result<Record, VmError> {
    let files = project.files(&record.name);
    if let Some(qemu) = running_qemu(&files.pidfile()) {
        qemu.kill()?;
        if !qemu.wait(END_LIMIT) {
            return Err(StopError::Unkillable { vm: record.name, pid: qemu.pid() }.into());
        }
    }
    if let Some(boot) = record.boot.take() {
        clean_up_run(&files, &boot.socket_paths());
    }
    record.progress = Progress::Suspended;
    record.save(project.layout)?;
    Ok(record)
}

/// Continues a paused machine, and ensures that commands can run in it, with the clock and the keys
/// right.
///
/// # Errors
/// Returns errors of waiting for the guest. QEMU is left running, since nothing else has its
/// memory.
pub(in crate::vm) fn continue_vm(
    mut record: Record,
    project: ProjectRef<'_>,
) -> Result<Record, VmError> {
    let vm = record.name.clone();
    let Some(boot) = record.boot.as_ref() else { return Ok(record) };
    let files = project.files(&vm);
    let mut qmp = to_leave_in_order(&vm, boot, project.cancel())?;
    let wait = WaitLimit::to_leave_in_order(CONT_LIMIT, project.cancel()).begin();
    // For a moment after a cancelled save, QEMU refuses.
    while let Err(error) = qmp.execute("cont", json!({})) {
        wait.sleep(CONT_POLL).map_err(|_| unanswered(&vm, error))?;
    }
    drop(qmp);
    if boot.has_agent() {
        let attachment = accompany::attach(&vm, boot, project, Lifetime::Own);
        wake(&record, boot, project)?;
        attachment.into_iter().for_each(accompany::Attachment::finish_or_warn);
    }
    record.progress = Progress::Running;
    record.save(project.layout)?;
    // No longer needed. The next suspend overwrites what remains.
    let _ = fs::remove_file(files.machine_state());
    Ok(record)
}

/// Gives a guest that has not run for a while its clock and keys.
///
/// # Errors
/// Returns errors of waiting for the guest.
pub(in crate::vm) fn wake(
    record: &Record,
    boot: &BootRecord,
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    let (vm, files, disk) =
        (&record.name, &project.files(&record.name), &record.overlay_path(project.layout));
    let keys = VmKeys::load_or_create(files)?;
    let stopwatch = &Stopwatch::continuing(vm, None, &project.context.reporter);
    let watch = BootWatch::of_running(vm, files, disk, boot, project.context, stopwatch);
    let session = BootSession::of_running(watch, boot, data::orders(&record.data_disks, files));
    let is_alive = || running_qemu(&files.pidfile()).is_some();
    let woken = session.wake(&boot.socket_paths(), None, &keys, is_alive);
    woken.map_err(|end| session.watch.explain(end, None))
}

/// Drops the memory of a suspended VM, on its user's request. Its disk stays, as of the suspend.
///
/// # Errors
/// Returns [`VmError::Record`].
pub(in crate::vm) fn discard(record: Record, project: ProjectRef<'_>) -> Result<Record, VmError> {
    let mut record = cancel_resume(record, project)?;
    record.progress = Progress::Stopped;
    record.suspended = None;
    record.save(project.layout)?;
    // The next suspend overwrites what remains.
    let _ = fs::remove_file(project.files(&record.name).machine_state());
    project.report(&Event::VmDiscarded { vm: record.name.clone() });
    Ok(record)
}
