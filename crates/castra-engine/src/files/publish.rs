//! Publication of finished files, so that other processes can trust them.
//!
//! ```text
//! temporary name, same filesystem → fsync file → rename → fsync directory → then the manifest
//! ```
//!
//! A file under its final name is therefore complete, even after a power cut. Published files are
//! never written to again (0444), which lets a project share them with the cache.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::{NamedTempFile, TempPath};

use super::atomic::TEMPORARY;
use super::digest::{Digest, DigestMismatch};
use super::error::{At, FileError};
use super::lock::Lock;
use super::open::{is_trusted, open};
use super::sparse::copy;
use super::stamp::Stamp;
use crate::cancel::Cancel;
use crate::failpoint::{self, Point};

/// Mode of published files.
pub(crate) const READ_ONLY: u32 = 0o444;

/// Publishes a complete file: makes it read-only, syncs it and renames it to its final name.
/// Returns the stamp of that very file, since another may have the name a moment later.
pub(crate) fn publish(temporary: &Path, target: &Path) -> Result<Stamp, FileError> {
    let file = open(temporary)?;
    // A shared file has its mode already, and may belong to another user.
    if file.metadata().at("look at", temporary)?.permissions().mode() & 0o777 != READ_ONLY {
        file.set_permissions(fs::Permissions::from_mode(READ_ONLY))
            .at("change the mode of", temporary)?;
    }
    file.sync_all().at("write to disk", temporary)?;
    let stamp = Stamp::of(&file.metadata().at("look at", temporary)?);
    failpoint::reach(Point::FileSynced);
    fs::rename(temporary, target).at("put in place", target)?;
    failpoint::reach(Point::FileRenamed);
    sync_parent(target)?;
    Ok(stamp)
}

/// Publishes the locked file, whose bytes were verified, and not another one under its name: the
/// cache may have been removed meanwhile, with the lock that guards the name, and another process
/// may have started over.
pub(crate) fn publish_locked(
    lock: &Lock,
    temporary: &Path,
    target: &Path,
) -> Result<(), FileError> {
    let changed = || FileError::ChangedMeanwhile { path: temporary.to_owned() };
    if !lock.is_on(temporary) {
        return Err(changed());
    }
    publish(temporary, target)?;
    if lock.is_on(target) { Ok(()) } else { Err(changed()) }
}

/// Syncs the directory of `path` to disk.
fn sync_parent(path: &Path) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(directory)
        .and_then(|directory| directory.sync_all())
        .at("write to disk", directory)
}

/// Publishes `target` with the bytes of the published file `source`, whose SHA-256 is `sha256`: as
/// a hard link, else as a reflink, else as a copy that is verified while it is written. Another
/// user's file is never linked.
pub(crate) fn share(
    source: &Path,
    target: &Path,
    sha256: &str,
    cancel: &Cancel,
) -> Result<Shared, FileError> {
    let directory = target.parent().unwrap_or(Path::new("/"));
    let trusted = fs::symlink_metadata(source).is_ok_and(|metadata| is_trusted(&metadata));
    if let Some(Ok(linked)) = trusted.then(|| link_in(directory, source)) {
        failpoint::reach(Point::LinkMade);
        publish_temporary(linked, target)?;
        return Ok(Shared::Linked);
    }
    let copied = new_in(directory)?;
    let expected = Digest::Sha256(sha256.to_owned());
    let from = open(source)?;
    let (found, _) = copy(from, copied.as_file(), &expected, cancel).at("copy", source)?;
    if found != expected {
        let from = source.display().to_string();
        return Err(DigestMismatch { from, expected, found, html: false }.into());
    }
    publish_temporary(copied.into_temp_path(), target)?;
    Ok(Shared::Copied)
}

/// Way in which a file was shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    /// One file has both names.
    Linked,
    /// The target is a verified copy.
    Copied,
}

fn link_in(directory: &Path, source: &Path) -> std::io::Result<TempPath> {
    let linked = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .make_in(directory, |temporary| fs::hard_link(source, temporary))?;
    Ok(linked.into_temp_path())
}

/// Creates a temporary file, which is removed unless it is published.
fn new_in(directory: &Path) -> Result<NamedTempFile, FileError> {
    tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory).at("write in", directory)
}

fn publish_temporary(mut temporary: TempPath, target: &Path) -> Result<(), FileError> {
    publish(&temporary, target)?;
    // The file has its final name now, so there is nothing left to remove. Renaming one of two
    // links to the same file onto the other does nothing, though, and leaves both: then the
    // temporary one must go.
    temporary.disable_cleanup(!temporary.exists());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::sha256_hex;

    #[test]
    fn a_shared_file_is_one_file_and_can_be_shared_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        fs::write(&one, b"bytes").expect("writes");
        for _ in 0..2 {
            share(&one, &other, &sha256_hex(b"bytes"), &Cancel::new()).expect("shares");
        }
        let inode = |path: &Path| {
            std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("is there"))
        };
        assert_eq!(inode(&one), inode(&other));
        assert_eq!(
            fs::read_dir(directory.path()).expect("reads").count(),
            2,
            "nothing is left over"
        );
        assert_eq!(fs::metadata(&other).expect("is there").permissions().mode() & 0o777, READ_ONLY);
    }
}
