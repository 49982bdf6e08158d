//! Data disks of a VM, as a configuration declares them.

use castra_wire::DiskOrder;
use serde::{Deserialize, Serialize};

use crate::qemu::DiskName;

/// Largest data disk, in bytes. An ext4 that was made for a small disk cannot grow beyond 16 TiB:
/// its number of inodes ends there.
pub const MAX_DATA_DISK_BYTES: u64 = 8 << 40;

/// Most bytes that the mounted disks of a VM take on its kernel's command line, which holds 2047.
pub const MAX_GUEST_BYTES: usize = 600;

/// A disk of a VM in addition to the one that it boots from. It stays when the VM is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDisk {
    /// Name of the disk.
    pub name: DiskName,
    /// Virtual size, in bytes; a multiple of 512.
    pub size_bytes: u64,
    /// Absolute path in the guest at which the agent mounts it, as
    /// [`Mount::guest_path`](crate::guest::Mount::guest_path) returns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
}

impl DataDisk {
    /// Returns the agent's order for it.
    pub fn order(&self, is_unwritten: bool) -> DiskOrder {
        DiskOrder { name: self.name.to_string(), guest: self.guest.clone(), is_unwritten }
    }
}
