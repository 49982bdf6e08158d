//! The mark of a state root: a random ID, and a MAC over it that only this user's key can produce.
//! The mark does not contain the path of the state root, which may therefore be moved and copied.

use std::io;
use std::path::Path;

use super::error::StateRootError;
use super::key::Key;
use crate::files;
use crate::hex::hex;
use crate::host::random_bytes;
use crate::trusted;

/// First line of a mark, part of the signed text.
const HEADING: &str = "castra state root 1";
/// Largest mark, in bytes.
const MAX_BYTES: u64 = 1024;

/// Result of looking for a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// There is no mark.
    None,
    /// A mark signed with this user's key.
    Own,
    /// Any other file.
    Foreign,
}

/// Reads a mark. `key` is called only if there is one.
pub(super) fn read(
    path: &Path,
    key: impl FnOnce() -> Result<Option<Key>, StateRootError>,
) -> Result<Found, StateRootError> {
    let bytes = match trusted::read(path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if trusted::is_absence(&error) => return Ok(Found::None),
        Err(source) => return Err(StateRootError::Refused { path: path.to_owned(), source }),
    };
    let Some((text, mac)) = parse(&bytes) else { return Ok(Found::Foreign) };
    let is_own = key()?.is_some_and(|key| key.verifies(text, &mac));
    Ok(if is_own { Found::Own } else { Found::Foreign })
}

/// Splits a mark into the signed lines and the MAC.
fn parse(bytes: &[u8]) -> Option<(&[u8], [u8; 32])> {
    let text = std::str::from_utf8(bytes).ok()?;
    let at = text.find("mac ")?;
    let (signed, last) = text.split_at(at);
    let id = signed.strip_prefix(HEADING)?.strip_prefix("\nid ")?.strip_suffix('\n')?;
    let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let digits = last.strip_prefix("mac ")?.strip_suffix('\n')?;
    let mac = from_hex(digits)?;
    is_id.then_some((signed.as_bytes(), mac))
}

fn from_hex(digits: &str) -> Option<[u8; 32]> {
    if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Writes a mark with a new ID.
pub(super) fn write(path: &Path, key: &Key) -> io::Result<()> {
    let id = hex(&random_bytes::<16>()?);
    let signed = format!("{HEADING}\nid {id}\n");
    let mac = hex(&key.sign(signed.as_bytes()));
    files::write_atomically(path, format!("{signed}mac {mac}\n").as_bytes(), 0o600)
}
