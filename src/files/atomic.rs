//! Writing files so that a crash leaves the old or the new one, and directories that are this user's alone.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use tempfile::NamedTempFile;

use crate::failpoint::{self, Point};

/// Opens a regular file for reading, wherever links lead. A FIFO, which would wait for its other end, and a device, which may
/// have no end, are refused without a wait.
///
/// # Errors
/// As [`OpenOptions::open`]; [`io::ErrorKind::InvalidInput`] for what is no regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    // Looked at before, for the open alone does something to some devices, and after, for it may be another by then.
    if !fs::metadata(path)?.is_file() {
        return Err(refused());
    }
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
}

/// How the names of files in the making start.
pub const TEMPORARY: &str = ".castra-";

/// Writes a whole file: temporary name beside it, fsync, rename, fsync of the directory, which is made if it is missing.
/// `mode` holds whatever the umask.
///
/// # Errors
/// Those of any step; the old file is then untouched.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_private_directory(directory)?;
    let temporary = write_beside(directory, bytes, mode)?;
    temporary.as_file().sync_all()?;
    failpoint::reach(Point::StateWritten);
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// The same without waiting for the disk: whoever reads finds the old or the new file, but for a power failure, which may
/// leave an empty one. For what can be done without. The directory is there.
///
/// # Errors
/// Those of any step; the old file is then untouched.
pub fn write_lazily(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_beside(path.parent().unwrap_or(Path::new(".")), bytes, mode)?;
    temporary.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn write_beside(directory: &Path, bytes: &[u8], mode: u32) -> io::Result<NamedTempFile> {
    let mut temporary = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory)?;
    temporary.write_all(bytes)?;
    temporary.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(temporary)
}

/// Tells programs that make backups that a directory is a cache (<https://bford.info/cachedir/>). Without it everything works
/// all the same.
pub(crate) fn tag_as_cache(tag: &Path) {
    const TEXT: &[u8] =
        b"Signature: 8a477f597d28d172789f06886806bc55\n# Made by castra; it can be removed.\n";
    if let (Some(directory), Err(_)) =
        (tag.parent().filter(|directory| directory.is_dir()), fs::symlink_metadata(tag))
    {
        let _ = write_beside(directory, TEXT, 0o600).map(|temporary| temporary.persist(tag));
    }
}

/// Removes what a process that was killed left of the files it was making in this directory. Only for who holds the lock
/// on all that is made there.
///
/// # Errors
/// Those of `readdir` and `unlink`.
pub fn remove_leftovers(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes a file that is not there yet, 0600 whatever the umask.
///
/// # Errors
/// Those of `open`.
pub fn create_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Removes the name of a file that has others besides, so that what is written under this name from now on changes nothing under
/// those. One that is not there is fine.
///
/// # Errors
/// Those of `lstat` and `unlink`.
pub fn part_from_other_names(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.nlink() > 1 => fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a directory and its missing parents, each 0700 whatever the umask. An existing directory is left as it is.
///
/// # Errors
/// Those of `mkdir`.
pub fn create_private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A path without `.` and `..`; symbolic links are not looked at.
pub fn normalise(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
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
    fn leftovers_go_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in [".castra-x1", ".castra-x2-probe", "vm.json"] {
            fs::write(directory.path().join(name), b"").expect("written");
        }
        remove_leftovers(directory.path()).expect("removed");
        let left = fs::read_dir(directory.path()).expect("listed").flatten().map(|entry| entry.file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["vm.json"]);
    }
}
