//! Full filesystem that keeps a VM's disk from growing.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::layout::ProjectLayout;
use crate::qemu::Qcow2Header;
use crate::size::ByteSize;

use super::record::Record;

/// A filesystem that is too full for a VM's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullDisk {
    /// Mount point.
    pub filesystem: PathBuf,
    /// Free bytes, if known.
    pub free_bytes: Option<u64>,
    /// Bytes by which the VM's disk may still grow, if known. QEMU does not say how much the failed
    /// write needs; with this much free, none fails.
    pub growth_bytes: Option<u64>,
}

impl fmt::Display for FullDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its disk cannot grow: the filesystem {} is full", self.filesystem.display())?;
        match (self.free_bytes, self.growth_bytes) {
            (Some(free), Some(growth)) => {
                write!(
                    f,
                    " ({} free, and the disk may grow by {})",
                    ByteSize(free),
                    ByteSize(growth)
                )
            }
            (Some(free), None) => write!(f, " ({} free)", ByteSize(free)),
            (None, _) => Ok(()),
        }
    }
}

/// Returns the disk of a VM, its own or a data disk, whose filesystem has the least room: that is
/// the one which cannot grow.
pub(in crate::vm) fn tightest(record: &Record, layout: &ProjectLayout) -> PathBuf {
    let files = layout.vm(&record.name);
    let own = record.overlay_path(layout);
    let data = record.data_disks.iter().map(|disk| files.data_disk(disk.name.as_str()));
    let free = |disk: &PathBuf| FullDisk::of(disk).free_bytes.unwrap_or(u64::MAX);
    std::iter::once(own.clone()).chain(data).min_by_key(free).unwrap_or(own)
}

impl FullDisk {
    /// Describes the filesystem of a VM's disk.
    pub(in crate::vm) fn of(disk: &Path) -> Self {
        let directory = disk.parent().unwrap_or(Path::new("/"));
        let free = rustix::fs::statvfs(directory).ok();
        let free_bytes = free.map(|status| status.f_bavail.saturating_mul(status.f_frsize));
        Self { filesystem: mount_point(directory), free_bytes, growth_bytes: growth(disk) }
    }
}

/// Computes how much larger a disk can become than it is.
fn growth(disk: &Path) -> Option<u64> {
    let virtual_bytes = Qcow2Header::read(disk).ok()?.virtual_bytes;
    let allocated = fs::metadata(disk).ok()?.blocks().saturating_mul(512);
    Some(virtual_bytes.saturating_sub(allocated))
}

/// Returns the highest directory of the same filesystem.
fn mount_point(directory: &Path) -> PathBuf {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let here = device(&directory);
    let shared = directory.ancestors().take_while(|path| device(path) == here);
    shared.last().unwrap_or(&directory).to_owned()
}
