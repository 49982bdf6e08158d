//! Sessions with a VM's running QEMU, and the files it leaves after it has ended.

mod leftovers;
mod paused;
mod room_watch;

use std::time::Duration;

use crate::cancel::Cancel;
use crate::qemu::{QemuError, QemuPid, Qmp, QmpError};
use crate::wait::WaitLimit;

use super::error::{StateError, VmError};
use super::record::BootRecord;

pub(super) use leftovers::{clean_up, clean_up_run, is_in_use};
pub(super) use paused::{continue_paused, continue_recorded, disk_full, is_paused};
pub(super) use room_watch::RoomWatch;

/// Time for QEMU to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Connects to QEMU's machine protocol.
pub(super) fn connect(vm: &str, boot: &BootRecord, cancel: &Cancel) -> Result<Qmp, VmError> {
    connect_within(vm, boot, WaitLimit::new(ANSWER_LIMIT, cancel))
}

/// Connects to QEMU's machine protocol for cleanup that must be done even after an interruption.
pub(super) fn to_leave_in_order(
    vm: &str,
    boot: &BootRecord,
    cancel: &Cancel,
) -> Result<Qmp, VmError> {
    connect_within(vm, boot, WaitLimit::to_leave_in_order(ANSWER_LIMIT, cancel))
}

fn connect_within(vm: &str, boot: &BootRecord, limit: WaitLimit) -> Result<Qmp, VmError> {
    let sockets = boot.socket_paths();
    Qmp::connect(&sockets.qmp(), limit).map_err(|error| unanswered(vm, error))
}

/// Returns the error of a QEMU that does not answer, or of an interruption.
pub(super) fn unanswered(vm: &str, source: QmpError) -> VmError {
    match source {
        QmpError::Interrupted(interrupted) => interrupted.into(),
        source => QemuError::NotResponding { vm: vm.to_owned(), source }.into(),
    }
}
/// Checks that no signal (SIGSTOP) has stopped a VM's QEMU, which would never answer.
///
/// # Errors
/// Returns [`StateError::Frozen`].
pub(super) fn ensure_not_stopped(vm: &str, qemu: Option<&QemuPid>) -> Result<(), VmError> {
    match qemu.filter(|qemu| qemu.is_frozen()) {
        Some(qemu) => Err(StateError::Frozen { vm: vm.to_owned(), pid: qemu.pid() }.into()),
        None => Ok(()),
    }
}
