//! Removing disks: the only way, so that nothing goes that is none.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::qemu::QCOW2_MAGIC;
use crate::trusted;

use super::error::VmError;

/// Removes a disk, a layer or an overlay. One that is not there is fine.
///
/// # Errors
/// [`VmError::NotADisk`] for anything that is not a qcow2 of this user's, which stays; [`VmError::DiskInUse`]; [`VmError::Disk`].
pub(super) fn remove_disk(path: &Path) -> Result<(), VmError> {
    check_removable(path)?;
    refuse_in_use(path)?;
    gone(path)
}

/// Checks that no QEMU has a disk open, wherever it runs: each holds locks on its files (`block/file-posix.c` of QEMU).
///
/// # Errors
/// [`VmError::DiskInUse`].
pub(super) fn refuse_in_use(path: &Path) -> Result<(), VmError> {
    let mut options = fs::OpenOptions::new();
    let Ok(disk) = trusted::open_with(options.read(true).write(true), path) else { return Ok(()) };
    match fcntl_lock(&disk, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::ACCESS) => Err(VmError::DiskInUse { path: path.to_owned() }),
        // A filesystem without locks has no barrier here.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a disk in the making, which may be empty yet. One that is not there is fine.
///
/// # Errors
/// As for [`remove_disk`].
pub(super) fn remove_unfinished_disk(path: &Path) -> Result<(), VmError> {
    check_unfinished(path)?;
    gone(path)
}

/// Checks that [`remove_unfinished_disk`] would remove a file.
///
/// # Errors
/// As for [`remove_disk`].
pub(super) fn check_unfinished(path: &Path) -> Result<(), VmError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => Ok(()),
        _ => check_removable(path),
    }
}

/// Checks that [`remove_disk`] would remove a file.
///
/// # Errors
/// As for [`remove_disk`].
pub(super) fn check_removable(path: &Path) -> Result<(), VmError> {
    let mut begin = Vec::new();
    let read =
        trusted::open(path).and_then(|file| file.take(QCOW2_MAGIC.len() as u64).read_to_end(&mut begin));
    match read {
        Err(error) if trusted::is_absence(&error) => Ok(()),
        Ok(_) if begin == QCOW2_MAGIC => Ok(()),
        Ok(_) => {
            let source = io::Error::new(io::ErrorKind::InvalidData, "it does not begin as a qcow2 does");
            Err(VmError::NotADisk { path: path.to_owned(), source })
        }
        Err(source) => Err(VmError::NotADisk { path: path.to_owned(), source }),
    }
}

fn gone(path: &Path) -> Result<(), VmError> {
    match fs::remove_file(path) {
        Err(error) if !trusted::is_absence(&error) => {
            Err(VmError::Disk { action: "remove", path: path.to_owned(), source: error })
        }
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
            assert!(matches!(remove_disk(&at(name)), Err(VmError::NotADisk { .. })), "{name}");
            assert!(at(name).exists(), "{name}");
        }
        assert!(remove_unfinished_disk(&at("thesis")).is_err());
        remove_unfinished_disk(&at("empty")).expect("removed");
        remove_disk(&at("disk")).expect("removed");
        remove_disk(&at("disk")).expect("gone already");
        assert!(!at("disk").exists() && !at("empty").exists());
    }
}
