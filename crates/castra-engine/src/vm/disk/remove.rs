//! Removal of disks. Nothing else in `vm` removes them, so that only disks are removed.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::config::DiskPath;
use crate::layout::ProjectLayout;
use crate::qemu::QCOW2_MAGIC;
use crate::trusted;
use crate::vm::error::{FileAction, VmDiskError, VmError, VmIoError};
use crate::vm::record::{DiskStamp, Record};

use super::{confirm_place, data};

/// Removes a disk, a layer or an overlay. A missing one is fine.
///
/// # Errors
/// Returns [`VmDiskError::NotADisk`] for anything but a qcow2 of this user's, which stays,
/// [`VmDiskError::InUse`] or [`VmIoError::File`].
pub(in crate::vm) fn remove_disk(path: &Path) -> Result<(), VmError> {
    check_removable(path)?;
    refuse_in_use(path)?;
    gone(path)
}

/// Removes a disk if it is the one that castra has made, and leaves any other file alone.
///
/// # Errors
/// Returns errors as [`remove_disk`] does.
pub(in crate::vm) fn remove_made_disk(path: &Path, made: Option<DiskStamp>) -> Result<(), VmError> {
    match made {
        Some(made) if DiskStamp::of(path).is_ok_and(|found| found == made) => remove_disk(path),
        _ => Ok(()),
    }
}

/// Checks that no QEMU has a disk open, wherever it runs: each holds locks on its files
/// (`block/file-posix.c` of QEMU).
///
/// # Errors
/// Returns [`VmDiskError::InUse`].
pub(in crate::vm) fn refuse_in_use(path: &Path) -> Result<(), VmError> {
    let mut options = fs::OpenOptions::new();
    let Ok(disk) = trusted::open_with(options.read(true).write(true), path) else { return Ok(()) };
    match fcntl_lock(&disk, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::ACCESS) => {
            Err(VmDiskError::InUse { path: path.to_owned() }.into())
        }
        // A filesystem without locks offers no such check.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a disk being created, which may still be empty. A missing one is fine.
///
/// # Errors
/// Returns errors as [`remove_disk`] does.
pub(in crate::vm) fn remove_unfinished_disk(path: &Path) -> Result<(), VmError> {
    check_unfinished(path)?;
    gone(path)
}

/// Checks that [`remove_unfinished_disk`] would remove a file.
///
/// # Errors
/// Returns errors as [`remove_disk`] does.
pub(in crate::vm) fn check_unfinished(path: &Path) -> Result<(), VmError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => Ok(()),
        _ => check_removable(path),
    }
}

/// Checks that [`remove_disk`] would remove a file.
///
/// # Errors
/// Returns errors as [`remove_disk`] does.
pub(in crate::vm) fn check_removable(path: &Path) -> Result<(), VmError> {
    let mut begin = Vec::new();
    let read = trusted::open(path)
        .and_then(|file| file.take(QCOW2_MAGIC.len() as u64).read_to_end(&mut begin));
    match read {
        Err(error) if trusted::is_absence(&error) => Ok(()),
        Ok(_) if begin == QCOW2_MAGIC => Ok(()),
        Ok(_) => {
            let source = io::Error::new(io::ErrorKind::InvalidData, "it is not a qcow2 file");
            Err(VmDiskError::NotADisk { path: path.to_owned(), source }.into())
        }
        Err(source) => Err(VmDiskError::NotADisk { path: path.to_owned(), source }.into()),
    }
}

/// Removes the remains of an unfinished clone, its record last. Its disk must be in the same bounds
/// as `like`.
///
/// # Errors
/// Returns [`VmDiskError::OutOfBounds`] or [`VmIoError::File`].
pub(in crate::vm) fn remove_unfinished_clone(
    record: &Record,
    like: &DiskPath,
    layout: &ProjectLayout,
) -> Result<(), VmError> {
    let files = layout.vm(&record.name);
    let overlay = like.at(record.overlay_path(layout));
    // First, since it may be refused: then everything stays.
    confirm_place(&record.name, &overlay)?;
    remove_made_disk(&overlay, record.cloned.as_ref().and_then(|cloned| cloned.made_disk))?;
    data::remove_of_clone(record, &files)?;
    for path in [files.machine_state(), files.clone_record(), files.record()] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(
                    VmIoError::File { action: FileAction::Remove, path, source: error }.into()
                );
            }
            _ => {}
        }
    }
    Ok(())
}

fn gone(path: &Path) -> Result<(), VmError> {
    match fs::remove_file(path) {
        Err(error) if !trusted::is_absence(&error) => Err(VmIoError::File {
            action: FileAction::Remove,
            path: path.to_owned(),
            source: error,
        }
        .into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disks_go() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        fs::write(at("disk"), b"QFI\xfb and more").expect("written");
        fs::write(at("thesis"), b"QFI?").expect("written");
        fs::write(at("empty"), b"").expect("written");
        std::os::unix::fs::symlink(at("disk"), at("link")).expect("linked");
        for name in ["thesis", "empty", "link"] {
            assert!(
                matches!(remove_disk(&at(name)), Err(VmError::Disk(VmDiskError::NotADisk { .. }))),
                "{name}"
            );
            assert!(at(name).exists(), "{name}");
        }
        assert!(remove_unfinished_disk(&at("thesis")).is_err());
        remove_unfinished_disk(&at("empty")).expect("removed");
        remove_disk(&at("disk")).expect("removed");
        remove_disk(&at("disk")).expect("gone already");
        assert!(!at("disk").exists() && !at("empty").exists());
    }
}
