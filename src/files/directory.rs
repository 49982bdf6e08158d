//! Making directories that are this user's alone, and removing files and directories.

use std::fs::{self, DirBuilder, DirEntry};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use tempfile::TempDir;

use super::error::{At, FileError};
use crate::trusted;

/// Makes a directory and its missing parents, each 0700 whatever the umask. An existing directory is left as it is.
///
/// # Errors
/// Those of `mkdir`.
pub fn create_private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes a directory and those above it, this user's alone.
pub(crate) fn create_directory(path: &Path) -> Result<(), FileError> {
    create_private_directory(path).at("create directory", path)
}

/// Makes a directory that no other process uses, with a name that begins like this one's; what an interrupted castra left
/// under such a name is removed. A castra whose lock was removed with the cache loses its own by that, and nothing gets mixed up.
pub(crate) fn fresh_directory(like: &Path) -> Result<TempDir, FileError> {
    let parent = like.parent().unwrap_or(Path::new("/"));
    create_directory(parent)?;
    let prefix = like.file_name().unwrap_or_default();
    for entry in fs::read_dir(parent).at("read", parent)? {
        let entry = entry.at("read", parent)?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            remove_directory(&entry.path())?;
        }
    }
    tempfile::Builder::new().prefix(prefix).tempdir_in(parent).at("create directory", like)
}

/// Lists a directory; nothing if there is none.
pub(crate) fn entries(directory: &Path) -> Result<Vec<DirEntry>, FileError> {
    let listed = match fs::read_dir(directory) {
        Err(error) if trusted::is_absence(&error) => return Ok(Vec::new()),
        listed => listed.at("read", directory)?,
    };
    listed.map(|entry| entry.at("read", directory)).collect()
}

/// Lists a directory as far as it can be read.
pub(crate) fn readable_entries(directory: &Path) -> impl Iterator<Item = DirEntry> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}

/// Removes a file; that there is none is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), FileError> {
    gone(fs::remove_file(path)).at("remove", path)
}

/// Removes a directory with all it holds; that there is none is fine.
pub(crate) fn remove_directory(path: &Path) -> Result<(), FileError> {
    gone(fs::remove_dir_all(path)).at("remove", path)
}

/// Takes it for a success that there was nothing to remove.
///
/// # Errors
/// Every other failure to remove it.
pub fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the name of a file that has others besides, so that what is written under this name from now on changes nothing
/// under those. That there is no such file is fine.
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

/// Returns a path without `.` and `..`; symbolic links are not looked at.
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
