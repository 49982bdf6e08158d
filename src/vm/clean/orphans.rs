//! VMs that still run though their projects are gone.

use std::path::PathBuf;
use std::time::Duration;

use crate::context::RuntimeContext;
use crate::qemu::{FoundQemu, find_qemus};
use crate::vm::error::VmError;
use crate::vm::monitor::clean_up_run;

/// How long QEMU may take to end once it is told to.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A VM that runs and whose project is gone.
#[derive(Debug)]
pub struct Orphan {
    /// Its name.
    pub vm: String,
    /// Where its project was.
    pub directory: PathBuf,
    found: FoundQemu,
}

impl Orphan {
    /// QEMU's process.
    pub fn pid(&self) -> i32 {
        self.found.qemu.pid()
    }
}

/// All VMs that run and whose projects are gone, by pid.
pub fn orphans() -> Vec<Orphan> {
    let orphan = |found: FoundQemu| Orphan {
        vm: found.vm.clone(),
        directory: found.project.directory().to_owned(),
        found,
    };
    find_qemus().into_iter().filter(|found| found.is_orphan).map(orphan).collect()
}

/// Ends a VM whose project is gone, as if the power went: there is no disk to be put in order. The process is known by its
/// lock on its pid file, and signalled by a descriptor, so that no other one can be hit.
///
/// # Errors
/// [`VmError::Unkillable`]; [`VmError::Qemu`] where it cannot be signalled.
pub fn end_orphan(orphan: &Orphan, context: &RuntimeContext) -> Result<(), VmError> {
    let qemu = &orphan.found.qemu;
    qemu.terminate()?;
    if !qemu.wait(END_LIMIT) {
        qemu.kill()?;
        if !qemu.wait(END_LIMIT) {
            return Err(VmError::Unkillable { vm: orphan.vm.clone(), pid: qemu.pid() });
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
