//! Numbers of FUSE's protocol, from `include/uapi/linux/fuse.h`, and of Linux's system calls where
//! requests contain them. A guest is Linux on a little-endian machine, on every host.

/// Major version of the protocol.
pub(crate) const MAJOR: u32 = 7;
/// Minor version that this server speaks: nothing of later ones is used.
pub(crate) const MINOR: u32 = 38;
/// Oldest minor version of a kernel that is served: Linux 5.4.
pub(crate) const OLDEST_MINOR: u32 = 31;

/// Length of the header of a request, in bytes.
pub(crate) const REQUEST_HEADER: usize = 40;
/// Length of the header of a reply, in bytes.
pub(crate) const REPLY_HEADER: usize = 16;

/// Code of the notification with a part of a file's contents, in the place of an error.
pub(crate) const NOTIFY_STORE: i32 = 4;
/// Length of its header, in bytes.
pub(crate) const STORE_HEADER: usize = 24;

/// ID of the root directory.
pub(crate) const ROOT: u64 = 1;

/// Codes of requests.
pub(crate) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const ACCESS: u32 = 34;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const NOTIFY_REPLY: u32 = 41;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
}

/// Features that INIT negotiates.
pub(crate) mod feature {
    pub(crate) const ASYNC_READ: u32 = 1 << 0;
    pub(crate) const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub(crate) const BIG_WRITES: u32 = 1 << 5;
    pub(crate) const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u32 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub(crate) const ASYNC_DIO: u32 = 1 << 15;
    pub(crate) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(crate) const HANDLE_KILLPRIV: u32 = 1 << 19;
    pub(crate) const MAX_PAGES: u32 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u32 = 1 << 23;
    pub(crate) const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// Attributes that SETATTR changes.
pub(crate) mod change {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
}

/// Flag of GETATTR: the request names a handle.
pub(crate) const GETATTR_FH: u32 = 1;
/// Flag of WRITE: the kernel writes back a page of its cache.
pub(crate) const WRITE_CACHE: u32 = 1;
/// Flag of FSYNC: data only.
pub(crate) const FSYNC_DATA: u32 = 1;
/// Flag of the answer to OPEN: pages from earlier opens stay in the cache.
pub(crate) const FOPEN_KEEP_CACHE: u32 = 1 << 1;

/// Flags of `open`, as x86-64 and arm64 have them in common.
pub(crate) mod open {
    pub(crate) const ACCESS: u32 = 0o3;
    pub(crate) const READ_ONLY: u32 = 0o0;
    pub(crate) const WRITE_ONLY: u32 = 0o1;
    pub(crate) const READ_WRITE: u32 = 0o2;
    pub(crate) const EXCLUSIVE: u32 = 0o200;
    pub(crate) const TRUNCATE: u32 = 0o1000;
    pub(crate) const APPEND: u32 = 0o2000;
}

/// File types, as `st_mode` has them.
pub(crate) mod kind {
    pub(crate) const MASK: u32 = 0o170_000;
    pub(crate) const FIFO: u32 = 0o010_000;
    pub(crate) const DIRECTORY: u32 = 0o040_000;
    pub(crate) const REGULAR: u32 = 0o100_000;
    pub(crate) const LINK: u32 = 0o120_000;
    pub(crate) const SOCKET: u32 = 0o140_000;
}

/// Permissions that a guest can see and set: neither set-user-id nor set-group-id.
pub(crate) const PERMISSIONS: u32 = 0o1777;

/// Flags of `renameat2`.
pub(crate) mod rename {
    pub(crate) const NO_REPLACE: u32 = 1;
    pub(crate) const EXCHANGE: u32 = 2;
}

/// Modes of `fallocate`.
pub(crate) mod allocate {
    pub(crate) const KEEP_SIZE: u32 = 0x01;
    pub(crate) const PUNCH_HOLE: u32 = 0x02;
    pub(crate) const ZERO_RANGE: u32 = 0x10;
}

/// Directions of `lseek` that are answered here; the kernel handles the others.
pub(crate) mod seek {
    pub(crate) const DATA: u32 = 3;
    pub(crate) const HOLE: u32 = 4;
}
