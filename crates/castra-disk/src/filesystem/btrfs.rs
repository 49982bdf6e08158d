//! Btrfs, by `lambutter`.

use std::io;
use std::sync::Arc;

use lambutter::{BlockRead, Error, Inode, Path};

use super::{Entry, Fault, FileKind, FileReader, Filesystem, Guarded, Stat, Tree, check_entries};
use crate::fields::le64;
use crate::path::Inside;
use crate::source::{Shared, Source, read_up_to};

/// Number of the top level, which contains all subvolumes.
const TOP_LEVEL: u64 = 5;
/// Subvolumes in which distributions have the root, which are tried first: those of Debian's and
/// openSUSE's installers, of Fedora's, and of Debian's newer one.
const ROOTS: [&str; 3] = ["@", "root", "@rootfs"];
/// Maximum number of subvolumes that are tried.
const MAX_SUBVOLUMES: usize = 16;
/// Type of a directory's entry, as in `include/uapi/linux/btrfs_tree.h`.
mod entry_type {
    pub(super) const FILE: u8 = 1;
    pub(super) const DIRECTORY: u8 = 2;
    pub(super) const LINK: u8 = 7;
}

/// Position of the superblock, in bytes, and of the root of the log tree in it (`struct
/// btrfs_super_block`).
const SUPERBLOCK: u64 = 0x1_0000;
const LOG_ROOT: usize = 0x60;

/// Returns `true` if there is a log tree: files were synced that no transaction has yet, and the
/// machine ended.
pub(super) fn needs_recovery(source: &dyn Source) -> io::Result<bool> {
    let superblock = read_up_to(source, SUPERBLOCK, 4096)?;
    Ok(le64(&superblock, LOG_ROOT).is_some_and(|root| root != 0))
}

/// Opens the default subvolume, and all others that the top level shows, each once.
pub(super) fn open_trees(source: &Shared) -> Result<Vec<Tree>, Fault> {
    let mut default_number = TOP_LEVEL;
    let default = Guarded::open(|| {
        let opened = Btrfs::open(source, None)?;
        default_number = opened.0.subvolume();
        Ok(opened)
    })?;
    let mut found = Vec::new();
    let top = Guarded::open(|| {
        let mut top = Btrfs::open(source, Some("/"))?;
        found = top.subvolumes()?;
        Ok(top)
    })?;
    found
        .sort_by_key(|(name, _)| ROOTS.iter().position(|root| root == name).unwrap_or(ROOTS.len()));
    let mut trees = vec![Tree { subvolume: None, files: default }];
    for (name, number) in found.into_iter().take(MAX_SUBVOLUMES) {
        if number != default_number {
            let files = Guarded::open(|| Btrfs::open(source, Some(&format!("/{name}"))))?;
            trees.push(Tree { subvolume: Some(name), files });
        }
    }
    // Paths of GRUB begin here.
    if default_number != TOP_LEVEL {
        trees.push(Tree { subvolume: Some("/".to_owned()), files: top });
    }
    Ok(trees)
}

struct Btrfs(lambutter::Btrfs<Reader>);

impl Btrfs {
    fn open(source: &Shared, path: Option<&str>) -> Result<Self, Fault> {
        let (reader, length) = (Reader(Arc::clone(source)), source.length());
        let opened = match path {
            None => lambutter::Btrfs::open(reader, length),
            Some(path) => lambutter::Btrfs::open_subvol_path(reader, length, Path::from(path)),
        };
        opened.map(Self).map_err(fault)
    }

    /// Returns names and numbers of the subvolumes in the root directory.
    fn subvolumes(&mut self) -> Result<Vec<(String, u64)>, Fault> {
        let own = self.0.subvolume();
        let entries = self.0.read_dir(Path::from("/")).map_err(fault)?;
        let subvolume = |entry: lambutter::DirEntry| {
            let name = String::from_utf8(entry.name).ok()?;
            Some((name, entry.inode.subvolume())).filter(|(_, number)| *number != own)
        };
        Ok(entries.into_iter().filter_map(subvolume).collect())
    }

    fn resolve(&mut self, path: &Inside) -> Result<Inode, Fault> {
        let bytes = path.to_bytes();
        self.0.resolve(Path::new(&bytes).ok_or(Fault::NotFound)?).map_err(fault)
    }
}

struct Reader(Shared);

impl BlockRead for Reader {
    type Error = io::Error;

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }
}

impl Filesystem for Btrfs {
    fn stat(&mut self, path: &Inside) -> Result<Stat, Fault> {
        let inode = self.resolve(path)?;
        let metadata = self.0.metadata(&inode).map_err(fault)?;
        Ok(Stat { kind: FileKind::of_mode(metadata.mode), bytes: metadata.size })
    }

    fn list(&mut self, path: &Inside) -> Result<Vec<Entry>, Fault> {
        let bytes = path.to_bytes();
        let entries = self.0.read_dir(Path::new(&bytes).ok_or(Fault::NotFound)?);
        let entries = entries.map_err(fault)?;
        check_entries(entries.len())?;
        let entries = entries.into_iter().map(|entry| {
            let kind = match entry.kind_byte {
                entry_type::FILE => FileKind::File,
                entry_type::DIRECTORY => FileKind::Directory,
                entry_type::LINK => FileKind::Link,
                _ => FileKind::Special,
            };
            Entry { name: entry.name, kind }
        });
        Ok(entries.collect())
    }

    fn link(&mut self, path: &Inside) -> Result<Vec<u8>, Fault> {
        self.stat(path)?.check_link()?;
        let bytes = path.to_bytes();
        self.0.read_link(Path::new(&bytes).ok_or(Fault::NotFound)?).map_err(fault)
    }

    fn open<'a>(&'a mut self, path: &Inside) -> Result<Box<dyn FileReader + 'a>, Fault> {
        let inode = self.resolve(path)?;
        Ok(Box::new(OpenFile { filesystem: &mut self.0, inode }))
    }
}

struct OpenFile<'a> {
    filesystem: &'a mut lambutter::Btrfs<Reader>,
    inode: Inode,
}

impl FileReader for OpenFile<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, Fault> {
        self.filesystem.read_file_at(&self.inode, offset, buffer).map_err(fault)
    }
}

fn fault(error: Error) -> Fault {
    match error {
        Error::NotFound => Fault::NotFound,
        Error::NotARegularFile => Fault::IsNot("regular file"),
        Error::NotASymlink => Fault::IsNot("symbolic link"),
        Error::NotASubvolume => Fault::IsNot("subvolume"),
        Error::UnsupportedFeature(feature)
        | Error::UnsupportedProfile(feature)
        | Error::UnsupportedChecksum(feature) => Fault::Unsupported(feature.to_owned()),
        other => Fault::Damaged(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_tree_is_to_be_recovered() {
        let mut disk = vec![0; 0x1_1000];
        assert!(!needs_recovery(&disk).expect("read"));
        disk[0x1_0000 + LOG_ROOT + 2] = 1;
        assert!(needs_recovery(&disk).expect("read"));
    }
}
