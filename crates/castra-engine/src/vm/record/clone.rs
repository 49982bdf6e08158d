//! Record of a clone, and the layers that clones share.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{BootProfile, Firmware, Proxy};
use crate::qemu::{CpuModel, DiskName};

use super::suspended::{DiskStamp, SavedDisk};

/// Properties of a clone, which no configuration declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRecord {
    /// The VM that was cloned.
    pub of: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// CPU model under TCG; `None` in a record of an earlier castra, and if it was the host's own.
    #[serde(default)]
    pub cpu: Option<CpuModel>,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual size of its disk, in bytes.
    pub disk_bytes: u64,
    /// Proxies of its commands.
    #[serde(default)]
    pub proxy: Proxy,
    /// Way in which it boots.
    pub boot_profile: BootProfile,
    /// Firmware of a native boot; `None` in a record of an earlier castra, and for other boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// While it is made: its disk, from the moment before it gets its name. Another file under that
    /// name is not castra's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_disk: Option<DiskStamp>,
    /// While it is made: its data disks, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made_data_disks: Vec<SavedDisk>,
}

impl CloneRecord {
    /// Returns the stamp of a data disk that was made for the clone.
    pub(in crate::vm) fn made_data_disk(&self, name: &DiskName) -> Option<DiskStamp> {
        let mut made = self.made_data_disks.iter();
        made.find(|disk| disk.name == *name).map(|disk| disk.stamp)
    }
}

/// A layer beside the disk, which a VM's disk and those of its clones are based on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenLayer {
    /// File name in the disk's directory.
    pub name: PathBuf,
    /// Stamp of the file.
    pub stamp: DiskStamp,
    /// SHA-256 in hexadecimal; `None` in a record of an earlier castra until the VM is started.
    #[serde(default)]
    pub sha256: Option<String>,
}
