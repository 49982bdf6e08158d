//! Requests, from bytes to operations.

use rustix::io::Errno;

use crate::abi::{
    FSYNC_DATA, GETATTR_FH, REQUEST_HEADER, WRITE_CACHE, change, kind, opcode, open, rename, seek,
};
use crate::fields::Fields;
use crate::platform::Time;

/// Header of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    /// Length of the request, in bytes, with this header.
    pub(crate) length: u32,
    /// Code of the operation.
    pub(crate) opcode: u32,
    /// Number of the request, which its reply repeats.
    pub(crate) unique: u64,
    /// ID of the node that the operation is about.
    pub(crate) node: u64,
    /// User of the process that made the request. The kernel's own have zero.
    pub(crate) user: u32,
    /// Group of that process.
    pub(crate) group: u32,
}

impl Header {
    /// Parses a request's header, and returns it with the rest. `None` if there is none.
    pub(crate) fn parse(request: &[u8]) -> Option<(Self, &[u8])> {
        let (header, body) = request.split_at_checked(REQUEST_HEADER)?;
        let mut fields = Fields(header);
        let mut number = || fields.u32().ok();
        let (length, opcode) = (number()?, number()?);
        let (unique, node) = (fields.u64().ok()?, fields.u64().ok()?);
        let (user, group) = (fields.u32().ok()?, fields.u32().ok()?);
        Some((Self { length, opcode, unique, node, user, group }, body))
    }

    /// Returns `true` if the kernel waits for a reply.
    pub(crate) fn wants_reply(&self) -> bool {
        !matches!(
            self.opcode,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT | opcode::NOTIFY_REPLY
        )
    }
}

/// Rights with which a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) truncate: bool,
}

impl Opening {
    fn of_flags(flags: u32) -> Result<Self, Errno> {
        let (read, write) = match flags & open::ACCESS {
            open::READ_ONLY => (true, false),
            open::WRITE_ONLY => (false, true),
            open::READ_WRITE => (true, true),
            _ => return Err(Errno::INVAL),
        };
        Ok(Self { read, write, truncate: flags & open::TRUNCATE != 0 })
    }

    /// Returns `true` if the file may be changed by it.
    pub(crate) fn changes(self) -> bool {
        self.write || self.truncate
    }
}

/// Attributes to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) handle: Option<u64>,
    pub(crate) mode: Option<u32>,
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) accessed: Time,
    pub(crate) modified: Time,
}

/// Type of a node that MKNOD makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    Regular,
    Fifo,
    Socket,
}

/// Replacement of the target of a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replacing {
    Allowed,
    Refused,
    Exchange,
}

/// Content to seek to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sought {
    Data,
    Hole,
}

/// Place in an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) node: u64,
    pub(crate) handle: u64,
    pub(crate) offset: u64,
}

/// An operation on the node that the header names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Initialize { major: u32, minor: u32, features: u32 },
    Destroy,
    Lookup { name: &'a [u8] },
    GetAttributes { handle: Option<u64> },
    SetAttributes(Changes),
    ReadLink,
    SymbolicLink { name: &'a [u8], target: &'a [u8] },
    MakeNode { name: &'a [u8], made: Made, mode: u32 },
    MakeDirectory { name: &'a [u8], mode: u32 },
    Unlink { name: &'a [u8] },
    RemoveDirectory { name: &'a [u8] },
    Rename { name: &'a [u8], new_parent: u64, new_name: &'a [u8], replacing: Replacing },
    Link { file: u64, name: &'a [u8] },
    Open(Opening),
    Create { name: &'a [u8], opening: Opening, exclusive: bool, mode: u32 },
    Read { handle: u64, offset: u64, size: u32 },
    Write { handle: u64, offset: u64, append: bool, data: &'a [u8] },
    Statistics,
    Release { handle: u64 },
    Sync { handle: u64, data_only: bool },
    OpenDirectory,
    ReadDirectory { handle: u64, offset: u64, size: u32, with_attributes: bool },
    Access { mask: u32 },
    Allocate { handle: u64, offset: u64, length: u64, mode: u32 },
    Seek { handle: u64, offset: u64, sought: Sought },
    Copy { from: Position, to: Position, length: u64 },
}

impl<'a> Operation<'a> {
    /// Parses the body of a request that wants a reply.
    ///
    /// # Errors
    /// `ENOSYS` for operations that are not served, which Linux then does without, and `EINVAL` for
    /// bodies that are too short, too long or make no sense.
    pub(crate) fn parse(header: &Header, body: &'a [u8]) -> Result<Self, Errno> {
        let mut fields = Fields(body);
        let operation = match header.opcode {
            opcode::INIT => return initialize(fields),
            opcode::DESTROY => return Ok(Self::Destroy),
            opcode::READLINK => Self::ReadLink,
            opcode::STATFS => Self::Statistics,
            opcode::LOOKUP
            | opcode::SYMLINK
            | opcode::MKNOD
            | opcode::MKDIR
            | opcode::UNLINK
            | opcode::RMDIR
            | opcode::RENAME
            | opcode::RENAME2
            | opcode::LINK
            | opcode::CREATE => names(header.opcode, &mut fields)?,
            opcode::GETATTR | opcode::SETATTR | opcode::ACCESS => {
                attributes(header.opcode, &mut fields)?
            }
            _ => handles(header, &mut fields)?,
        };
        fields.end()?;
        Ok(operation)
    }
}

fn initialize(mut fields: Fields<'_>) -> Result<Operation<'_>, Errno> {
    // Kernels send more fields, which belong to features that are not wanted.
    let (major, minor) = (fields.u32()?, fields.u32()?);
    let _read_ahead = fields.u32()?;
    Ok(Operation::Initialize { major, minor, features: fields.u32()? })
}

fn names<'a>(code: u32, fields: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match code {
        opcode::LOOKUP => Operation::Lookup { name: fields.name()? },
        opcode::SYMLINK => {
            Operation::SymbolicLink { name: fields.name()?, target: fields.target()? }
        }
        opcode::MKNOD => {
            let [mode, _rdev, _umask, _padding] =
                [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
            let made = match mode & kind::MASK {
                kind::REGULAR => Made::Regular,
                kind::FIFO => Made::Fifo,
                kind::SOCKET => Made::Socket,
                _ => return Err(Errno::PERM),
            };
            Operation::MakeNode { name: fields.name()?, made, mode }
        }
        opcode::MKDIR => {
            let [mode, _umask] = [fields.u32()?, fields.u32()?];
            Operation::MakeDirectory { name: fields.name()?, mode }
        }
        opcode::UNLINK => Operation::Unlink { name: fields.name()? },
        opcode::RMDIR => Operation::RemoveDirectory { name: fields.name()? },
        opcode::LINK => Operation::Link { file: fields.u64()?, name: fields.name()? },
        opcode::CREATE => {
            let [flags, mode, _umask, _open_flags] =
                [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
            Operation::Create {
                name: fields.name()?,
                opening: Opening::of_flags(flags)?,
                exclusive: flags & open::EXCLUSIVE != 0,
                mode,
            }
        }
        _ => {
            let new_parent = fields.u64()?;
            let mut flags = 0;
            if code == opcode::RENAME2 {
                flags = fields.u32()?;
                fields.u32()?;
            }
            let replacing = match flags {
                0 => Replacing::Allowed,
                rename::NO_REPLACE => Replacing::Refused,
                rename::EXCHANGE => Replacing::Exchange,
                _ => return Err(Errno::INVAL),
            };
            let (name, new_name) = (fields.name()?, fields.name()?);
            Operation::Rename { name, new_parent, new_name, replacing }
        }
    })
}

fn attributes<'a>(code: u32, fields: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match code {
        opcode::GETATTR => {
            let [flags, _dummy] = [fields.u32()?, fields.u32()?];
            let handle = fields.u64()?;
            Operation::GetAttributes { handle: (flags & GETATTR_FH != 0).then_some(handle) }
        }
        opcode::ACCESS => {
            let [mask, _padding] = [fields.u32()?, fields.u32()?];
            Operation::Access { mask }
        }
        _ => Operation::SetAttributes(changes(fields)?),
    })
}

fn changes(fields: &mut Fields<'_>) -> Result<Changes, Errno> {
    let [valid, _padding] = [fields.u32()?, fields.u32()?];
    let [handle, size, _lock_owner] = [fields.u64()?, fields.u64()?, fields.u64()?];
    let [atime, mtime, _ctime] = [fields.u64()?, fields.u64()?, fields.u64()?];
    let [atime_ns, mtime_ns, _ctime_ns] = [fields.u32()?, fields.u32()?, fields.u32()?];
    let [mode, _unused, user, group, _unused_too] =
        [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
    let given = |flag: u32| valid & flag != 0;
    let time = |is_set, is_now, seconds: u64, nanoseconds| match (given(is_set), given(is_now)) {
        (_, true) => Ok(Time::Now),
        (false, false) => Ok(Time::Unchanged),
        (true, false) if nanoseconds < 1_000_000_000 => {
            Ok(Time::At { seconds: seconds.cast_signed(), nanoseconds })
        }
        (true, false) => Err(Errno::INVAL),
    };
    Ok(Changes {
        handle: given(change::FH).then_some(handle),
        mode: given(change::MODE).then_some(mode),
        user: given(change::UID).then_some(user),
        group: given(change::GID).then_some(group),
        size: given(change::SIZE).then_some(size),
        accessed: time(change::ATIME, change::ATIME_NOW, atime, atime_ns)?,
        modified: time(change::MTIME, change::MTIME_NOW, mtime, mtime_ns)?,
    })
}

fn handles<'a>(header: &Header, fields: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match header.opcode {
        opcode::OPEN | opcode::OPENDIR => {
            let [flags, _open_flags] = [fields.u32()?, fields.u32()?];
            if header.opcode == opcode::OPENDIR {
                Operation::OpenDirectory
            } else {
                Operation::Open(Opening::of_flags(flags)?)
            }
        }
        opcode::READ | opcode::READDIR | opcode::READDIRPLUS => {
            let [handle, offset] = [fields.u64()?, fields.u64()?];
            let size = fields.u32()?;
            fields.bytes(20)?;
            match header.opcode {
                opcode::READ => Operation::Read { handle, offset, size },
                code => {
                    let with_attributes = code == opcode::READDIRPLUS;
                    Operation::ReadDirectory { handle, offset, size, with_attributes }
                }
            }
        }
        opcode::WRITE => {
            let [handle, offset] = [fields.u64()?, fields.u64()?];
            let [size, write_flags] = [fields.u32()?, fields.u32()?];
            let [_lock_owner] = [fields.u64()?];
            let [flags, _padding] = [fields.u32()?, fields.u32()?];
            let append = flags & open::APPEND != 0 && write_flags & WRITE_CACHE == 0;
            Operation::Write { handle, offset, append, data: fields.bytes(size as usize)? }
        }
        opcode::RELEASE | opcode::RELEASEDIR => {
            let handle = fields.u64()?;
            fields.bytes(16)?;
            Operation::Release { handle }
        }
        opcode::FSYNC | opcode::FSYNCDIR => {
            let handle = fields.u64()?;
            let [flags, _padding] = [fields.u32()?, fields.u32()?];
            Operation::Sync { handle, data_only: flags & FSYNC_DATA != 0 }
        }
        opcode::FALLOCATE => {
            let [handle, offset, length] = [fields.u64()?, fields.u64()?, fields.u64()?];
            let [mode, _padding] = [fields.u32()?, fields.u32()?];
            Operation::Allocate { handle, offset, length, mode }
        }
        opcode::LSEEK => {
            let [handle, offset] = [fields.u64()?, fields.u64()?];
            let [whence, _padding] = [fields.u32()?, fields.u32()?];
            let sought = match whence {
                seek::DATA => Sought::Data,
                seek::HOLE => Sought::Hole,
                _ => return Err(Errno::INVAL),
            };
            Operation::Seek { handle, offset, sought }
        }
        opcode::COPY_FILE_RANGE => {
            let [handle, offset] = [fields.u64()?, fields.u64()?];
            let from = Position { node: header.node, handle, offset };
            let [node, handle, offset] = [fields.u64()?, fields.u64()?, fields.u64()?];
            let to = Position { node, handle, offset };
            let [length, flags] = [fields.u64()?, fields.u64()?];
            if flags != 0 {
                return Err(Errno::INVAL);
            }
            Operation::Copy { from, to, length }
        }
        _ => return Err(Errno::NOSYS),
    })
}

/// Returns the nodes that a FORGET or BATCH_FORGET drops, with the number of look-ups of each.
pub(crate) fn forgotten(header: &Header, body: &[u8]) -> Vec<(u64, u64)> {
    let mut fields = Fields(body);
    if header.opcode == opcode::FORGET {
        return fields.u64().map(|lookups| (header.node, lookups)).into_iter().collect();
    }
    let (Ok(count), Ok(_dummy)) = (fields.u32(), fields.u32()) else { return Vec::new() };
    // Each takes 16 bytes, so that a large count ends with the request.
    (0..count).map_while(|_| Some((fields.u64().ok()?, fields.u64().ok()?))).collect()
}
