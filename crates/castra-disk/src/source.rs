//! Bytes of a disk or of a part of it.

use std::io;
use std::sync::Arc;

/// Bytes that can be read and not written.
///
/// There is no operation that writes: whatever reads a disk through this cannot change it.
pub trait Source: Send + Sync {
    /// Returns the number of bytes.
    fn length(&self) -> u64;

    /// Fills the buffer with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if not all of them exist; errors of the storage.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl Source for Vec<u8> {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let bytes = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let bytes = bytes.and_then(|bytes| bytes.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Source that several owners share.
pub(crate) type Shared = Arc<dyn Source>;

/// Contiguous part of a source: a partition.
pub(crate) struct Slice {
    of: Shared,
    start: u64,
    length: u64,
}

impl Slice {
    /// Returns the part that begins at `start`, cut off at the end of the source.
    pub(crate) fn new(of: Shared, start: u64, length: u64) -> Self {
        let length = length.min(of.length().saturating_sub(start));
        Self { of, start, length }
    }
}

impl Source for Slice {
    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        check_range(self.length, offset, buffer.len())?;
        self.of.read_at(self.start + offset, buffer)
    }
}

/// Returns an error unless a read is within `length` bytes.
pub(crate) fn check_range(length: u64, offset: u64, count: usize) -> io::Result<()> {
    let end = offset.checked_add(count as u64);
    if end.is_some_and(|end| end <= length) {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Reads up to `count` bytes from `offset` on; fewer only at the end of the source.
pub(crate) fn read_up_to(source: &dyn Source, offset: u64, count: usize) -> io::Result<Vec<u8>> {
    let available = source.length().saturating_sub(offset).min(count as u64);
    let mut bytes = vec![0; available as usize];
    if available > 0 {
        source.read_at(offset, &mut bytes)?;
    }
    Ok(bytes)
}
