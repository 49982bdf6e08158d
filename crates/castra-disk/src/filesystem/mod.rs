//! Filesystems behind one trait.

mod btrfs;
mod ext;
mod guarded;
mod vfat;
mod xfs;

use std::fmt;
use std::io;

pub(crate) use guarded::Guarded;

use crate::path::Inside;
use crate::signature::{Identity, Kind};
use crate::source::Shared;

/// Maximum number of entries of a directory.
pub(crate) const MAX_ENTRIES: usize = 100_000;
/// Longest target of a symbolic link, in bytes.
const MAX_LINK_BYTES: u64 = 4096;
/// Bytes of a file that are asked for at a time.
const CHUNK_BYTES: usize = 4 << 20;

/// A read-only filesystem. No operation follows symbolic links.
pub(crate) trait Filesystem {
    /// Returns kind and size of a file.
    fn stat(&mut self, path: &Inside) -> Result<Stat, Fault>;

    /// Returns the entries of a directory, without `.` and `..`.
    fn list(&mut self, path: &Inside) -> Result<Vec<Entry>, Fault>;

    /// Returns the target of a symbolic link.
    fn link(&mut self, path: &Inside) -> Result<Vec<u8>, Fault>;

    /// Opens a regular file.
    fn open<'a>(&'a mut self, path: &Inside) -> Result<Box<dyn FileReader + 'a>, Fault>;
}

/// An opened file.
pub(crate) trait FileReader {
    /// Reads up to the length of the buffer from `offset` on; 0 at the end.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, Fault>;
}

/// Kind and size of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) kind: FileKind,
    pub(crate) bytes: u64,
}

impl Stat {
    /// Refuses a symbolic link whose target is too long. Crates reserve as much as the inode
    /// claims.
    fn check_link(self) -> Result<(), Fault> {
        if self.bytes > MAX_LINK_BYTES {
            return Err(Fault::TooLarge(Limit::Bytes(MAX_LINK_BYTES)));
        }
        Ok(())
    }
}

/// Refuses a directory of more entries than permitted.
fn check_entries(count: usize) -> Result<(), Fault> {
    if count > MAX_ENTRIES {
        return Err(Fault::TooLarge(Limit::Entries(MAX_ENTRIES)));
    }
    Ok(())
}

/// Kind of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Link,
    /// Device, socket or pipe.
    Special,
}

impl FileKind {
    /// Returns the kind by the mode of an inode.
    fn of_mode(mode: u32) -> Self {
        match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Link,
            _ => Self::Special,
        }
    }
}

/// Entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name: any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// Kind, as the directory has it.
    pub kind: FileKind,
}

/// Reason for which a filesystem does not give something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// There is no such file.
    #[error("does not exist")]
    NotFound,
    /// The file is of another kind.
    #[error("is not a {0}")]
    IsNot(&'static str),
    /// The file, directory or path is larger than permitted.
    #[error("is larger than {0}")]
    TooLarge(Limit),
    /// Symbolic links refer to each other.
    #[error("is behind too many symbolic links")]
    TooManyLinks,
    /// The filesystem has features that this reader does not support.
    #[error("is in a filesystem with features that are not supported ({0})")]
    Unsupported(String),
    /// The filesystem is damaged, or the disk cannot be read.
    #[error("cannot be read: {0}")]
    Damaged(String),
}

/// Maximum of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Number of bytes of a file.
    Bytes(u64),
    /// Number of entries of a directory.
    Entries(usize),
    /// Number of bytes of a path.
    Path(usize),
    /// Number of bytes of a kernel and its initramfs together.
    KernelAndInitramfs(u64),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) if bytes % (1 << 20) == 0 => write!(f, "{} MiB", bytes >> 20),
            Self::Bytes(bytes) => write!(f, "{bytes} bytes"),
            Self::Entries(entries) => write!(f, "{entries} entries"),
            Self::Path(bytes) => write!(f, "{bytes} bytes of path"),
            Self::KernelAndInitramfs(bytes) => {
                write!(f, "{}, the limit for kernel and initramfs together", Self::Bytes(*bytes))
            }
        }
    }
}

/// Tree of files in a filesystem: most have one, btrfs has subvolumes.
pub(crate) struct Tree {
    /// Name of the subvolume; `None` for the tree that is mounted unless another one is asked for.
    pub(crate) subvolume: Option<String>,
    pub(crate) files: Guarded,
}

/// Opens all trees of a filesystem that may be a system's root, the default one first.
pub(crate) fn open(identity: &Identity, source: &Shared) -> Result<Vec<Tree>, Fault> {
    let one = |files| Ok(vec![Tree { subvolume: None, files }]);
    match identity.kind {
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => one(Guarded::open(|| ext::Ext::open(source))?),
        Kind::Xfs => one(Guarded::open(|| xfs::Xfs::open(source))?),
        Kind::Vfat => one(Guarded::open(|| vfat::Vfat::open(source))?),
        Kind::Btrfs => btrfs::open_trees(source),
    }
}

/// Returns `true` if a filesystem was not unmounted, as far as its kind records it.
pub(crate) fn needs_recovery(identity: &Identity, source: &Shared) -> io::Result<bool> {
    match identity.kind {
        Kind::Ext3 | Kind::Ext4 => ext::needs_recovery(source.as_ref()),
        Kind::Btrfs => btrfs::needs_recovery(source.as_ref()),
        Kind::Ext2 | Kind::Xfs | Kind::Vfat => Ok(false),
    }
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read(
    files: &mut dyn Filesystem,
    path: &Inside,
    limit: u64,
) -> Result<Vec<u8>, Fault> {
    let Stat { kind, bytes } = files.stat(path)?;
    if kind != FileKind::File {
        return Err(Fault::IsNot("regular file"));
    }
    if bytes > limit {
        return Err(Fault::TooLarge(Limit::Bytes(limit)));
    }
    let mut file = files.open(path)?;
    let mut content = Vec::new();
    // The memory grows with what is read: the size may be a lie.
    while (content.len() as u64) < bytes {
        let start = content.len();
        let piece = (bytes - start as u64).min(CHUNK_BYTES as u64) as usize;
        content.resize(start + piece, 0);
        fill(file.as_mut(), start, &mut content)?;
    }
    Ok(content)
}

/// Fills the content from `at` on; a read may give less than it is asked for.
fn fill(file: &mut dyn FileReader, mut at: usize, content: &mut [u8]) -> Result<(), Fault> {
    while at < content.len() {
        match file.read_at(at as u64, &mut content[at..])? {
            0 => return Err(Fault::Damaged("the file ends before its size".to_owned())),
            count => at += count,
        }
    }
    Ok(())
}
