//! Options and outcome of a start.

use std::time::Duration;

use crate::command::Lifetime;
use crate::qemu::Network;
use crate::vm::record::Record;

/// Stage that `up` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// QEMU runs. The next command that needs the guest finishes the start.
    Nothing,
    /// Commands can run.
    Ready,
    /// The guest's own last service is up.
    Services,
}

/// Options of `up`.
#[derive(Debug, Clone, Copy)]
pub struct UpOptions {
    /// Stage to wait for.
    pub wait: WaitFor,
    /// Time limit of a boot; `None` for one that fits the accelerator.
    pub boot_limit: Option<Duration>,
    /// Boot even where a warm template could be used or made.
    pub cold: bool,
    /// Drop the memory of a suspended VM, and boot it from its disk.
    pub discard_suspended: bool,
    /// Lifetime of QEMU.
    pub lifetime: Lifetime,
    /// Network that the guest can reach.
    pub network: Network,
    /// Network of the steps that prepare its disk, if it is not the guest's.
    pub provision_network: Option<Network>,
}

impl Default for UpOptions {
    /// Waits until commands can run, with a limit that fits the accelerator, from a warm template,
    /// with an unlimited lifetime.
    fn default() -> Self {
        Self {
            wait: WaitFor::Ready,
            boot_limit: None,
            cold: false,
            discard_suspended: false,
            lifetime: Lifetime::Own,
            network: Network::Full,
            provision_network: None,
        }
    }
}

/// Outcome of `up` for a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpOutcome {
    /// Record of the VM.
    pub record: Record,
    /// True if it ran before.
    pub ran_already: bool,
}
