//! Opening, hashing and copying files without being led elsewhere.
//!
//! Cache and project may lie in directories that others can write to. The files Castra keeps there are therefore opened
//! with `O_NOFOLLOW` and must be regular ones; a symbolic link in their place is an error, never a way out. What is relied
//! on later must belong to this user or to root.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use tempfile::TempDir;

use super::atomic::{create_private_directory, open_regular};
use super::digest::Digest;
use super::digest::{CHUNK_BYTES, HashError, Hasher, feed};
use super::sparse::SparseWriter;
use crate::cancel::Cancel;
use crate::managed::error::{At, ImageError};
use crate::trusted;

/// Opens a regular file for reading.
pub(crate) fn open(path: &Path) -> Result<File, ImageError> {
    opened(OpenOptions::new().read(true), path)
}

/// Opens a regular file that the user named, wherever links lead: that is the user's decision.
pub(crate) fn open_followed(path: &Path) -> Result<File, ImageError> {
    match open_regular(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Err(ImageError::NotAFile { path: path.to_owned() })
        }
        opened => opened.at("open", path),
    }
}

/// Opens a regular file for reading; nothing if there is none.
pub(crate) fn open_if_there(path: &Path) -> Result<Option<File>, ImageError> {
    match open(path) {
        Ok(file) => Ok(Some(file)),
        Err(ImageError::Io { source, .. }) if trusted::is_absence(&source) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens a file of the user's for reading. Links are followed, for where they lead is the user's decision; what is not a
/// regular file in the end is refused without waiting for it, as a FIFO would make us.
pub(crate) fn open_users(path: &Path) -> Result<File, ImageError> {
    open_followed(path).map_err(|error| match error {
        ImageError::NotAFile { path } => ImageError::SourceNotAFile { path },
        other => other,
    })
}

/// Opens a regular file for reading and writing, made if need be.
pub(crate) fn open_or_create(path: &Path) -> Result<File, ImageError> {
    opened(OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600), path)
}

/// The same for bytes that will be relied on: another user's file, who could change it at any time, is replaced.
pub(crate) fn open_own_or_create(path: &Path) -> Result<File, ImageError> {
    let file = open_or_create(path)?;
    if is_trusted(&file.metadata().at("look at", path)?) {
        return Ok(file);
    }
    remove_file(path)?;
    create_new(path)
}

/// Whether nobody but this user and root can change a file behind our back.
pub(crate) fn is_trusted(metadata: &Metadata) -> bool {
    trusted::is_own(metadata)
}

/// Makes a file that must not be there yet.
pub(crate) fn create_new(path: &Path) -> Result<File, ImageError> {
    opened(OpenOptions::new().read(true).write(true).create_new(true).mode(0o600), path)
}

fn opened(options: &mut OpenOptions, path: &Path) -> Result<File, ImageError> {
    // NONBLOCK so that a FIFO that somebody put there does not hold us up; it means nothing for regular files.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let file = options.custom_flags(flags.cast_signed()).open(path).at("open", path)?;
    if !file.metadata().at("look at", path)?.is_file() {
        return Err(ImageError::NotAFile { path: path.to_owned() });
    }
    Ok(file)
}

/// Makes a directory and those above it, this user's alone.
pub(crate) fn create_directory(path: &Path) -> Result<(), ImageError> {
    create_private_directory(path).at("create directory", path)
}

/// Makes a directory that nobody else uses, with a name that begins like this one's; what an interrupted castra left under
/// such a name is removed. A castra whose lock was removed with the cache loses its own by that, and nothing gets mixed up.
pub(crate) fn fresh_directory(like: &Path) -> Result<TempDir, ImageError> {
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

/// Removes a file; that there is none is fine.
pub(crate) fn remove_file(path: &Path) -> Result<(), ImageError> {
    gone(fs::remove_file(path)).at("remove", path)
}

/// Removes a directory with all it holds; that there is none is fine.
pub(crate) fn remove_directory(path: &Path) -> Result<(), ImageError> {
    gone(fs::remove_dir_all(path)).at("remove", path)
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// SHA-256 or SHA-512 of a file, by `like`'s algorithm.
pub(crate) fn digest(path: &Path, like: &Digest, cancel: &Cancel) -> Result<Digest, ImageError> {
    let mut hasher = Hasher::like(like);
    feed(&mut hasher, open(path)?, cancel).at("read", path)?;
    Ok(hasher.finish())
}

/// SHA-256 of a file, in hexadecimal. `on_read` gets the number of bytes of each read.
pub(crate) fn sha256_watched(
    path: &Path,
    cancel: &Cancel,
    on_read: impl FnMut(usize),
) -> Result<String, ImageError> {
    let mut hasher = Hasher::sha256();
    feed(&mut hasher, Watched { inner: open(path)?, on_read }, cancel).at("read", path)?;
    Ok(hasher.finish().hex().to_owned())
}

struct Watched<R, F> {
    inner: R,
    on_read: F,
}

impl<R: Read, F: FnMut(usize)> Read for Watched<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        (self.on_read)(read);
        Ok(read)
    }
}

/// SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path, cancel: &Cancel) -> Result<String, ImageError> {
    sha256_watched(path, cancel, |_| ())
}

/// Copies a stream into an empty file, leaving holes for zeros, feeds its bytes to `hasher` and hands back their number.
/// Nothing is forced to the disk: that is for whoever publishes the file.
pub(crate) fn copy_sparse(
    mut from: impl Read,
    to: File,
    hasher: &mut Hasher,
    cancel: &Cancel,
) -> Result<u64, HashError> {
    let mut writer = SparseWriter::new(to, 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        cancel.check()?;
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&chunk[..count]);
                writer.write_all(&chunk[..count])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    writer.settle()?;
    Ok(writer.position())
}

/// Copies a whole file into a new one, sharing its blocks where the filesystem can, and hands back digest (by `like`'s
/// algorithm) and length of the copy.
pub(crate) fn copy(
    from: File,
    to: &File,
    like: &Digest,
    cancel: &Cancel,
) -> Result<(Digest, u64), HashError> {
    let mut hasher = Hasher::like(like);
    let length = if reflink(&from, to) {
        feed(&mut hasher, to, cancel)?
    } else {
        copy_sparse(from, to.try_clone()?, &mut hasher, cancel)?
    };
    Ok((hasher.finish(), length))
}

/// Lets `to` share the blocks of `from`; whether the filesystem can.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn reflink(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// Elsewhere a copy is made; APFS, where this matters, has hard links for all but other volumes.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn reflink(_from: &File, _to: &File) -> bool {
    false
}
