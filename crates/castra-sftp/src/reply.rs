use bytes::{BufMut as _, Bytes, BytesMut};

use crate::fields::{put_string, take_string, take_u8, take_u32};
use crate::{Attributes, Malformed};

const VERSION: u8 = 2;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
const EXTENDED_REPLY: u8 = 201;

/// Status code of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// Success.
    pub const OK: Self = Self(0);
    /// End of a file or directory.
    pub const EOF: Self = Self(1);
    /// No such file.
    pub const NO_SUCH_FILE: Self = Self(2);
    /// Permission denied.
    pub const PERMISSION_DENIED: Self = Self(3);
    /// Any other failure.
    pub const FAILURE: Self = Self(4);
    /// The packet violates the protocol.
    pub const BAD_MESSAGE: Self = Self(5);
    /// The server does not support the request.
    pub const UNSUPPORTED: Self = Self(8);
}

/// An entry of a directory, or the path that answers a request for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name or path.
    pub name: Bytes,
    /// A line as `ls -l` prints it.
    pub line: Bytes,
    /// Attributes of the file, as far as they are known.
    pub attributes: Attributes,
}

/// A server's answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A status with a message.
    Status(Code, Bytes),
    /// An open file or directory.
    Handle(Bytes),
    /// Bytes of a file.
    Data(Bytes),
    /// Entries or paths.
    Names(Vec<Entry>),
    /// Attributes of a file.
    Attributes(Attributes),
    /// Answer to an extended request.
    Extended(Bytes),
}

impl Reply {
    /// Returns the packet that answers a session's first message, with the names and versions of
    /// extensions.
    pub fn version(extensions: &[(&str, &str)]) -> Bytes {
        let mut packet = BytesMut::new();
        packet.put_u8(VERSION);
        packet.put_u32(crate::VERSION);
        for (name, version) in extensions {
            put_string(&mut packet, name.as_bytes());
            put_string(&mut packet, version.as_bytes());
        }
        packet.freeze()
    }

    /// Parses the answer to a session's first message and returns the server's version.
    ///
    /// # Errors
    /// The packet is of another kind or malformed.
    pub fn parse_version(mut packet: Bytes) -> Result<u32, Malformed> {
        if take_u8(&mut packet)? == VERSION { take_u32(&mut packet) } else { Err(Malformed) }
    }

    /// Parses a packet into a reply and the number of its request.
    ///
    /// # Errors
    /// The packet violates the protocol.
    pub fn parse(mut packet: Bytes) -> Result<(u32, Self), Malformed> {
        let kind = take_u8(&mut packet)?;
        let id = take_u32(&mut packet)?;
        let body = &mut packet;
        let reply = match kind {
            STATUS => {
                let code = Code(take_u32(body)?);
                // Old servers send no message.
                Self::Status(code, take_string(body).unwrap_or_default())
            }
            HANDLE => Self::Handle(take_string(body)?),
            DATA => Self::Data(take_string(body)?),
            NAME => {
                let count = take_u32(body)?;
                // Collected while it is read: the count alone reserves no memory.
                let mut entries = Vec::new();
                for _ in 0..count {
                    entries.push(Entry {
                        name: take_string(body)?,
                        line: take_string(body)?,
                        attributes: Attributes::take(body)?,
                    });
                }
                Self::Names(entries)
            }
            ATTRS => Self::Attributes(Attributes::take(body)?),
            EXTENDED_REPLY => Self::Extended(packet),
            _ => return Err(Malformed),
        };
        Ok((id, reply))
    }

    /// Returns the packet for this reply to request `id`.
    pub fn encode(&self, id: u32) -> Bytes {
        let mut packet = BytesMut::new();
        let mut begin = |kind: u8, room: usize| {
            packet.reserve(room + 16);
            packet.put_u8(kind);
            packet.put_u32(id);
        };
        match self {
            Self::Status(code, words) => {
                begin(STATUS, words.len() + 8);
                packet.put_u32(code.0);
                put_string(&mut packet, words);
                put_string(&mut packet, b"en");
            }
            Self::Handle(handle) => {
                begin(HANDLE, handle.len());
                put_string(&mut packet, handle);
            }
            Self::Data(data) => {
                begin(DATA, data.len());
                put_string(&mut packet, data);
            }
            Self::Names(entries) => {
                begin(NAME, 0);
                packet.put_u32(u32::try_from(entries.len()).unwrap_or(u32::MAX));
                for entry in entries {
                    put_string(&mut packet, &entry.name);
                    put_string(&mut packet, &entry.line);
                    entry.attributes.put(&mut packet);
                }
            }
            Self::Attributes(attributes) => {
                begin(ATTRS, 32);
                attributes.put(&mut packet);
            }
            Self::Extended(data) => {
                begin(EXTENDED_REPLY, data.len());
                packet.put_slice(data);
            }
        }
        packet.freeze()
    }
}
