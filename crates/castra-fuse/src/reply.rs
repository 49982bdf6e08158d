//! Replies, from attributes to bytes.

use rustix::io::Errno;

use crate::abi::{NOTIFY_STORE, PERMISSIONS, REPLY_HEADER, STORE_HEADER, kind};
use crate::directory::Owner;
use crate::platform::{Status, error_number};
use crate::request::Header;

/// Time for which the kernel may use names and attributes without asking, in seconds.
const VALID_SECS: u64 = 1;

/// A successful reply, whose header is filled in at its end.
#[derive(Debug)]
pub(crate) struct Reply(Vec<u8>);

impl Reply {
    /// Returns a reply without a body.
    pub(crate) fn empty() -> Self {
        Self::with_room(0)
    }

    /// Returns an empty reply with room for a body of this length.
    pub(crate) fn with_room(bytes: usize) -> Self {
        let mut reply = Vec::with_capacity(REPLY_HEADER + bytes);
        reply.resize(REPLY_HEADER, 0);
        Self(reply)
    }

    /// Returns a reply with a body of this length, which a function appends.
    pub(crate) fn of(bytes: usize, append: impl FnOnce(&mut Self) -> &mut Self) -> Self {
        let mut reply = Self::with_room(bytes);
        append(&mut reply);
        reply
    }

    /// Returns the bytes, to append to.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// Returns the length of the body, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.len() - REPLY_HEADER
    }

    pub(crate) fn u16(&mut self, number: u16) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(crate) fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(crate) fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    /// Appends this many bytes of zero.
    pub(crate) fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// Appends a node with its attributes.
    pub(crate) fn entry(&mut self, node: u64, attributes: &Attributes) -> &mut Self {
        self.u64(node).u64(0).u64(VALID_SECS).u64(VALID_SECS).u32(0).u32(0).attributes(attributes)
    }

    /// Appends a node with its attributes, neither of which the kernel may use again.
    pub(crate) fn passing_entry(&mut self, node: u64, attributes: &Attributes) -> &mut Self {
        self.u64(node).u64(0).u64(0).u64(0).u32(0).u32(0).attributes(attributes)
    }

    /// Appends an entry that says that there is no such file.
    pub(crate) fn no_entry(&mut self) -> &mut Self {
        self.u64(0).u64(0).u64(VALID_SECS).u64(0).u32(0).u32(0).zeros(Attributes::BYTES)
    }

    /// Appends attributes, preceded by the time for which they are valid.
    pub(crate) fn valid_attributes(&mut self, attributes: &Attributes) -> &mut Self {
        self.u64(VALID_SECS).u32(0).u32(0).attributes(attributes)
    }

    /// Appends an open handle.
    pub(crate) fn handle(&mut self, handle: u64, flags: u32) -> &mut Self {
        self.u64(handle).u32(flags).u32(0)
    }

    fn attributes(&mut self, attributes: &Attributes) -> &mut Self {
        let Attributes { inode, mode, owner, status } = attributes;
        self.u64(*inode)
            .u64(status.size)
            .u64(status.blocks)
            .u64(status.accessed.0.cast_unsigned())
            .u64(status.modified.0.cast_unsigned())
            .u64(status.changed.0.cast_unsigned())
            .u32(status.accessed.1)
            .u32(status.modified.1)
            .u32(status.changed.1)
            .u32(*mode)
            .u32(status.links)
            .u32(owner.uid)
            .u32(owner.gid)
            // Not the numbers of a device: they would mean another device in the guest.
            .u32(0)
            .u32(status.block_size)
            .u32(0)
    }

    /// Completes the reply to the request of this number.
    pub(crate) fn finish(mut self, unique: u64) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        write_header(&mut self.0, length, 0, unique);
        self.0
    }
}

/// Returns the reply for a request that has failed.
pub(crate) fn failure(errno: Errno, unique: u64) -> Vec<u8> {
    let mut reply = vec![0; REPLY_HEADER];
    write_header(&mut reply, REPLY_HEADER as u32, -error_number(errno), unique);
    reply
}

/// Returns the reply that a request failed for a reason of the host's (`EIO`); `None` if it has no
/// complete header.
pub fn refusal(request: &[u8]) -> Option<Vec<u8>> {
    Header::parse(request).map(|(header, _)| failure(Errno::IO, header.unique))
}

/// Returns the notification that puts the contents of a file into the kernel's cache.
pub(crate) fn store(node: u64, contents: &[u8]) -> Vec<u8> {
    let length = u32::try_from(contents.len()).unwrap_or(u32::MAX);
    let mut notice = Reply::with_room(STORE_HEADER + contents.len());
    notice.u64(node).u64(0).u32(length).u32(0).0.extend_from_slice(contents);
    let length = u32::try_from(notice.0.len()).unwrap_or(u32::MAX);
    // A notification answers no request.
    write_header(&mut notice.0, length, NOTIFY_STORE, 0);
    notice.0
}

fn write_header(reply: &mut [u8], length: u32, error: i32, unique: u64) {
    for (at, byte) in length
        .to_le_bytes()
        .into_iter()
        .chain(error.to_le_bytes())
        .chain(unique.to_le_bytes())
        .enumerate()
    {
        reply[at] = byte;
    }
}

/// Attributes of a file, as a guest sees them.
#[derive(Debug)]
pub(crate) struct Attributes {
    inode: u64,
    mode: u32,
    owner: Owner,
    status: Status,
}

impl Attributes {
    /// Length in a reply, in bytes.
    pub(crate) const BYTES: usize = 88;
    /// Length of an entry with attributes, in bytes.
    pub(crate) const ENTRY_BYTES: usize = 40 + Self::BYTES;

    /// Returns the attributes of a file that all guests see with this inode number and owner.
    pub(crate) fn new(inode: u64, owner: Owner, status: Status) -> Self {
        let mode = status.mode & (kind::MASK | PERMISSIONS);
        Self { inode, mode, owner, status }
    }
}
