//! Names and tokens that cannot be guessed.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Characters of a sandbox's name: those of a host name.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Length of a sandbox's name: 100 bits.
const NAME_CHARACTERS: usize = 20;

/// Bytes of a token.
const TOKEN_BYTES: usize = 20;

/// Returns a new name for a sandbox.
///
/// # Errors
/// The kernel has no random bytes.
pub(crate) fn name() -> io::Result<String> {
    let bytes: [u8; NAME_CHARACTERS] = bytes()?;
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}

/// Returns a new token, in hexadecimal digits.
///
/// # Errors
/// The kernel has no random bytes.
pub(crate) fn token() -> io::Result<String> {
    let bytes: [u8; TOKEN_BYTES] = bytes()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty())?;
    }
    Ok(bytes)
}
