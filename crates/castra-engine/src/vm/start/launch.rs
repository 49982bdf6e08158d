//! Launches QEMU with a free port of the host for the guest's SSH server.

use crate::qemu::{QemuError, QemuProcess};
use crate::vm::error::{FileAction, VmError, VmIoError};
use crate::vm::record::Record;

use super::request::BootRequest;
use crate::vm::ports;

/// Most attempts to start QEMU with a free port. Another program may take the port between its
/// choice and QEMU's start, but not this often by accident.
const PORT_ATTEMPTS: usize = 5;

/// QEMU, or the reason why it did not start; the outer error ends all attempts.
type Launched = Result<Result<QemuProcess, QemuError>, VmError>;

/// Launches QEMU by `launch`, which gets a free port for SSH, and again with another port if QEMU
/// could not have that one.
///
/// # Errors
/// Returns errors of `launch` (the outer ones precede QEMU's start), or [`VmError::Port`] for a
/// declared port that was taken meanwhile.
pub(in crate::vm) fn launch_on_free_port(
    request: &BootRequest<'_>,
    record: &mut Record,
    mut launch: impl FnMut(&mut Record, u16) -> Launched,
) -> Launched {
    let mut attempt = 1;
    loop {
        let port = ssh_port(request, record, attempt)?;
        match launch(record, port)? {
            Err(error) if error.is_port_taken() && attempt < PORT_ATTEMPTS => {
                ports::check(
                    request.vm(),
                    &request.plan.definition.port_forwards,
                    request.project.layout,
                )?;
                attempt += 1;
            }
            launched => return Ok(launched),
        }
    }
}

/// Chooses the port for SSH: the VM's last one while it is free, so that a configuration saved for
/// other SSH clients stays valid. A port that QEMU could not take is not tried again.
fn ssh_port(request: &BootRequest<'_>, record: &Record, attempt: usize) -> Result<u16, VmIoError> {
    ports::free_port(record.ssh_port.filter(|_| attempt == 1)).map_err(|source| VmIoError::File {
        action: FileAction::FindPort,
        path: request.files().directory().to_owned(),
        source,
    })
}
