//! Digest of a memory file, most of which is a hole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::cancel::Cancel;
use crate::hex::hex;
use crate::trusted;

/// Number of bytes that are hashed or left out at a time.
const BLOCK_BYTES: usize = 64 * 1024;

/// Returns the SHA-256 over the offset and the bytes of each block that is not all zero, in order,
/// and the length. Equal files have the same digest whether their zeroes are holes or not.
///
/// # Errors
/// The file cannot be read; or [`io::ErrorKind::Interrupted`] when cancelled.
pub(super) fn digest(path: &Path, cancel: &Cancel) -> io::Result<String> {
    let file = trusted::open(path)?;
    let length = file.metadata()?.len();
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut offset = 0;
    while let Some(at) = next_data(&file, offset)?.filter(|at| *at < length) {
        cancel
            .check()
            .map_err(|interrupted| io::Error::new(io::ErrorKind::Interrupted, interrupted))?;
        let start = at - at % BLOCK_BYTES as u64;
        let size = usize::try_from(length - start).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        file.read_exact_at(&mut block[..size], start)?;
        if block[..size].iter().any(|byte| *byte != 0) {
            hasher.update(start.to_le_bytes());
            hasher.update(&block[..size]);
        }
        offset = start + size as u64;
    }
    hasher.update(length.to_le_bytes());
    Ok(hex(&hasher.finalize()))
}

/// Returns the offset of the next bytes that are not in a hole.
fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(offset)) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn holes_are_zeroes_and_every_bit_counts() {
        let directory = tempfile::tempdir().expect("a directory");
        let (sparse, full) = (directory.path().join("sparse"), directory.path().join("full"));
        let mut bytes = vec![0; 3 * BLOCK_BYTES + 100];
        bytes[BLOCK_BYTES + 5] = 1;
        File::create(&full).and_then(|mut file| file.write_all(&bytes)).expect("writes");
        let file = File::create(&sparse).expect("makes");
        file.set_len(bytes.len() as u64).expect("grows");
        file.write_all_at(&[1], BLOCK_BYTES as u64 + 5).expect("writes");
        let digest = |path: &Path| super::digest(path, &Cancel::new()).expect("hashes");
        assert_eq!(digest(&sparse), digest(&full));
        for at in [0, bytes.len() as u64 - 1] {
            let before = digest(&sparse);
            file.write_all_at(&[128], at).expect("writes");
            assert_ne!(digest(&sparse), before);
        }
    }
}
