//! Machines that QEMU has paused, because the host's disk is full or on request of another client.
//!
//! QEMU pauses a machine whose disk cannot grow, and holds the write that failed. Once there is
//! room, `cont` repeats that write, so the guest never sees an error and loses nothing. Only Castra
//! ever sends `cont`.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::cancel::Cancel;
use crate::context::RuntimeContext;
use crate::layout::SocketsLayout;
use crate::qemu::{MachineStatus, Qmp};
use crate::report::Event;
use crate::vm::error::{StateError, VmError};
use crate::vm::full_disk::{FullDisk, tightest};
use crate::vm::project::ProjectRef;
use crate::vm::record::Record;
use crate::wait::WaitLimit;

use super::ANSWER_LIMIT;
use super::unanswered;

/// Time in which a machine whose disk is still full pauses again: its first repeated write fails
/// within milliseconds.
const SETTLE: Duration = Duration::from_millis(300);
/// Interval between checks meanwhile.
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// Returns the error of a VM that is paused because its disk cannot grow.
pub(in crate::vm) fn disk_full(vm: &str, disk: &Path) -> VmError {
    StateError::DiskFull { vm: vm.to_owned(), full: FullDisk::of(disk) }.into()
}

/// Returns `true` if QEMU says immediately that the machine is paused.
pub(in crate::vm) fn is_paused(record: &Record) -> bool {
    let boot = record.boot.as_ref();
    let status = boot.and_then(|boot| MachineStatus::glance(&boot.socket_paths()));
    matches!(status, Some(MachineStatus::DiskFull | MachineStatus::Paused))
}

/// Continues a paused machine that should run. The caller holds the VM's lock, so that no other
/// castra is saving it. A QEMU that does not answer is left to the caller.
///
/// # Errors
/// Returns [`StateError::DiskFull`] while there is no room, [`VmError::Interrupted`] or
/// [`VmError::Qemu`].
pub(in crate::vm) fn continue_paused(
    vm: &str,
    disk: &Path,
    sockets: &SocketsLayout,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    let cancel = &context.cancel;
    let was = match MachineStatus::ask(sockets, cancel) {
        Some(MachineStatus::Runs) | None => return Ok(cancel.check()?),
        Some(paused) => paused,
    };
    proceed(vm, sockets, cancel)?;
    let settled = WaitLimit::new(SETTLE, cancel).begin();
    while settled.sleep(SETTLE_POLL).is_ok() {
        if MachineStatus::ask(sockets, cancel) == Some(MachineStatus::DiskFull) {
            return Err(disk_full(vm, disk));
        }
    }
    cancel.check()?;
    let why = match was {
        MachineStatus::DiskFull => {
            "was paused because its disk could not grow; there is room again"
        }
        MachineStatus::Runs | MachineStatus::Paused => "was paused",
    };
    context.reporter.report(&Event::Warning { message: format!("VM `{vm}` {why}; continuing it") });
    Ok(())
}

/// Continues a paused machine as [`continue_paused`] does, for a VM with a record.
pub(in crate::vm) fn continue_recorded(
    record: &Record,
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    let Some(boot) = &record.boot else { return Ok(()) };
    let sockets = boot.socket_paths();
    continue_paused(&record.name, &tightest(record, project.layout), &sockets, project.context)
}

fn proceed(vm: &str, sockets: &SocketsLayout, cancel: &Cancel) -> Result<(), VmError> {
    Qmp::connect(&sockets.qmp(), WaitLimit::new(ANSWER_LIMIT, cancel))
        .and_then(|mut qmp| qmp.execute("cont", json!({})))
        .map(drop)
        .map_err(|error| unanswered(vm, error))
}
