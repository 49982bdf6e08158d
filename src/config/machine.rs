//! What a check of a configuration asks of this machine.

use std::path::Path;

use super::diagnostics::Finding;
use super::project::{PortForward, VmDefinition};
use crate::layout::ProjectLayout;

/// Checks of this machine, which a configuration knows nothing of.
pub trait Machine {
    /// Returns what is wrong with the user's own disk that a VM is based on.
    fn disk(&self, vm: &VmDefinition, path: &Path) -> Option<Finding>;

    /// Returns what keeps a port from being forwarded. The project's own VMs, of which one may have it, are in `state`.
    fn port(&self, vm: &VmDefinition, forward: &PortForward, state: &ProjectLayout) -> Option<Finding>;
}
