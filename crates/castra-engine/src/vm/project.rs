//! The project whose VMs an operation works on.

use crate::cancel::Cancel;
use crate::context::RuntimeContext;
use crate::layout::{ProjectLayout, SocketsLayout, VmLayout};
use crate::report::Event;

/// A project and the context of the operation on it.
#[derive(Clone, Copy)]
pub struct ProjectRef<'a> {
    /// Paths of the project's state, which was opened.
    pub layout: &'a ProjectLayout,
    /// Context of the operation: environment, reporter, interruption.
    pub context: &'a RuntimeContext,
}

impl<'a> ProjectRef<'a> {
    /// Returns the project with this state, for an operation in this context.
    pub fn new(layout: &'a ProjectLayout, context: &'a RuntimeContext) -> Self {
        Self { layout, context }
    }

    /// Returns the files of a VM.
    pub(super) fn files(self, vm: &str) -> VmLayout {
        self.layout.vm(vm)
    }

    /// Returns the sockets that a start of the VM would use.
    pub(super) fn sockets(self, vm: &str) -> SocketsLayout {
        self.layout.sockets(&self.context.runtime_root, vm)
    }

    /// Returns the request to interrupt the operation.
    pub(super) fn cancel(self) -> &'a Cancel {
        &self.context.cancel
    }

    pub(super) fn report(self, event: &Event) {
        self.context.reporter.report(event);
    }
}
