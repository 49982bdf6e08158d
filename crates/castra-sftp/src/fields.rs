//! Fields that packets consist of.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::Malformed;

/// Takes a one-byte number off the front.
pub(crate) fn take_u8(bytes: &mut Bytes) -> Result<u8, Malformed> {
    bytes.try_get_u8().map_err(|_| Malformed)
}

/// Takes a four-byte number off the front.
pub(crate) fn take_u32(bytes: &mut Bytes) -> Result<u32, Malformed> {
    bytes.try_get_u32().map_err(|_| Malformed)
}

/// Takes an eight-byte number off the front.
pub(crate) fn take_u64(bytes: &mut Bytes) -> Result<u64, Malformed> {
    bytes.try_get_u64().map_err(|_| Malformed)
}

/// Takes a string off the front: its length, then that many bytes.
pub(crate) fn take_string(bytes: &mut Bytes) -> Result<Bytes, Malformed> {
    let length = take_u32(bytes)? as usize;
    if length > bytes.len() { Err(Malformed) } else { Ok(bytes.split_to(length)) }
}

/// Appends a string, preceded by its length.
pub(crate) fn put_string(packet: &mut BytesMut, string: &[u8]) {
    // A longer string does not fit into a packet, and `write_packet` refuses that.
    packet.put_u32(u32::try_from(string.len()).unwrap_or(u32::MAX));
    packet.put_slice(string);
}
