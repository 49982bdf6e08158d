//! What a check of a configuration asks of this machine.

use std::path::Path;

use super::diagnostics::Finding;
use super::project::{PortForward, VmDefinition};

/// Knows this machine, which the configuration does not.
pub trait Machine {
    /// What is wrong with the user's own disk that a VM stands on.
    fn disk(&self, vm: &VmDefinition, path: &Path) -> Option<Finding>;

    /// What keeps a port from being forwarded.
    fn port(&self, vm: &VmDefinition, forward: &PortForward) -> Option<Finding>;
}
