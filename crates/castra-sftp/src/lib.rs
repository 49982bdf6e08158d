//! SFTP version 3 (draft-ietf-secsh-filexfer-02, with OpenSSH's extensions), for both ends of
//! Castra's SSH.
//!
//! Paths, names and handles are bytes: the protocol gives them no encoding, and neither does Linux.
//! A packet is at most [`MAX_PACKET_BYTES`] long in either direction, and is read completely before
//! it is parsed, so a hostile peer costs bounded memory. Decoding copies no data: strings are
//! slices of the packet they arrived in.

mod attributes;
mod client;
mod fields;
mod packet;
mod reply;
mod request;

pub use attributes::Attributes;
pub use client::{Client, Failure, Pending};
pub use packet::{read_packet, write_packet};
pub use reply::{Code, Entry, Reply};
pub use request::{Flags, Request};

/// Protocol version that both ends speak.
pub const VERSION: u32 = 3;

/// Longest packet, in bytes without its length field. OpenSSH's own limit.
pub const MAX_PACKET_BYTES: u32 = 256 * 1024;

/// Maximum of file data in one packet, in bytes: the rest is for the fields around it.
pub const MAX_DATA_BYTES: u32 = MAX_PACKET_BYTES - 1024;

/// Error for a packet that violates the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed SFTP packet")]
pub struct Malformed;
