//! Pausing a running VM: its processors stop, and QEMU keeps its memory and its connections.
//!
//! Nothing is recorded: a paused machine should run, and any command for it continues it.

use serde_json::json;

use super::error::{StateError, VmError};
use super::lock::lock;
use super::monitor::{connect, ensure_not_stopped, unanswered};
use super::project::ProjectRef;
use super::record::{BootRecord, Record, VmState, observe, recorded_vm};
use super::start::wake;

/// Pauses a VM that runs.
///
/// # Errors
/// Returns [`StateError::NotRunning`], and errors of a QEMU that does not answer.
pub fn pause(vm: &str, project: ProjectRef<'_>) -> Result<(), VmError> {
    let _lock = lock(vm, project)?;
    let (_, boot) = running(vm, project)?;
    execute(vm, &boot, "stop", project)
}

/// Continues a VM that was paused, and sets its guest's clock, which has stood still.
///
/// # Errors
/// Returns [`StateError::NotRunning`], and errors of a QEMU or guest that does not answer.
pub fn unpause(vm: &str, project: ProjectRef<'_>) -> Result<(), VmError> {
    let _lock = lock(vm, project)?;
    let (record, boot) = running(vm, project)?;
    execute(vm, &boot, "cont", project)?;
    if boot.has_agent() { wake(&record, &boot, project) } else { Ok(()) }
}

fn running(vm: &str, project: ProjectRef<'_>) -> Result<(Record, BootRecord), VmError> {
    let record = recorded_vm(Some(vm), project.layout)?;
    let (state, qemu) = observe(&record, &project.files(vm));
    ensure_not_stopped(vm, qemu.as_ref())?;
    match record.boot.clone().filter(|_| state == VmState::Running) {
        Some(boot) => Ok((record, boot)),
        None => Err(StateError::NotRunning { vm: vm.to_owned(), state }.into()),
    }
}

fn execute(
    vm: &str,
    boot: &BootRecord,
    command: &str,
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    let mut qmp = connect(vm, boot, project.cancel())?;
    qmp.execute(command, json!({})).map(drop).map_err(|error| unanswered(vm, error))
}
