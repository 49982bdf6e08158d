//! VMs that still run although their projects are gone.

use std::path::PathBuf;
use std::time::Duration;

use crate::context::RuntimeContext;
use crate::qemu::{FoundQemu, find_qemus};
use crate::vm::error::{StopError, VmError};
use crate::vm::monitor::clean_up_run;

/// Time for QEMU to end after a signal.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A running VM whose project is gone.
#[derive(Debug)]
pub struct Orphan {
    /// Name of the VM.
    pub vm: String,
    /// Former directory of its project.
    pub directory: PathBuf,
    found: FoundQemu,
}

impl Orphan {
    /// Returns the pid of its QEMU.
    pub fn pid(&self) -> i32 {
        self.found.qemu.pid()
    }
}

/// Returns all running VMs whose projects are gone, by pid.
pub fn orphans() -> Vec<Orphan> {
    let orphan = |found: FoundQemu| Orphan {
        vm: found.vm.clone(),
        directory: found.project.directory().to_owned(),
        found,
    };
    find_qemus().into_iter().filter(|found| found.is_orphan).map(orphan).collect()
}

/// Ends a VM whose project is gone, like a power cut: there is no disk to shut down cleanly. The
/// process is found by its lock on its pid file, and signalled through a pidfd, so that no other
/// process can be hit.
///
/// # Errors
/// Returns [`StopError::Unkillable`], or [`VmError::Qemu`] if it cannot be signalled.
pub fn end_orphan(orphan: &Orphan, context: &RuntimeContext) -> Result<(), VmError> {
    let qemu = &orphan.found.qemu;
    qemu.terminate()?;
    if !qemu.wait(END_LIMIT) {
        qemu.kill()?;
        if !qemu.wait(END_LIMIT) {
            return Err(StopError::Unkillable { vm: orphan.vm.clone(), pid: qemu.pid() }.into());
        }
    }
    let started_in = &orphan.found.started_in;
    let sockets = started_in.sockets(&context.runtime_root, &orphan.vm);
    let has_heir = started_in.vm(&orphan.vm).directory().exists();
    if !has_heir {
        clean_up_run(&started_in.vm(&orphan.vm), &sockets);
    }
    Ok(())
}
