//! Stopping a VM.

use std::time::Duration;

use super::Vm;
use crate::error::Result;
use crate::vm::{self, DownOptions, IfSuspended};

/// A stop of a VM, from [`Vm::down`].
#[must_use]
pub struct Down<'a> {
    vm: &'a Vm,
    options: DownOptions,
}

impl<'a> Down<'a> {
    pub(super) fn new(vm: &'a Vm) -> Self {
        Self { vm, options: DownOptions::default() }
    }

    /// Ends QEMU at once without asking the guest, like a power cut.
    pub fn force(mut self) -> Self {
        self.options.force = true;
        self
    }

    /// Sets the time for the guest to shut down, instead of a minute.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.options.limit = limit;
        self
    }

    /// Drops the memory of a suspended VM. Without this, a suspended VM is an error.
    pub fn discard_suspended(mut self) -> Self {
        self.options.suspended = IfSuspended::Discard;
        self
    }

    /// Stops the VM. Returns `true` if it ran, and `false` if it was stopped already.
    ///
    /// # Errors
    /// Fails for a VM that was never started, and if the guest did not shut down in time: then the
    /// VM has been stopped like by a power cut.
    pub fn stop(self) -> Result<bool> {
        let project = self.vm.project();
        let names = [self.vm.name().to_owned()];
        let mut did_run = false;
        for (_, before) in vm::down(&names, project.lend(), &self.options)? {
            did_run |= before?.is_alive();
        }
        Ok(did_run)
    }
}
