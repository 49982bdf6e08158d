//! Digests of whole files.

use std::io::{self, Read};
use std::path::Path;

use super::digest::{Digest, Hasher, feed};
use super::error::{At, FileError};
use super::open::open;
use crate::cancel::Cancel;

/// Hashes a file by `like`'s algorithm.
pub(crate) fn digest(path: &Path, like: &Digest, cancel: &Cancel) -> Result<Digest, FileError> {
    let mut hasher = Hasher::like(like);
    feed(&mut hasher, open(path)?, cancel).at("read", path)?;
    Ok(hasher.finish())
}

/// Returns the SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path, cancel: &Cancel) -> Result<String, FileError> {
    sha256_watched(path, cancel, |_| ())
}

/// Returns the SHA-256 of a file, in hexadecimal. `on_read` gets the number of bytes of each read.
pub(crate) fn sha256_watched(
    path: &Path,
    cancel: &Cancel,
    on_read: impl FnMut(usize),
) -> Result<String, FileError> {
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
