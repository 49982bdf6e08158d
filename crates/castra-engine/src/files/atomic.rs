//! Writing small files so that a crash leaves the old or the new one.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

use super::directory::{create_private_directory, gone};
use super::error::{At, FileError};
use crate::failpoint::{self, Point};

/// Prefix of temporary files.
pub const TEMPORARY: &str = ".castra-";

/// Writes a whole file: temporary name beside it, fsync, rename, fsync of the directory, which is
/// created if it is missing. `mode` applies whatever the umask.
///
/// # Errors
/// Returns errors of any step; the old file is then untouched.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    create_private_directory(directory_of(path))?;
    let mut temporary = temporary_for(path)?;
    fill(&mut temporary, bytes, mode)?;
    put_in_place(temporary, path)
}

/// Writes a whole file as [`write_atomically`] does, into an existing directory. The caller must
/// hold a lock on this file, since the leftovers of a killed process are removed first.
pub(crate) fn write_locked(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let directory = directory_of(path);
    remove_beginning_with(&temporary_name(path), directory).at("read", directory)?;
    let mut temporary = temporary_for(path).at("write in", directory)?;
    fill(&mut temporary, bytes, mode).at("write", path)?;
    put_in_place(temporary, path).at("put in place", path)
}

/// Writes a whole file as [`write_atomically`] does, but without waiting for the disk: readers find
/// the old or the new file, and after a power failure possibly an empty one. Only for files that
/// castra can do without. The directory must exist.
///
/// # Errors
/// Returns errors of any step; the old file is then untouched.
pub fn write_lazily(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = temporary_for(path)?;
    fill(&mut temporary, bytes, mode)?;
    temporary.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the prefix of one file's temporary names.
fn temporary_name(path: &Path) -> OsString {
    let mut name = OsString::from(TEMPORARY);
    name.push(path.file_name().unwrap_or_default());
    name.push("-");
    name
}

fn temporary_for(path: &Path) -> io::Result<NamedTempFile> {
    new_temporary(&temporary_name(path), directory_of(path))
}

/// Creates a temporary file. An error of it does not name the file, of which its reader knows
/// nothing.
pub(crate) fn new_temporary(prefix: &OsStr, directory: &Path) -> io::Result<NamedTempFile> {
    let created = tempfile::Builder::new().prefix(prefix).tempfile_in(directory);
    created.map_err(|error| error.kind().into())
}

fn fill(temporary: &mut NamedTempFile, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Not by way of `NamedTempFile`, whose errors name the temporary file.
    temporary.as_file_mut().write_all(bytes)?;
    temporary.as_file().set_permissions(fs::Permissions::from_mode(mode))
}

fn put_in_place(temporary: NamedTempFile, path: &Path) -> io::Result<()> {
    temporary.as_file().sync_all()?;
    failpoint::reach(Point::StateWritten);
    temporary.persist(path).map_err(|error| error.error)?;
    failpoint::reach(Point::StateRenamed);
    File::open(directory_of(path))?.sync_all()
}

/// Marks a directory as a cache for backup programs (<https://bford.info/cachedir/>). Everything
/// works without the tag, so errors are ignored.
pub(crate) fn tag_as_cache(tag: &Path) {
    const TEXT: &[u8] =
        b"Signature: 8a477f597d28d172789f06886806bc55\n# Made by castra; it can be removed.\n";
    if directory_of(tag).is_dir() && fs::symlink_metadata(tag).is_err() {
        let _ = write_lazily(tag, TEXT, 0o600);
    }
}

/// Removes the temporary files that a killed process left in this directory. The caller must hold
/// the lock for everything that is written there.
///
/// # Errors
/// Returns errors of `readdir` and `unlink`.
pub fn remove_leftovers(directory: &Path) -> io::Result<()> {
    remove_beginning_with(OsStr::new(TEMPORARY), directory)
}

fn remove_beginning_with(start: &OsStr, directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(start.as_encoded_bytes()) {
            gone(fs::remove_file(entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/vm.json");
        write_atomically(&path, b"a longer first version", 0o600).expect("written");
        write_atomically(&path, b"second", 0o600).expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"second");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path().join("deep")).expect("listed").count(), 1);
    }

    #[test]
    fn a_link_in_the_place_of_the_file_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().expect("a directory");
        let (victim, target) = (directory.path().join("victim"), directory.path().join("target"));
        fs::write(&victim, b"precious").expect("writes");
        std::os::unix::fs::symlink(&victim, &target).expect("links");
        write_locked(&target, b"new", 0o444).expect("writes");
        assert_eq!(fs::read(&victim).expect("reads"), b"precious");
        assert!(fs::symlink_metadata(&target).expect("is there").is_file());
    }

    #[test]
    fn a_locked_write_removes_what_is_left_of_this_file_and_of_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in [".castra-one-x1", ".castra-other-x2"] {
            fs::write(directory.path().join(name), b"").expect("written");
        }
        write_locked(&directory.path().join("one"), b"new", 0o400).expect("written");
        let left = fs::read_dir(directory.path())
            .expect("listed")
            .flatten()
            .map(|entry| entry.file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, [".castra-other-x2", "one"]);
    }

    #[test]
    fn leftovers_go_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in [".castra-x1", ".castra-x2-probe", "vm.json"] {
            fs::write(directory.path().join(name), b"").expect("written");
        }
        remove_leftovers(directory.path()).expect("removed");
        let left = fs::read_dir(directory.path())
            .expect("listed")
            .flatten()
            .map(|entry| entry.file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["vm.json"]);
    }
}
