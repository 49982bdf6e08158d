//! Checks of this machine for a configuration.

use std::path::Path;

use super::diagnostics::Finding;
use super::project::{PortForward, VmDefinition};
use crate::layout::ProjectLayout;

/// Checks of this machine, which a configuration knows nothing of.
pub trait Machine {
    /// Returns a problem with the user's own disk on which a VM is based.
    fn disk(&self, vm: &VmDefinition, path: &Path) -> Option<Finding>;

    /// Returns a reason why a port cannot be forwarded. The project's own VMs, one of which may
    /// have it, are in `state`.
    fn port(
        &self,
        vm: &VmDefinition,
        forward: &PortForward,
        state: &ProjectLayout,
    ) -> Option<Finding>;
}
