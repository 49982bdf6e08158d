//! A boot by a disk's own boot loader.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::Firmware;

/// A boot by a disk's own boot loader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NativeRecord {
    /// Firmware that started the boot loader.
    pub firmware: Firmware,
    /// Reason for the firmware, as part of a sentence.
    #[serde(default)]
    pub reason: String,
    /// True if the guest has a disk with data for cloud-init.
    #[serde(default)]
    pub seed: bool,
    /// SSH server on the VM's disk when it was started.
    #[serde(default)]
    pub ssh_server: Option<SshServer>,
}

/// Result of the search for an SSH server on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SshServer {
    /// There is one.
    Found,
    /// The system has none that castra knows.
    Missing,
    /// The disk cannot be read.
    Unknown,
}
