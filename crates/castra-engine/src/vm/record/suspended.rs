//! Saved state of a suspended VM, and the checks that its disk has not changed since.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cancel::Cancel;
use crate::files::{self, FileError, Stamp};
use crate::qemu::DiskName;

use super::boot::BootRecord;

/// Saved state of a VM, with its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspendRecord {
    /// Time of the suspend, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// The boot whose state was saved: only the same machine can resume it.
    pub boot: BootRecord,
    /// SHA-256 of the saved state, in hexadecimal.
    pub sha256: String,
    /// Stamp of the saved state.
    pub stamp: Stamp,
    /// The disk at that moment. The memory does not fit any other.
    pub disk: DiskStamp,
    /// SHA-256 of that disk, in hexadecimal: a copy has the same, whatever its stamp. `None` in a
    /// record of an earlier castra, or if the suspend was interrupted after the memory was saved.
    #[serde(default)]
    pub disk_sha256: Option<String>,
    /// Data disks at that moment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data_disks: Vec<SavedDisk>,
    /// While the VM is cloned: the disk that is about to take its place, with the same content.
    #[serde(default)]
    pub next_disk: Option<DiskStamp>,
}

/// A data disk of a suspended VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisk {
    /// Name of the disk.
    pub name: DiskName,
    /// Stamp of the file.
    pub stamp: DiskStamp,
    /// SHA-256 of the file, in hexadecimal, as for the VM's own disk.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// Size and times, from `stat`, of a disk that is not written to. A shortcut: if they differ, the
/// digest decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStamp {
    size_bytes: u64,
    modified_secs: i64,
    modified_nanos: i64,
    /// Inode number; `None` in a record of an earlier castra.
    #[serde(default)]
    inode: Option<u64>,
}

impl DiskStamp {
    /// Returns the stamp of this disk.
    ///
    /// # Errors
    /// Returns the error of `stat`.
    pub(in crate::vm) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let (modified_secs, modified_nanos) = (metadata.mtime(), metadata.mtime_nsec());
        let inode = Some(metadata.ino());
        Ok(Self { size_bytes: metadata.size(), modified_secs, modified_nanos, inode })
    }

    /// Checks that a disk is the one that had this stamp and this digest, and updates the stamp.
    /// Without a digest, size and time of change have to suffice. Hashes the disk only if the stamp
    /// differs.
    ///
    /// # Errors
    /// Returns [`FileError`] if the disk cannot be read, or on an interruption.
    pub(in crate::vm) fn recognises(
        &mut self,
        disk: &Path,
        sha256: Option<&str>,
        cancel: &Cancel,
    ) -> Result<bool, FileError> {
        let Ok(found) = Self::of(disk) else { return Ok(false) };
        let is_same = found == *self
            || match sha256 {
                Some(sha256) => {
                    found.size_bytes == self.size_bytes && files::sha256(disk, cancel)? == sha256
                }
                None => found.has_time_of(self),
            };
        if is_same {
            *self = found;
        }
        Ok(is_same)
    }

    fn has_time_of(&self, other: &Self) -> bool {
        Self { inode: None, ..*self } == Self { inode: None, ..*other }
    }
}

impl SuspendRecord {
    /// Checks that this is the disk that the memory belongs to.
    ///
    /// # Errors
    /// Returns errors as [`DiskStamp::recognises`] does.
    pub(in crate::vm) fn recognises(
        &mut self,
        disk: &Path,
        cancel: &Cancel,
    ) -> Result<bool, FileError> {
        if let Some(next) =
            self.next_disk.filter(|next| DiskStamp::of(disk).is_ok_and(|found| found == *next))
        {
            self.disk = next;
            self.disk_sha256 = None;
            return Ok(true);
        }
        self.disk.recognises(disk, self.disk_sha256.as_deref(), cancel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_disk_is_known_by_its_stamp_and_a_copy_by_its_content() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, moved) = (directory.path().join("disk"), directory.path().join("moved"));
        fs::write(&path, "one").expect("writes");
        let cancel = &Cancel::new();
        let sha256 = files::sha256(&path, cancel).expect("hashed");
        let before = DiskStamp::of(&path).expect("is there");
        let is_same = |path: &Path, sha256: Option<&str>| {
            let mut stamp = before;
            let is_same = stamp.recognises(path, sha256, cancel).expect("looks");
            assert_eq!(stamp == DiskStamp::of(path).unwrap_or(before), is_same || !path.exists());
            is_same
        };
        fs::rename(&path, &moved).expect("moves");
        assert!(is_same(&moved, None) && is_same(&moved, Some("not asked for")));
        assert!(!is_same(&path, Some(&sha256)), "missing");

        fs::copy(&moved, &path).expect("copies");
        File::open(&path).and_then(|file| file.set_modified(std::time::UNIX_EPOCH)).expect("sets");
        assert!(is_same(&path, Some(&sha256)));
        assert!(!is_same(&path, None), "nothing proves it");
        fs::write(&path, "two").expect("writes");
        assert!(!is_same(&path, Some(&sha256)));
    }

    /// A stamp as an earlier castra wrote it: without the inode, so that copies with the same times
    /// were recognised.
    #[test]
    fn the_stamp_of_an_earlier_castra_counts_with_its_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk");
        fs::write(&path, "one").expect("writes");
        let mut stamp = DiskStamp { inode: None, ..DiskStamp::of(&path).expect("is there") };
        assert!(stamp.recognises(&path, None, &Cancel::new()).expect("looks"));
        assert!(stamp.inode.is_some());
    }
}
