//! Starting a VM.

use std::time::Duration;

use super::Vm;
use crate::cancel::Cancel;
use crate::context::RuntimeContext;
use crate::error::Result;
use crate::vm::{self, ProjectRef, UpOptions, UpOutcome, WaitFor};

/// A start of a VM, from [`Vm::up`].
#[must_use]
pub struct Up<'a> {
    vm: &'a Vm,
    options: UpOptions,
    cancel: Option<Cancel>,
}

/// Outcome of a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// True if the VM ran before.
    pub ran_already: bool,
    /// Time from QEMU's start until commands could run, if they can.
    pub boot: Option<Duration>,
}

impl<'a> Up<'a> {
    pub(super) fn new(vm: &'a Vm, options: UpOptions) -> Self {
        Self { vm, options, cancel: None }
    }

    /// Boots even where a warm template could be used or made.
    pub fn cold(mut self) -> Self {
        self.options.cold = true;
        self
    }

    /// Sets the stage to wait for, instead of [`WaitFor::Ready`].
    pub fn wait(mut self, stage: WaitFor) -> Self {
        self.options.wait = stage;
        self
    }

    /// Sets the time limit of the boot, instead of one that fits the accelerator.
    pub fn boot_timeout(mut self, limit: Duration) -> Self {
        self.options.boot_limit = Some(limit);
        self
    }

    /// Drops the memory of a suspended VM, and boots it from its disk.
    pub fn discard_suspended(mut self) -> Self {
        self.options.discard_suspended = true;
        self
    }

    /// Sets the flag that cancels this start, instead of the one of all operations.
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// Starts the VM, or resumes it if it is suspended. One that runs already is left alone. The
    /// first start of a machine fetches the image.
    ///
    /// # Errors
    /// Fails for a VM that is not declared, and if it cannot be started.
    pub fn start(self) -> Result<Started> {
        let config = self.vm.project().config();
        let ProjectRef { layout, context } = self.vm.project().lend();
        let own = self.cancel.map(|cancel| RuntimeContext { cancel, ..context.clone() });
        let project = ProjectRef::new(layout, own.as_ref().unwrap_or(context));
        let names = [self.vm.name().to_owned()];
        let outcomes = vm::up_named(&names, config, project, self.options)?;
        let mut started = Started { ran_already: false, boot: None };
        for (_, outcome) in outcomes {
            let UpOutcome { record, ran_already } = outcome?;
            let ready_ms = record.boot.and_then(|boot| boot.ready_ms);
            started = Started { ran_already, boot: ready_ms.map(Duration::from_millis) };
        }
        Ok(started)
    }
}
