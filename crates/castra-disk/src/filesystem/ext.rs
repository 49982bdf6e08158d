//! ext2, ext3 and ext4, by `ext4-view`, which replays the journal in memory.

use std::error::Error;
use std::io;
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, File, FileType, Path, PathBuf};

use super::{Entry, Fault, FileKind, FileReader, Filesystem, Stat, check_entries};
use crate::fields::le32;
use crate::path::Inside;
use crate::source::{Shared, Source, read_up_to};

/// Place of the superblock.
const SUPERBLOCK: u64 = 1024;
/// Maximum number of block groups: those of 128 TiB.
const MAX_GROUPS: u64 = 1 << 20;

pub(super) struct Ext(Ext4);

impl Ext {
    pub(super) fn open(source: &Shared) -> Result<Self, Fault> {
        check_size(source)?;
        Ext4::load(Box::new(Reader(Arc::clone(source)))).map(Self).map_err(fault)
    }
}

/// Refuses a filesystem that claims to be larger than its volume, as Linux does. The crate reserves
/// memory for as many block groups as the superblock claims.
fn check_size(source: &Shared) -> Result<(), Fault> {
    let superblock = read_up_to(source.as_ref(), SUPERBLOCK, 1024);
    let superblock = superblock.map_err(|error| Fault::Damaged(error.to_string()))?;
    let number = |at| le32(&superblock, at).map_or(0, u64::from);
    let blocks = number(0x150) << 32 | number(0x4);
    let groups = blocks.checked_div(number(0x20));
    // 1 KiB is the smallest block.
    let bytes = 1024_u64.checked_shl(number(0x18) as u32).and_then(|it| it.checked_mul(blocks));
    if groups.is_some_and(|groups| groups < MAX_GROUPS)
        && bytes.is_some_and(|bytes| bytes <= source.length())
    {
        Ok(())
    } else {
        Err(Fault::Damaged("it is larger than its volume".to_owned()))
    }
}

/// Returns `true` if the journal holds changes that are not in place yet
/// (`EXT4_FEATURE_INCOMPAT_RECOVER`): the filesystem was mounted for writing when its machine
/// ended.
pub(super) fn needs_recovery(source: &dyn Source) -> io::Result<bool> {
    let superblock = read_up_to(source, SUPERBLOCK, 1024)?;
    Ok(le32(&superblock, 0x60).is_some_and(|features| features & 0x4 != 0))
}

struct Reader(Shared);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start_byte: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        Ok(self.0.read_at(start_byte, bytes)?)
    }
}

impl Filesystem for Ext {
    fn stat(&mut self, path: &Inside) -> Result<Stat, Fault> {
        let metadata = self.0.symlink_metadata(&path_of(path)?).map_err(fault)?;
        Ok(Stat { kind: kind_of(metadata.file_type()), bytes: metadata.len() })
    }

    fn list(&mut self, path: &Inside) -> Result<Vec<Entry>, Fault> {
        let mut entries = Vec::new();
        for entry in self.0.read_dir(&path_of(path)?).map_err(fault)? {
            let entry = entry.map_err(fault)?;
            let name = entry.file_name();
            if matches!(name.as_ref(), b"." | b"..") {
                continue;
            }
            check_entries(entries.len() + 1)?;
            let kind = kind_of(entry.file_type().map_err(fault)?);
            entries.push(Entry { name: name.as_ref().to_vec(), kind });
        }
        Ok(entries)
    }

    fn link(&mut self, path: &Inside) -> Result<Vec<u8>, Fault> {
        let target = self.0.read_link(&path_of(path)?).map_err(fault)?;
        Ok(<PathBuf as AsRef<[u8]>>::as_ref(&target).to_vec())
    }

    fn open<'a>(&'a mut self, path: &Inside) -> Result<Box<dyn FileReader + 'a>, Fault> {
        self.0.open(&path_of(path)?).map(|file| Box::new(file) as _).map_err(fault)
    }
}

impl FileReader for File {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        if self.position() != offset {
            self.seek_to(offset).map_err(fault)?;
        }
        self.read_bytes(buffer).map_err(fault)
    }
}

fn path_of(path: &Inside) -> Result<PathBuf, Fault> {
    let bytes = path.to_bytes();
    let path = Path::try_from(bytes.as_slice()).map_err(|_| Fault::NotFound)?;
    Ok(path.into())
}

fn kind_of(kind: FileType) -> FileKind {
    if kind.is_regular_file() {
        FileKind::File
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        FileKind::Link
    } else {
        FileKind::Special
    }
}

fn fault(error: Ext4Error) -> Fault {
    match error {
        Ext4Error::NotFound => Fault::NotFound,
        Ext4Error::NotADirectory => Fault::IsNot("directory"),
        Ext4Error::NotASymlink => Fault::IsNot("symbolic link"),
        Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => Fault::IsNot("regular file"),
        Ext4Error::Encrypted => Fault::Unsupported("encryption".to_owned()),
        Ext4Error::Incompatible(features) => Fault::Unsupported(features.to_string()),
        other => Fault::Damaged(other.to_string()),
    }
}
