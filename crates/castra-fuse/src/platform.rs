//! System calls that Linux has and others do not, or not in this form. A port to another host
//! replaces this module.

pub(crate) mod inotify;

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags,
    SeekFrom, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    makedev, statx,
};
use rustix::io::{Errno, ReadWriteFlags};

use crate::abi::{PERMISSIONS, kind};
use crate::directory::Writable;
use crate::request::{Made, Opening, Replacing, Sought};

/// Identity of a file: a name that leads to the same is the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Type, as `st_mode` has it.
    pub(crate) kind: u32,
    /// Time of birth in seconds and nanoseconds: filesystems reuse inode numbers.
    pub(crate) born: (i64, u32),
}

/// Status of a file. Times are seconds and nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Status {
    pub(crate) identity: Identity,
    pub(crate) mode: u32,
    pub(crate) links: u32,
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) block_size: u32,
    pub(crate) accessed: (i64, u32),
    pub(crate) modified: (i64, u32),
    pub(crate) changed: (i64, u32),
}

impl Status {
    /// Returns the type of the file, as `st_mode` has it.
    pub(crate) fn kind(&self) -> u32 {
        self.identity.kind
    }
}

/// Change of a time of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    Unchanged,
    Now,
    At { seconds: i64, nanoseconds: u32 },
}

/// Returns Linux's number of an error.
pub(crate) fn error_number(errno: Errno) -> i32 {
    errno.raw_os_error()
}

/// Opens the directory to serve.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Returns `true` if the times of birth on a filesystem are those of its inodes. Those that are
/// made of others report what may change.
pub(crate) fn has_births(root: &OwnedFd) -> Result<bool, Errno> {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const TMPFS: u64 = 0x0102_1994;
    const F2FS: u64 = 0xf2f5_2010;
    let kind = rustix::fs::fstatfs(root)?.f_type;
    #[allow(clippy::cast_sign_loss, reason = "a magic number, signed on some machines")]
    Ok([EXT, XFS, BTRFS, TMPFS, F2FS].contains(&(kind as u64)))
}

/// Way to open a path below a directory so that nothing leads out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walk {
    /// The kernel's own (`openat2`), since Linux 5.6.
    Beneath,
    /// One component at a time.
    Components,
}

/// Longest path that is given to the kernel at once, in bytes.
const MAX_PATH: usize = 4000;

impl Walk {
    /// Returns the best way that the kernel has, as seen from an open directory. Sandboxes refuse
    /// `openat2` with an error of their choice.
    pub(crate) fn of_kernel(root: &OwnedFd) -> Result<Self, Errno> {
        Self::Beneath
            .open(root, b"")
            .map(|_| Self::Beneath)
            .or_else(|_| Self::Components.open(root, b"").map(|_| Self::Components))
    }

    /// Opens what is at a path below the root, as a reference. Links are not followed: a link at
    /// the end is what is opened, and elsewhere an error.
    pub(crate) fn open(self, root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let mut opened: Option<OwnedFd> = None;
        let mut rest = path;
        loop {
            let (step, after) = self.step(rest);
            let is_last = after.is_empty();
            let from = opened.as_ref().unwrap_or(root);
            let next = self.open_step(from, step, is_last)?;
            if is_last {
                return Ok(next);
            }
            opened = Some(next);
            rest = after;
        }
    }

    /// Splits a path after what is opened in one step.
    fn step(self, path: &[u8]) -> (&[u8], &[u8]) {
        let end = match self {
            Self::Beneath if path.len() <= MAX_PATH => None,
            Self::Beneath => path[..MAX_PATH].iter().rposition(|byte| *byte == b'/'),
            Self::Components => path.iter().position(|byte| *byte == b'/'),
        };
        end.map_or((path, &[]), |end| (&path[..end], &path[end + 1..]))
    }

    fn open_step(self, from: &OwnedFd, step: &[u8], is_last: bool) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if !is_last {
            flags |= OFlags::DIRECTORY;
        }
        match self {
            Self::Beneath => {
                let resolve =
                    ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                rustix::fs::openat2(from, step, flags, Mode::empty(), resolve)
            }
            Self::Components => rustix::fs::openat(from, step, flags, Mode::empty()),
        }
    }
}

/// Returns the status of an open file.
pub(crate) fn status(fd: &OwnedFd) -> Result<Status, Errno> {
    stat(fd, b"", AtFlags::EMPTY_PATH)
}

/// Returns the status of a file in a directory. A link is not followed.
pub(crate) fn status_in(directory: &OwnedFd, name: &[u8]) -> Result<Status, Errno> {
    stat(directory, name, AtFlags::empty())
}

fn stat(fd: &OwnedFd, name: &[u8], flags: AtFlags) -> Result<Status, Errno> {
    let flags = flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let statx = statx(fd, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    Ok(of_statx(&statx))
}

fn of_statx(statx: &Statx) -> Status {
    let time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
    let has_birth = statx.stx_mask & StatxFlags::BTIME.bits() != 0;
    Status {
        identity: Identity {
            device: makedev(statx.stx_dev_major, statx.stx_dev_minor),
            inode: statx.stx_ino,
            kind: u32::from(statx.stx_mode) & kind::MASK,
            born: if has_birth { time(statx.stx_btime) } else { (0, 0) },
        },
        mode: statx.stx_mode.into(),
        links: statx.stx_nlink,
        size: statx.stx_size,
        blocks: statx.stx_blocks,
        block_size: statx.stx_blksize,
        accessed: time(statx.stx_atime),
        modified: time(statx.stx_mtime),
        changed: time(statx.stx_ctime),
    }
}

/// Returns a path to an open file, which leads to that very file, also if it is a link or has no
/// name any more.
fn path_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens a referenced file, which must have been checked to be a regular one.
pub(crate) fn open_file(
    reference: &OwnedFd,
    opening: Opening,
    permission: Option<Writable>,
) -> Result<OwnedFd, Errno> {
    if opening.changes() && permission.is_none() {
        return Err(Errno::ROFS);
    }
    let flags =
        access_flags(opening) | if opening.truncate { OFlags::TRUNC } else { OFlags::empty() };
    rustix::fs::open(path_of(reference), flags, Mode::empty())
}

/// Opens a referenced directory for listing.
pub(crate) fn open_directory(reference: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(reference, ".", flags, Mode::empty())
}

/// Creates and opens a regular file, which must not exist.
pub(crate) fn create_file(
    directory: &OwnedFd,
    name: &[u8],
    opening: Opening,
    mode: u32,
    _: Writable,
) -> Result<OwnedFd, Errno> {
    let flags = access_flags(opening) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode & PERMISSIONS))
}

fn access_flags(opening: Opening) -> OFlags {
    let access = match (opening.read, opening.write) {
        (_, false) => OFlags::RDONLY,
        (false, true) => OFlags::WRONLY,
        (true, true) => OFlags::RDWR,
    };
    access | OFlags::CLOEXEC | OFlags::NOCTTY
}

/// Opens a file in a directory as a reference. A link is not followed.
pub(crate) fn reference_in(directory: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    Walk::Components.open(directory, name)
}

/// Makes a node without content.
pub(crate) fn make_node(
    directory: &OwnedFd,
    name: &[u8],
    made: Made,
    mode: u32,
    _: Writable,
) -> Result<(), Errno> {
    let kind = match made {
        Made::Regular => FileType::RegularFile,
        Made::Fifo => FileType::Fifo,
        Made::Socket => FileType::Socket,
    };
    rustix::fs::mknodat(directory, name, kind, Mode::from_raw_mode(mode & PERMISSIONS), 0)
}

/// Makes a directory.
pub(crate) fn make_directory(
    directory: &OwnedFd,
    name: &[u8],
    mode: u32,
    _: Writable,
) -> Result<(), Errno> {
    rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(mode & PERMISSIONS))
}

/// Makes a symbolic link.
pub(crate) fn make_link(
    directory: &OwnedFd,
    name: &[u8],
    target: &[u8],
    _: Writable,
) -> Result<(), Errno> {
    rustix::fs::symlinkat(target, directory, name)
}

/// Removes a name, or an empty directory.
pub(crate) fn unlink(
    directory: &OwnedFd,
    name: &[u8],
    is_directory: bool,
    _: Writable,
) -> Result<(), Errno> {
    let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    rustix::fs::unlinkat(directory, name, flags)
}

/// Sets the length of an open file.
pub(crate) fn truncate(fd: &OwnedFd, size: u64, _: Writable) -> Result<(), Errno> {
    rustix::fs::ftruncate(fd, size)
}

/// Sets the permissions of a referenced file. A directory keeps its set-group-id, by which the host
/// passes on groups.
pub(crate) fn set_mode(fd: &OwnedFd, status: &Status, mode: u32, _: Writable) -> Result<(), Errno> {
    if status.kind() == kind::LINK {
        return Err(Errno::OPNOTSUPP);
    }
    let kept = if status.kind() == kind::DIRECTORY { status.mode & 0o2000 } else { 0 };
    let mode = Mode::from_raw_mode(mode & PERMISSIONS | kept);
    rustix::fs::chmodat(CWD, path_of(fd), mode, AtFlags::empty())
}

/// Sets the times of a referenced file.
pub(crate) fn set_times(
    fd: &OwnedFd,
    accessed: Time,
    modified: Time,
    _: Writable,
) -> Result<(), Errno> {
    let timespec = |time| match time {
        Time::Unchanged => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Time::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Time::At { seconds, nanoseconds } => {
            Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() }
        }
    };
    let times =
        Timestamps { last_access: timespec(accessed), last_modification: timespec(modified) };
    rustix::fs::utimensat(CWD, path_of(fd), &times, AtFlags::empty())
}

/// Gives a referenced file another name.
pub(crate) fn link(
    fd: &OwnedFd,
    directory: &OwnedFd,
    name: &[u8],
    _: Writable,
) -> Result<(), Errno> {
    rustix::fs::linkat(CWD, path_of(fd), directory, name, AtFlags::SYMLINK_FOLLOW)
}

/// Renames a file.
pub(crate) fn rename(
    from: (&OwnedFd, &[u8]),
    to: (&OwnedFd, &[u8]),
    replacing: Replacing,
    _: Writable,
) -> Result<(), Errno> {
    let flags = match replacing {
        Replacing::Allowed => return rustix::fs::renameat(from.0, from.1, to.0, to.1),
        Replacing::Refused => RenameFlags::NOREPLACE,
        Replacing::Exchange => RenameFlags::EXCHANGE,
    };
    rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags)
}

/// Checks the rights of this process to a referenced file, as `access` takes them.
pub(crate) fn access(fd: &OwnedFd, mask: u32) -> Result<(), Errno> {
    let wanted = rustix::fs::Access::from_bits(mask & 0o7).ok_or(Errno::INVAL)?;
    rustix::fs::accessat(CWD, path_of(fd), wanted, AtFlags::empty())
}

/// Writes at an offset, or at the end of the file as it is now.
pub(crate) fn write(
    fd: &OwnedFd,
    data: &[u8],
    offset: u64,
    append: bool,
    _: Writable,
) -> Result<usize, Errno> {
    if append {
        let data = [std::io::IoSlice::new(data)];
        return rustix::io::pwritev2(fd, &data, offset, ReadWriteFlags::APPEND);
    }
    rustix::io::pwrite(fd, data, offset)
}

/// Allocates, zeroes or frees a range of a file.
pub(crate) fn allocate(
    fd: &OwnedFd,
    mode: u32,
    offset: u64,
    length: u64,
    _: Writable,
) -> Result<(), Errno> {
    let mode = FallocateFlags::from_bits_retain(mode);
    rustix::fs::fallocate(fd, mode, offset, length)
}

/// Finds the next data or hole of a file.
pub(crate) fn seek(fd: &OwnedFd, offset: u64, sought: Sought) -> Result<u64, Errno> {
    let from = match sought {
        Sought::Data => SeekFrom::Data(offset),
        Sought::Hole => SeekFrom::Hole(offset),
    };
    rustix::fs::seek(fd, from)
}

/// Copies a range from file to file, without it passing through this process.
pub(crate) fn copy(
    from: (&OwnedFd, u64),
    to: (&OwnedFd, u64),
    length: usize,
    _: Writable,
) -> Result<usize, Errno> {
    let (mut from_offset, mut to_offset) = (from.1, to.1);
    rustix::fs::copy_file_range(from.0, Some(&mut from_offset), to.0, Some(&mut to_offset), length)
}

/// An entry of a directory.
#[derive(Debug)]
pub(crate) struct Listed<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: u64,
    /// Type, as the upper four bits of `st_mode` have it; zero if it is not known.
    pub(crate) kind: u32,
    /// Position behind the entry.
    pub(crate) next: u64,
}

/// Lists a directory from a position, until `each` returns `false`.
pub(crate) fn list(
    directory: impl AsFd,
    from: u64,
    mut each: impl FnMut(Listed<'_>) -> bool,
) -> Result<(), Errno> {
    const BUFFER: usize = 32 * 1024;
    let directory = directory.as_fd();
    rustix::fs::seek(directory, SeekFrom::Start(from))?;
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let listed = Listed {
            name: entry.file_name().to_bytes(),
            inode: entry.ino(),
            kind: match entry.file_type() {
                FileType::Unknown => 0,
                kind => kind.as_raw_mode() >> 12,
            },
            next: entry.next_entry_cookie(),
        };
        if !each(listed) {
            break;
        }
    }
    Ok(())
}

/// Returns a random number.
fn random() -> Result<u32, Errno> {
    let mut bytes = [0_u8; 4];
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if count == bytes.len() { Ok(u32::from_ne_bytes(bytes)) } else { Err(Errno::IO) }
}

/// Returns the number of descriptors that this process may have open.
pub(crate) fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Returns a number that another server is unlikely to have: random, or else the time.
pub(crate) fn epoch() -> u32 {
    random().unwrap_or_else(|_| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(0, |since| since.subsec_nanos())
    })
}
