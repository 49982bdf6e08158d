//! Opening of files without following links.
//!
//! Cache and project may lie in directories that others can write to. The files that Castra keeps
//! there are therefore opened with `O_NOFOLLOW` and must be regular files; a symbolic link in their
//! place is an error and never followed. Files that are trusted later must belong to this user or
//! to root.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use super::directory::remove_file;
use super::error::{At, FileError};
use crate::trusted;

/// Opens a regular file for reading, following links. A FIFO, which would wait for its other end,
/// and a device, which may have no end, are refused without waiting.
///
/// # Errors
/// Returns errors of [`OpenOptions::open`], and [`io::ErrorKind::InvalidInput`] for anything but a
/// regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    // Checked before the open, which alone has effects on some devices, and after it, since the
    // file may have been replaced.
    if !fs::metadata(path)?.is_file() {
        return Err(refused());
    }
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused()) }
}

/// Reads a regular file as [`open_regular`] opens it; `None` if it is longer than `limit` bytes.
///
/// # Errors
/// Those of [`open_regular`] and of reading.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// Opens a regular file for reading.
pub(crate) fn open(path: &Path) -> Result<File, FileError> {
    opened(OpenOptions::new().read(true), path)
}

/// Opens a regular file that the user named. Links are followed, since they are the user's own
/// choice.
pub(crate) fn open_followed(path: &Path) -> Result<File, FileError> {
    match open_regular(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Err(FileError::NotAFile { path: path.to_owned() })
        }
        opened => opened.at("open", path),
    }
}

/// Opens a regular file for reading, or returns `None` if it does not exist.
pub(crate) fn open_if_there(path: &Path) -> Result<Option<File>, FileError> {
    match open(path) {
        Ok(file) => Ok(Some(file)),
        Err(FileError::Io { source, .. }) if trusted::is_absence(&source) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a regular file for reading and writing, and creates it if needed.
pub(crate) fn open_or_create(path: &Path) -> Result<File, FileError> {
    opened(OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600), path)
}

/// Opens a file for bytes that will be trusted, and creates it if needed. A file of another user,
/// who could change it at any time, is replaced.
pub(crate) fn open_own_or_create(path: &Path) -> Result<File, FileError> {
    let file = open_or_create(path)?;
    if is_trusted(&file.metadata().at("look at", path)?) {
        return Ok(file);
    }
    remove_file(path)?;
    create_new(path)
}

/// Returns `true` if only this user and root can change the file.
pub(crate) fn is_trusted(metadata: &Metadata) -> bool {
    trusted::is_own(metadata)
}

/// Creates a file, which must not exist.
pub(crate) fn create_new(path: &Path) -> Result<File, FileError> {
    opened(OpenOptions::new().read(true).write(true).create_new(true).mode(0o600), path)
}

fn opened(options: &mut OpenOptions, path: &Path) -> Result<File, FileError> {
    // NONBLOCK, so that a FIFO does not block; the flag means nothing for regular files.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = options.custom_flags(flags.cast_signed()).open(path).at("open", path)?;
    if !file.metadata().at("look at", path)?.is_file() {
        return Err(FileError::NotAFile { path: path.to_owned() });
    }
    Ok(file)
}

/// Creates a file with mode 0600, whatever the umask.
///
/// # Errors
/// Returns errors of `open`; the file must not exist.
pub fn create_private(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}
