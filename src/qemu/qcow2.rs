//! The few fields of a qcow2 header that Castra looks at on every start, without a process for it.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::error::QemuError;

/// `QFI\xfb`, docs/interop/qcow2.txt of QEMU.
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of the header's fixed part that is common to versions 2 and 3.
const FIXED_BYTES: usize = 72;
/// Longest backing file name the format allows.
const MAX_BACKING_NAME_BYTES: u32 = 1023;

/// What a qcow2 says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Header {
    /// Virtual size of the disk.
    pub virtual_bytes: u64,
    /// The backing file's name as it is written there: absolute, or relative to the qcow2's own directory.
    pub backing_file: Option<PathBuf>,
}

impl Qcow2Header {
    /// Reads the header.
    ///
    /// # Errors
    /// [`QemuError::File`] if it cannot be read, [`QemuError::NotQcow2`] if it is something else.
    pub fn read(path: &Path) -> Result<Self, QemuError> {
        let unreadable = |source| QemuError::File { action: "read", path: path.to_owned(), source };
        let refuse = |reason: &str| QemuError::NotQcow2 { path: path.to_owned(), reason: reason.to_owned() };
        let file = File::open(path).map_err(unreadable)?;
        let mut fixed = [0; FIXED_BYTES];
        file.read_exact_at(&mut fixed, 0).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => refuse("it is too short"),
            _ => unreadable(error),
        })?;
        if fixed[..4] != MAGIC {
            return Err(refuse("it does not start with the qcow2 magic"));
        }
        let (offset, length) = (big_endian_u64(&fixed[8..16]), big_endian_u32(&fixed[16..20]));
        if length > MAX_BACKING_NAME_BYTES {
            return Err(refuse("its backing file name is longer than the format allows"));
        }
        let mut name = vec![0; length as usize];
        file.read_exact_at(&mut name, offset).map_err(|_| refuse("its backing file name is cut off"))?;
        let backing_file = (offset != 0 && length != 0).then(|| std::ffi::OsString::from_vec(name).into());
        Ok(Self { virtual_bytes: big_endian_u64(&fixed[24..32]), backing_file })
    }
}

fn big_endian_u64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn big_endian_u32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}
