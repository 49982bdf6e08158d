//! What is kept of a suspended VM, and whether it can still be gone on from.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cancel::Cancel;
use crate::layout::ProjectLayout;
use crate::managed::{Stamp, sha256_of};
use crate::qemu::{Accelerator, QemuBinary};
use crate::trusted;

use super::error::VmError;
use super::record::{BootRecord, Record};

/// What was saved, and of which machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspendRecord {
    /// When, milliseconds since the Unix epoch.
    pub at_unix_ms: u64,
    /// The run it was saved of: whatever goes on from it must be the same machine.
    pub boot: BootRecord,
    /// SHA-256 of the saved state, hexadecimal.
    pub sha256: String,
    /// What `stat` says of it.
    pub stamp: Stamp,
    /// The disk at that moment. Memory is of no use with any other.
    pub disk: DiskStamp,
    /// While the VM is cloned: the disk that is about to take its place, with the same content.
    #[serde(default)]
    pub next_disk: Option<DiskStamp>,
}

/// What `stat` says of a disk: not the inode, so that a copy of the project that keeps times can go on, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStamp {
    size_bytes: u64,
    modified_secs: i64,
    modified_nanos: i64,
}

impl DiskStamp {
    /// The stamp of this disk.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let (modified_secs, modified_nanos) = (metadata.mtime(), metadata.mtime_nsec());
        Ok(Self { size_bytes: metadata.size(), modified_secs, modified_nanos })
    }
}

/// The host, where the guest's CPU is the host's own.
pub(super) fn host_of(accelerator: Accelerator) -> Option<String> {
    (accelerator != Accelerator::Tcg)
        .then(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

impl SuspendRecord {
    /// Whether this is the disk that the memory belongs to.
    pub(super) fn is_of(&self, disk: &Path) -> bool {
        let found = DiskStamp::of(disk).ok();
        found.is_some_and(|found| found == self.disk || Some(found) == self.next_disk)
    }

    /// The saved state, if this VM can go on from it: it is whole, its QEMU is still there, and so is its disk.
    ///
    /// # Errors
    /// [`VmError::NotResumable`] with the reason; [`VmError::Image`] when interrupted.
    pub(super) fn open(
        &self,
        record: &Record,
        binary: &QemuBinary,
        layout: &ProjectLayout,
        cancel: &Cancel,
    ) -> Result<File, VmError> {
        let useless =
            |reason: &str| VmError::NotResumable { vm: record.name.clone(), reason: reason.to_owned() };
        let recorded = self.boot.machine.as_ref().ok_or_else(|| useless("its machine is not known"))?;
        let machine = recorded.known().map_err(|reason| {
            let path = layout.vm(&record.name).record();
            useless(&format!("{} describes a machine that castra does not run: {reason}", path.display()))
        })?;
        if machine.qemu != binary.identity {
            return Err(useless("it was saved by another QEMU, or with other arguments of your own"));
        }
        if machine.host != host_of(self.boot.accelerator.accelerator) {
            return Err(useless("it was saved on another machine, whose CPU it has seen"));
        }
        if !self.is_of(&record.overlay_path(layout)) {
            return Err(useless("its disk has changed since"));
        }
        let path = layout.vm(&record.name).machine_state();
        let file = match trusted::open(&path) {
            Err(error) if trusted::is_absence(&error) => return Err(useless("its saved memory is gone")),
            Err(error) => return Err(useless(&format!("its saved memory is not relied on: {error}"))),
            Ok(file) => file,
        };
        let metadata = file.metadata().map_err(|_| useless("its saved memory cannot be read"))?;
        // Hashing takes longer than loading; a file that `stat` says is the same was not written to.
        if Stamp::of(&metadata) != self.stamp && sha256_of(&path, cancel)? != self.sha256 {
            return Err(useless("its saved memory is damaged"));
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_write_changes_a_disks_stamp_and_a_move_does_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, moved) = (directory.path().join("disk"), directory.path().join("moved"));
        fs::write(&path, "one").expect("writes");
        let before = DiskStamp::of(&path).expect("is there");
        fs::rename(&path, &moved).expect("moves");
        assert_eq!(DiskStamp::of(&moved).expect("is there"), before);
        let mut file = fs::OpenOptions::new().append(true).open(&moved).expect("opens");
        file.write_all(b"two").expect("writes");
        assert_ne!(DiskStamp::of(&moved).expect("is there"), before);
        assert!(DiskStamp::of(&path).is_err());
    }
}
