//! Options and outcome of a start.

use std::time::Duration;

use crate::command::Lifetime;
use crate::qemu::Network;
use crate::vm::record::Record;

/// What `up` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// Nothing: QEMU runs. The next command that needs the guest finishes the start.
    Nothing,
    /// Commands can run.
    Ready,
    /// The guest's own last service is up.
    Services,
}

/// How `up` is to behave.
#[derive(Debug, Clone, Copy)]
pub struct UpOptions {
    /// What to wait for.
    pub wait: WaitFor,
    /// How long a boot may take; nothing for a limit that fits the accelerator.
    pub boot_limit: Option<Duration>,
    /// Boot even where a warm template could be used or made.
    pub cold: bool,
    /// Drop the memory of a suspended VM, and boot it from its disk.
    pub discard_suspended: bool,
    /// How long QEMU may live.
    pub lifetime: Lifetime,
    /// What the guest can reach.
    pub network: Network,
}

impl Default for UpOptions {
    /// Until commands can run, with a limit that fits the accelerator, from a warm template, for good.
    fn default() -> Self {
        Self {
            wait: WaitFor::Ready,
            boot_limit: None,
            cold: false,
            discard_suspended: false,
            lifetime: Lifetime::Own,
            network: Network::Full,
        }
    }
}

/// What became of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpOutcome {
    /// Its record.
    pub record: Record,
    /// Whether it ran before.
    pub ran_already: bool,
}
