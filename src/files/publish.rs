//! From a finished file to one that others may rely on.
//!
//! ```text
//! temporary name on the same filesystem → fsync file → rename → fsync directory → and only then the manifest
//! ```
//!
//! Whatever is under its final name is therefore whole, even after a power cut. Published files are never written to
//! again (0444), which is what lets a project share them with the cache.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::{NamedTempFile, TempPath};

use super::digest::Digest;
use super::open as files;
use super::stamp::Stamp;
use crate::cancel::Cancel;
use crate::failpoint::{self, Point};
use crate::lock::Lock;
use crate::managed::error::{At, DigestMismatch, ImageError};

/// Mode of published files.
const READ_ONLY: u32 = 0o444;
/// Mode of what tells of this user, such as where a project is.
const PRIVATE: u32 = 0o400;
/// How the names of files in the making start.
const TEMPORARY: &str = ".new-";

/// Makes a complete file the published one: read-only, on disk, then under its name. Hands back the stamp of the file that
/// this was, which need not be the one that has the name a moment later.
pub(crate) fn publish(temporary: &Path, target: &Path) -> Result<Stamp, ImageError> {
    publish_as(READ_ONLY, temporary, target)
}

fn publish_as(mode: u32, temporary: &Path, target: &Path) -> Result<Stamp, ImageError> {
    let file = files::open(temporary)?;
    // A file that is shared has its mode already, and may be another user's.
    if file.metadata().at("look at", temporary)?.permissions().mode() & 0o777 != mode {
        file.set_permissions(fs::Permissions::from_mode(mode)).at("change the mode of", temporary)?;
    }
    file.sync_all().at("write to disk", temporary)?;
    let stamp = Stamp::of(&file.metadata().at("look at", temporary)?);
    failpoint::reach(Point::FileSynced);
    fs::rename(temporary, target).at("put in place", target)?;
    failpoint::reach(Point::FileRenamed);
    sync_parent(target)?;
    Ok(stamp)
}

/// Publishes the locked file, whose bytes were verified, and not another that has its name by now: the cache may have been
/// removed meanwhile, with the lock that guards the name, and somebody else have begun anew.
pub(crate) fn publish_locked(lock: &Lock, temporary: &Path, target: &Path) -> Result<(), ImageError> {
    let vanished = || ImageError::Vanished { path: temporary.to_owned() };
    if !lock.is_on(temporary) {
        return Err(vanished());
    }
    publish(temporary, target)?;
    if lock.is_on(target) { Ok(()) } else { Err(vanished()) }
}

/// Writes a small file so that there is either the old or the new one, whole. Only for who holds the lock on it: what an
/// interrupted castra left of it is removed.
pub(crate) fn write_published(target: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    write_as(READ_ONLY, target, bytes)
}

/// The same for what is nobody else's business.
pub(crate) fn write_privately(target: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    write_as(PRIVATE, target, bytes)
}

fn write_as(mode: u32, target: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let mut name = OsString::from(TEMPORARY);
    name.push(target.file_name().unwrap_or_default());
    name.push("-");
    let directory = target.parent().unwrap_or(Path::new("/"));
    remove_beginning_with(directory, name.as_encoded_bytes())?;
    let mut temporary =
        tempfile::Builder::new().prefix(&name).tempfile_in(directory).at("write in", directory)?;
    temporary.write_all(bytes).at("write", target)?;
    publish_temporary(mode, temporary.into_temp_path(), target)
}

/// Brings a directory's entries to the disk.
fn sync_parent(path: &Path) -> Result<(), ImageError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(directory).and_then(|directory| directory.sync_all()).at("write to disk", directory)
}

/// Publishes `target` with the bytes of the published file `source`, whose SHA-256 this is: as a hard link, else as a
/// reflink, else as a copy that is verified while it is made. Another user's file is never linked.
pub(crate) fn share(
    source: &Path,
    target: &Path,
    sha256: &str,
    cancel: &Cancel,
) -> Result<Shared, ImageError> {
    let directory = target.parent().unwrap_or(Path::new("/"));
    let trusted = fs::symlink_metadata(source).is_ok_and(|metadata| files::is_trusted(&metadata));
    if let Some(Ok(linked)) = trusted.then(|| link_in(directory, source)) {
        failpoint::reach(Point::LinkMade);
        publish_temporary(READ_ONLY, linked, target)?;
        return Ok(Shared::Linked);
    }
    let copy = new_in(directory)?;
    let expected = Digest::Sha256(sha256.to_owned());
    let from = files::open(source)?;
    let (found, _) = files::copy(from, copy.as_file(), &expected, cancel).at("copy", source)?;
    if found != expected {
        let from = source.display().to_string();
        return Err(DigestMismatch { from, expected, found, html: false }.into());
    }
    publish_temporary(READ_ONLY, copy.into_temp_path(), target)?;
    Ok(Shared::Copied)
}

/// How a file was shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    /// It is the same file under two names.
    Linked,
    /// It is a verified copy.
    Copied,
}

fn link_in(directory: &Path, source: &Path) -> std::io::Result<TempPath> {
    let linked = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .make_in(directory, |temporary| fs::hard_link(source, temporary))?;
    Ok(linked.into_temp_path())
}

/// Removes what an interrupted publication left in a directory. Only for who holds the directory's lock.
pub(crate) fn remove_unpublished(directory: &Path) -> Result<(), ImageError> {
    remove_beginning_with(directory, TEMPORARY.as_bytes())
}

fn remove_beginning_with(directory: &Path, start: &[u8]) -> Result<(), ImageError> {
    for entry in fs::read_dir(directory).at("read", directory)? {
        let path = entry.at("read", directory)?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(start)) {
            files::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A file in the making, which vanishes unless it is published.
fn new_in(directory: &Path) -> Result<NamedTempFile, ImageError> {
    tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory).at("write in", directory)
}

fn publish_temporary(mode: u32, mut temporary: TempPath, target: &Path) -> Result<(), ImageError> {
    publish_as(mode, &temporary, target)?;
    // It has its final name now, so there is nothing left to remove. Renaming one of two links to the same file onto
    // the other does nothing, though, and leaves both: that one is to go.
    temporary.disable_cleanup(!temporary.exists());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::digest::sha256_hex;

    #[test]
    fn a_shared_file_is_one_file_and_can_be_shared_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        fs::write(&one, b"bytes").expect("writes");
        for _ in 0..2 {
            share(&one, &other, &sha256_hex(b"bytes"), &Cancel::new()).expect("shares");
        }
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("is there"));
        assert_eq!(inode(&one), inode(&other));
        assert_eq!(fs::read_dir(directory.path()).expect("reads").count(), 2, "nothing is left over");
        assert_eq!(fs::metadata(&other).expect("is there").permissions().mode() & 0o777, READ_ONLY);
    }

    #[test]
    fn a_link_in_the_place_of_the_target_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let (victim, target) = (directory.path().join("victim"), directory.path().join("target"));
        fs::write(&victim, b"precious").expect("writes");
        std::os::unix::fs::symlink(&victim, &target).expect("links");
        write_published(&target, b"new").expect("writes");
        assert_eq!(fs::read(&victim).expect("reads"), b"precious");
        assert!(fs::symlink_metadata(&target).expect("is there").is_file());
    }
}
