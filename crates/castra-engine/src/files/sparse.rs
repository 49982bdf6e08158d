//! Files whose zeros take no space on disk.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::digest::{CHUNK_BYTES, Digest, HashError, Hasher, feed};
use crate::cancel::Cancel;

/// Unit in which zeros are left out of files, the block size of the usual filesystems.
const HOLE_BYTES: usize = 4096;
const ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// Writer that leaves holes for zeros.
pub(crate) struct SparseWriter {
    file: File,
    position: u64,
}

impl SparseWriter {
    /// Creates a writer that continues `file` at `position`. The file must end there.
    pub(crate) fn new(file: File, position: u64) -> Self {
        Self { file, position }
    }

    /// Returns the length of the file, holes included.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Returns the file, which is too short if it ends in a hole, until [`Self::settle`].
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Extends the file to its full length if it ends in a hole.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.file.set_len(self.position)
    }

    /// Empties the file.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        self.position = 0;
        self.file.set_len(0)
    }

    /// Appends bytes, with one write per run of blocks that are not zero.
    pub(crate) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Bytes that are not written yet. A block of zeros ends the run: what precedes the block is
        // written, and the block itself is left out.
        let mut run = 0..0;
        while run.end < bytes.len() {
            let block = block_at(self.position + run.end as u64, &bytes[run.end..]);
            let end = run.end + block.len();
            if *block == ZEROS[..block.len()] {
                self.file.write_all_at(&bytes[run.clone()], self.position + run.start as u64)?;
                run.start = end;
            }
            run.end = end;
        }
        self.file.write_all_at(&bytes[run.clone()], self.position + run.start as u64)?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

/// Returns the first of these bytes, up to the end of the filesystem block in which they start.
fn block_at(position: u64, bytes: &[u8]) -> &[u8] {
    let into_block = usize::try_from(position % HOLE_BYTES as u64).unwrap_or(0);
    &bytes[..bytes.len().min(HOLE_BYTES - into_block)]
}

/// Copies a stream into an empty file, leaving holes for zeros, feeds its bytes to `hasher` and
/// returns their number. Syncing the file is left to its publication.
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

/// Copies a whole file into a new one, sharing its blocks where the filesystem can, and returns
/// digest (by `like`'s algorithm) and length of the copy.
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

/// Lets `to` share the blocks of `from`. Returns `true` if the filesystem can.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn reflink(from: &File, to: &File) -> bool {
    rustix::fs::ioctl_ficlone(to, from).is_ok()
}

/// Returns `false`, so that a copy is made; on APFS, where sharing matters, hard links do it for
/// all but other volumes.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn reflink(_from: &File, _to: &File) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::files::{create_new, sha256};

    #[test]
    fn zeros_become_holes_and_come_back_as_zeros() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sparse");
        let mut bytes = vec![0; 4 << 20];
        bytes[1 << 20] = 7;
        let mut hasher = Hasher::sha256();
        let file = create_new(&path).expect("is made");
        let length =
            copy_sparse(bytes.as_slice(), file, &mut hasher, &Cancel::new()).expect("copies");
        assert_eq!(length, bytes.len() as u64);
        assert!(std::fs::read(&path).expect("reads") == bytes);
        let on_disk = std::fs::metadata(&path).expect("is there").blocks() * 512;
        assert!(on_disk < 1 << 20, "{on_disk} bytes on disk");
        assert_eq!(hasher.finish().hex(), sha256(&path, &Cancel::new()).expect("reads"));
    }
}
