//! Random bytes from the system, obtained in the same way on every platform.

use std::fs::File;
use std::io::{self, Read};

/// Returns random bytes for keys and seeds.
///
/// # Errors
/// Those of reading `/dev/urandom`, which is only ever missing in a broken chroot.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
