//! XFS, by `lamxfs`, which replays the log in memory.

use std::io;
use std::sync::Arc;

use lamxfs::{BlockRead, EntryKind, Error, Inode, Path, SuperblockReason};

use super::{Entry, Fault, FileKind, FileReader, Filesystem, Limit, Stat, check_entries};
use crate::path::Inside;
use crate::source::Shared;

pub(super) struct Xfs(lamxfs::Xfs<Reader>);

impl Xfs {
    pub(super) fn open(source: &Shared) -> Result<Self, Fault> {
        let reader = Reader(Arc::clone(source));
        lamxfs::Xfs::open(reader, source.length()).map(Self).map_err(fault)
    }
}

struct Reader(Shared);

impl BlockRead for Reader {
    type Error = io::Error;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

impl Filesystem for Xfs {
    fn stat(&mut self, path: &Inside) -> Result<Stat, Fault> {
        let inode = self.0.resolve(Path::new(&path.to_bytes())).map_err(fault)?;
        let metadata = self.0.metadata(&inode).map_err(fault)?;
        Ok(Stat { kind: FileKind::of_mode(metadata.mode()), bytes: metadata.size() })
    }

    fn list(&mut self, path: &Inside) -> Result<Vec<Entry>, Fault> {
        let entries = self.0.read_dir(Path::new(&path.to_bytes())).map_err(fault)?;
        check_entries(entries.len())?;
        let entries = entries.into_iter().map(|entry| {
            let kind = match entry.kind {
                EntryKind::Regular => FileKind::File,
                EntryKind::Directory => FileKind::Directory,
                EntryKind::Symlink => FileKind::Link,
                EntryKind::Other => FileKind::Special,
            };
            Entry { name: entry.name, kind }
        });
        Ok(entries.collect())
    }

    fn link(&mut self, path: &Inside) -> Result<Vec<u8>, Fault> {
        self.stat(path)?.check_link()?;
        self.0.read_link(Path::new(&path.to_bytes())).map_err(fault)
    }

    fn open<'a>(&'a mut self, path: &Inside) -> Result<Box<dyn FileReader + 'a>, Fault> {
        let inode = self.0.resolve(Path::new(&path.to_bytes())).map_err(fault)?;
        Ok(Box::new(OpenFile { filesystem: &mut self.0, inode }))
    }
}

struct OpenFile<'a> {
    filesystem: &'a mut lamxfs::Xfs<Reader>,
    inode: Inode,
}

impl FileReader for OpenFile<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.filesystem.read_file_at(&self.inode, offset, buffer).map_err(fault)
    }
}

fn fault(error: Error) -> Fault {
    use SuperblockReason::{DirtyLog, ExternalLog, RealtimeDevice, UnsupportedVersion};
    match error {
        Error::NotFound { .. } => Fault::NotFound,
        Error::NotARegularFile => Fault::IsNot("regular file"),
        Error::NotASymlink => Fault::IsNot("symbolic link"),
        Error::FileTooLarge { max, .. } => Fault::TooLarge(Limit::Bytes(max)),
        Error::UnsupportedFeature(feature) => Fault::Unsupported(feature.to_owned()),
        Error::BadSuperblock(DirtyLog | ExternalLog | RealtimeDevice | UnsupportedVersion) => {
            Fault::Unsupported(error.token().to_owned())
        }
        other => Fault::Damaged(other.token().to_owned()),
    }
}
