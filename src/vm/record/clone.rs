//! Record of a clone, and the layers that clones share.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::BootProfile;
use crate::qemu::CpuModel;

use super::suspended::DiskStamp;

/// What a clone is that no configuration declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRecord {
    /// The VM it is a clone of.
    pub of: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// CPU model under TCG; nothing in a record of an earlier castra, and where it was the host's own.
    #[serde(default)]
    pub cpu: Option<CpuModel>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual size of its disk.
    pub disk_bytes: u64,
    /// How it boots.
    pub boot_profile: BootProfile,
}

/// A layer that a VM's disk and those of its clones stand on, beside the disk itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenLayer {
    /// The file's name in the disk's directory.
    pub name: PathBuf,
    /// What `stat` said of it.
    pub stamp: DiskStamp,
    /// Its SHA-256, hexadecimal; nothing in a record of an earlier castra until the VM is started.
    #[serde(default)]
    pub sha256: Option<String>,
}
