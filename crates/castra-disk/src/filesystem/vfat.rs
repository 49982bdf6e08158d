//! FAT, by `fatfs`. The crate can write as well; what it is given cannot.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use fatfs::{Dir, DirEntry, FileSystem, FsOptions};

use super::{Entry, Fault, FileKind, FileReader, Filesystem, MAX_ENTRIES, Stat, check_entries};
use crate::path::Inside;
use crate::source::{Shared, Source};

pub(super) struct Vfat(FileSystem<Cursor>);

impl Vfat {
    pub(super) fn open(source: &Shared) -> Result<Self, Fault> {
        let cursor = Cursor { source: Arc::clone(source), position: 0 };
        FileSystem::new(cursor, FsOptions::new()).map(Self).map_err(fault)
    }

    /// Looks a file up; `None` is the root. Names differ in more than case.
    fn find(&self, path: &Inside) -> Result<Option<DirEntry<'_, Cursor>>, Fault> {
        let Some(name) = path.name() else { return Ok(None) };
        let directory = self.directory(&path.parent())?;
        let name = std::str::from_utf8(name).map_err(|_| Fault::NotFound)?;
        for entry in directory.iter().take(MAX_ENTRIES) {
            let entry = entry.map_err(fault)?;
            if entry.file_name().eq_ignore_ascii_case(name) {
                return Ok(Some(entry));
            }
        }
        Err(Fault::NotFound)
    }

    fn directory(&self, path: &Inside) -> Result<Dir<'_, Cursor>, Fault> {
        match self.find(path)? {
            None => Ok(self.0.root_dir()),
            Some(entry) if entry.is_dir() => Ok(entry.to_dir()),
            Some(_) => Err(Fault::IsNot("directory")),
        }
    }
}

impl Filesystem for Vfat {
    fn stat(&mut self, path: &Inside) -> Result<Stat, Fault> {
        Ok(match self.find(path)? {
            Some(entry) => Stat { kind: kind_of(&entry), bytes: entry.len() },
            None => Stat { kind: FileKind::Directory, bytes: 0 },
        })
    }

    fn list(&mut self, path: &Inside) -> Result<Vec<Entry>, Fault> {
        let mut entries = Vec::new();
        for entry in self.directory(path)?.iter() {
            let entry = entry.map_err(fault)?;
            let name = entry.file_name().into_bytes();
            if matches!(name.as_slice(), b"." | b"..") {
                continue;
            }
            check_entries(entries.len() + 1)?;
            entries.push(Entry { name, kind: kind_of(&entry) });
        }
        Ok(entries)
    }

    fn link(&mut self, _path: &Inside) -> Result<Vec<u8>, Fault> {
        Err(Fault::IsNot("symbolic link"))
    }

    fn open<'a>(&'a mut self, path: &Inside) -> Result<Box<dyn FileReader + 'a>, Fault> {
        match self.find(path)? {
            Some(entry) if entry.is_file() => Ok(Box::new(OpenFile(entry.to_file()))),
            _ => Err(Fault::IsNot("regular file")),
        }
    }
}

struct OpenFile<'a>(fatfs::File<'a, Cursor>);

impl FileReader for OpenFile<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.0.seek(SeekFrom::Start(offset)).map_err(fault)?;
        self.0.read(buffer).map_err(fault)
    }
}

fn kind_of(entry: &DirEntry<'_, Cursor>) -> FileKind {
    if entry.is_dir() { FileKind::Directory } else { FileKind::File }
}

fn fault(error: io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::NotFound => Fault::NotFound,
        _ => Fault::Damaged(error.to_string()),
    }
}

/// Position in a source, as the crate expects its disk.
struct Cursor {
    source: Shared,
    position: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.source.length().saturating_sub(self.position);
        let count = available.min(buffer.len() as u64) as usize;
        self.source.read_at(self.position, &mut buffer[..count])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.source.length().checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl Write for Cursor {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
