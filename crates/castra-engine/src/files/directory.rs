//! Creation of private directories, and removal of files and directories.

use std::fs::{self, DirBuilder, DirEntry};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use tempfile::TempDir;

use super::error::{At, FileError};
use crate::trusted;

/// Creates a directory and its missing parents, each with mode 0700 whatever the umask. An existing
/// directory keeps its mode.
///
/// # Errors
/// Returns errors of `mkdir`.
pub fn create_private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Creates a directory and its missing parents, private to this user.
pub(crate) fn create_directory(path: &Path) -> Result<(), FileError> {
    create_private_directory(path).at("create directory", path)
}

/// Creates a directory for this process alone, with a name that begins like `like`, and removes
/// what an interrupted castra left under such names. A castra whose lock was removed with the cache
/// loses its directory by that, but nothing gets mixed up.
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

/// Returns the entries of a directory, none if it does not exist.
pub(crate) fn entries(directory: &Path) -> Result<Vec<DirEntry>, FileError> {
    let listed = match fs::read_dir(directory) {
        Err(error) if trusted::is_absence(&error) => return Ok(Vec::new()),
        listed => listed.at("read", directory)?,
    };
    listed.map(|entry| entry.at("read", directory)).collect()
}

/// Returns the entries of a directory, as far as it can be read.
pub(crate) fn readable_entries(directory: &Path) -> impl Iterator<Item = DirEntry> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}

/// Removes a file. A missing one is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), FileError> {
    gone(fs::remove_file(path)).at("remove", path)
}

/// Removes a directory with its contents. A missing one is fine.
pub(crate) fn remove_directory(path: &Path) -> Result<(), FileError> {
    gone(fs::remove_dir_all(path)).at("remove", path)
}

/// Turns the absence of what was to be removed into a success.
///
/// # Errors
/// Returns every other error.
pub fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the name of a file that has other names, so that later writes under this name do not
/// change the file under the others. A missing file is fine.
///
/// # Errors
/// Returns errors of `lstat` and `unlink`.
pub fn part_from_other_names(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.nlink() > 1 => fs::remove_file(path),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns a path without `.` and `..`, without resolving symbolic links.
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
