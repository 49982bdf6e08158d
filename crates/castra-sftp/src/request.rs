use bytes::{BufMut as _, Bytes, BytesMut};

use crate::fields::{put_string, take_string, take_u8, take_u32, take_u64};
use crate::{Attributes, Malformed};

pub(crate) const INIT: u8 = 1;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const LSTAT: u8 = 7;
const FSTAT: u8 = 8;
const SETSTAT: u8 = 9;
const FSETSTAT: u8 = 10;
const OPENDIR: u8 = 11;
const READDIR: u8 = 12;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const RMDIR: u8 = 15;
const REALPATH: u8 = 16;
const STAT: u8 = 17;
const RENAME: u8 = 18;
const READLINK: u8 = 19;
const SYMLINK: u8 = 20;
const EXTENDED: u8 = 200;

/// Flags of an open request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    /// Opens for reading.
    pub const READ: Self = Self(0x01);
    /// Opens for writing.
    pub const WRITE: Self = Self(0x02);
    /// Appends to the file.
    pub const APPEND: Self = Self(0x04);
    /// Creates the file if it does not exist.
    pub const CREATE: Self = Self(0x08);
    /// Truncates the file.
    pub const TRUNCATE: Self = Self(0x10);
    /// Fails if the file exists.
    pub const EXCLUSIVE: Self = Self(0x20);

    /// Returns `true` if all flags of `other` are set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the union of both sets of flags.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A client's request. Each has a number, which its reply repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are the protocol's")]
pub enum Request {
    /// Opens a file.
    Open { path: Bytes, flags: Flags, attributes: Attributes },
    /// Closes a file or directory.
    Close { handle: Bytes },
    /// Reads from a file.
    Read { handle: Bytes, offset: u64, length: u32 },
    /// Writes to a file.
    Write { handle: Bytes, offset: u64, data: Bytes },
    /// Returns the attributes of a path, without following a link.
    Lstat { path: Bytes },
    /// Returns the attributes of an open file.
    Fstat { handle: Bytes },
    /// Changes the attributes of the file at a path.
    Setstat { path: Bytes, attributes: Attributes },
    /// Changes the attributes of an open file.
    Fsetstat { handle: Bytes, attributes: Attributes },
    /// Opens a directory.
    Opendir { path: Bytes },
    /// Returns the next entries of a directory.
    Readdir { handle: Bytes },
    /// Removes a file.
    Remove { path: Bytes },
    /// Creates a directory.
    Mkdir { path: Bytes, attributes: Attributes },
    /// Removes a directory.
    Rmdir { path: Bytes },
    /// Returns the absolute path, with all links resolved.
    Realpath { path: Bytes },
    /// Returns the attributes of a path, following links.
    Stat { path: Bytes },
    /// Renames a file, unless the new name exists.
    Rename { from: Bytes, to: Bytes },
    /// Returns the target of a symbolic link.
    Readlink { path: Bytes },
    /// Creates a symbolic link. OpenSSH sends the target first, against the draft, and everyone
    /// follows OpenSSH.
    Symlink { target: Bytes, link: Bytes },
    /// Renames a file, replacing an existing one: `posix-rename@openssh.com`.
    PosixRename { from: Bytes, to: Bytes },
    /// Creates a hard link: `hardlink@openssh.com`.
    Hardlink { from: Bytes, to: Bytes },
    /// Flushes a file to the disk: `fsync@openssh.com`.
    Fsync { handle: Bytes },
    /// Returns the space of a filesystem: `statvfs@openssh.com`.
    Statvfs { path: Bytes },
    /// Returns the server's limits: `limits@openssh.com`.
    Limits,
    /// A request that Castra does not know.
    Unknown,
}

impl Request {
    /// Returns the packet of a session's first message.
    pub fn init() -> Bytes {
        let mut packet = BytesMut::new();
        packet.put_u8(INIT);
        packet.put_u32(crate::VERSION);
        packet.freeze()
    }

    /// Parses a session's first message and returns the client's version.
    ///
    /// # Errors
    /// The packet is of another kind or malformed.
    pub fn parse_init(mut packet: Bytes) -> Result<u32, Malformed> {
        if take_u8(&mut packet)? == INIT { take_u32(&mut packet) } else { Err(Malformed) }
    }

    /// Parses a packet into a request and its number.
    ///
    /// # Errors
    /// The packet has no kind and number, or is truncated. The number is returned if it is known.
    pub fn parse(mut packet: Bytes) -> Result<(u32, Self), Option<u32>> {
        let kind = take_u8(&mut packet).map_err(|_| None)?;
        let id = take_u32(&mut packet).map_err(|_| None)?;
        Self::parse_body(kind, &mut packet).map(|request| (id, request)).map_err(|_| Some(id))
    }

    fn parse_body(kind: u8, body: &mut Bytes) -> Result<Self, Malformed> {
        Ok(match kind {
            OPEN => Self::Open {
                path: take_string(body)?,
                flags: Flags(take_u32(body)?),
                attributes: Attributes::take(body)?,
            },
            CLOSE => Self::Close { handle: take_string(body)? },
            READ => Self::Read {
                handle: take_string(body)?,
                offset: take_u64(body)?,
                length: take_u32(body)?,
            },
            WRITE => Self::Write {
                handle: take_string(body)?,
                offset: take_u64(body)?,
                data: take_string(body)?,
            },
            LSTAT => Self::Lstat { path: take_string(body)? },
            FSTAT => Self::Fstat { handle: take_string(body)? },
            SETSTAT => {
                Self::Setstat { path: take_string(body)?, attributes: Attributes::take(body)? }
            }
            FSETSTAT => {
                Self::Fsetstat { handle: take_string(body)?, attributes: Attributes::take(body)? }
            }
            OPENDIR => Self::Opendir { path: take_string(body)? },
            READDIR => Self::Readdir { handle: take_string(body)? },
            REMOVE => Self::Remove { path: take_string(body)? },
            MKDIR => Self::Mkdir { path: take_string(body)?, attributes: Attributes::take(body)? },
            RMDIR => Self::Rmdir { path: take_string(body)? },
            REALPATH => Self::Realpath { path: take_string(body)? },
            STAT => Self::Stat { path: take_string(body)? },
            RENAME => Self::Rename { from: take_string(body)?, to: take_string(body)? },
            READLINK => Self::Readlink { path: take_string(body)? },
            SYMLINK => Self::Symlink { target: take_string(body)?, link: take_string(body)? },
            EXTENDED => Self::parse_extended(body)?,
            _ => Self::Unknown,
        })
    }

    fn parse_extended(body: &mut Bytes) -> Result<Self, Malformed> {
        Ok(match &take_string(body)?[..] {
            b"posix-rename@openssh.com" => {
                Self::PosixRename { from: take_string(body)?, to: take_string(body)? }
            }
            b"hardlink@openssh.com" => {
                Self::Hardlink { from: take_string(body)?, to: take_string(body)? }
            }
            b"fsync@openssh.com" => Self::Fsync { handle: take_string(body)? },
            b"statvfs@openssh.com" => Self::Statvfs { path: take_string(body)? },
            b"limits@openssh.com" => Self::Limits,
            _ => Self::Unknown,
        })
    }

    /// Returns the packet for this request with number `id`.
    pub fn encode(&self, id: u32) -> Bytes {
        let mut packet = BytesMut::new();
        match self {
            Self::Write { handle, offset, data } => {
                packet.reserve(32 + handle.len() + data.len());
                begin(&mut packet, WRITE, id, handle);
                packet.put_u64(*offset);
                put_string(&mut packet, data);
            }
            Self::Open { path, flags, attributes } => {
                begin(&mut packet, OPEN, id, path);
                packet.put_u32(flags.0);
                attributes.put(&mut packet);
            }
            Self::Read { handle, offset, length } => {
                begin(&mut packet, READ, id, handle);
                packet.put_u64(*offset);
                packet.put_u32(*length);
            }
            Self::Setstat { path, attributes } => with(&mut packet, SETSTAT, id, path, attributes),
            Self::Fsetstat { handle, attributes } => {
                with(&mut packet, FSETSTAT, id, handle, attributes)
            }
            Self::Mkdir { path, attributes } => with(&mut packet, MKDIR, id, path, attributes),
            Self::Close { handle } => begin(&mut packet, CLOSE, id, handle),
            Self::Fstat { handle } => begin(&mut packet, FSTAT, id, handle),
            Self::Readdir { handle } => begin(&mut packet, READDIR, id, handle),
            Self::Lstat { path } => begin(&mut packet, LSTAT, id, path),
            Self::Opendir { path } => begin(&mut packet, OPENDIR, id, path),
            Self::Remove { path } => begin(&mut packet, REMOVE, id, path),
            Self::Rmdir { path } => begin(&mut packet, RMDIR, id, path),
            Self::Realpath { path } => begin(&mut packet, REALPATH, id, path),
            Self::Stat { path } => begin(&mut packet, STAT, id, path),
            Self::Readlink { path } => begin(&mut packet, READLINK, id, path),
            Self::Rename { from, to } => pair(&mut packet, RENAME, id, from, to),
            Self::Symlink { target, link } => pair(&mut packet, SYMLINK, id, target, link),
            Self::PosixRename { from, to } => {
                pair(&mut packet, EXTENDED, id, b"posix-rename@openssh.com", from);
                put_string(&mut packet, to);
            }
            Self::Hardlink { from, to } => {
                pair(&mut packet, EXTENDED, id, b"hardlink@openssh.com", from);
                put_string(&mut packet, to);
            }
            Self::Fsync { handle } => pair(&mut packet, EXTENDED, id, b"fsync@openssh.com", handle),
            Self::Statvfs { path } => pair(&mut packet, EXTENDED, id, b"statvfs@openssh.com", path),
            Self::Limits => begin(&mut packet, EXTENDED, id, b"limits@openssh.com"),
            Self::Unknown => begin(&mut packet, EXTENDED, id, b""),
        }
        packet.freeze()
    }
}

fn begin(packet: &mut BytesMut, kind: u8, id: u32, string: &[u8]) {
    packet.put_u8(kind);
    packet.put_u32(id);
    put_string(packet, string);
}

fn with(packet: &mut BytesMut, kind: u8, id: u32, string: &[u8], attributes: &Attributes) {
    begin(packet, kind, id, string);
    attributes.put(packet);
}

fn pair(packet: &mut BytesMut, kind: u8, id: u32, first: &[u8], second: &[u8]) {
    begin(packet, kind, id, first);
    put_string(packet, second);
}
