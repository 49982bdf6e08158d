//! Files of a system by their paths, with symbolic links resolved inside it.

use std::collections::VecDeque;

use crate::budget::Metered;
use crate::filesystem::{Entry, Fault, FileKind, Guarded, Limit, Stat};
use crate::path::Inside;
use std::sync::Arc;

/// Maximum number of symbolic links on the way to a file, as in Linux (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Maximum number of components that a path may have once its links are resolved.
const MAX_COMPONENTS: usize = 4096;

/// Files of one filesystem or subvolume.
///
/// Symbolic links are followed here and not by the filesystem: `/` is the root of this tree, and
/// `..` does not lead out of it, so that no path leads to a file of the host.
pub struct FileTree {
    files: Guarded,
    meter: Arc<Metered>,
}

impl FileTree {
    pub(crate) fn new(files: Guarded, meter: Arc<Metered>) -> Self {
        Self { files, meter }
    }

    /// Reads a file of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Fault`], among others if the file does not exist, is larger or no regular file.
    pub fn read(&mut self, path: impl AsRef<[u8]>, limit: u64) -> Result<Vec<u8>, Fault> {
        self.meter.renew();
        self.read_counted(path.as_ref(), limit)
    }

    /// Lists a directory of at most 100,000 entries, in the filesystem's order.
    ///
    /// # Errors
    /// [`Fault`], among others if the directory does not exist or has more entries.
    pub fn list(&mut self, path: impl AsRef<[u8]>) -> Result<Vec<Entry>, Fault> {
        self.meter.renew();
        self.list_counted(path.as_ref())
    }

    /// Reads a file as a part of a longer operation, which shares one budget.
    pub(crate) fn read_counted(&mut self, path: &[u8], limit: u64) -> Result<Vec<u8>, Fault> {
        let (path, _) = self.resolve(path)?;
        self.files.read(&path, limit)
    }

    /// Returns `true` if a file of any kind is there, as a part of a longer operation.
    pub(crate) fn has_counted(&mut self, path: &str) -> bool {
        self.resolve(path.as_bytes()).is_ok()
    }

    /// Lists a directory as a part of a longer operation, which shares one budget.
    pub(crate) fn list_counted(&mut self, path: &[u8]) -> Result<Vec<Entry>, Fault> {
        let (path, stat) = self.resolve(path)?;
        if stat.kind != FileKind::Directory {
            return Err(Fault::IsNot("directory"));
        }
        self.files.list(&path)
    }

    /// Returns the place of a file behind all symbolic links.
    fn resolve(&mut self, path: &[u8]) -> Result<(Inside, Stat), Fault> {
        let mut at = Inside::root();
        let mut stat = Stat { kind: FileKind::Directory, bytes: 0 };
        let mut rest: VecDeque<Vec<u8>> = components(path).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == b".." {
                at = at.parent();
                stat.kind = FileKind::Directory;
                continue;
            }
            if stat.kind != FileKind::Directory {
                return Err(Fault::IsNot("directory"));
            }
            let next = at.child(&name).ok_or(Fault::NotFound)?;
            stat = self.files.stat(&next)?;
            if stat.kind != FileKind::Link {
                at = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Fault::TooManyLinks);
            }
            let target = self.files.link(&next)?;
            if target.starts_with(b"/") {
                at = Inside::root();
            }
            // The link is replaced by its target, which begins in the directory of the link.
            stat.kind = FileKind::Directory;
            for name in components(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(name);
            }
            if rest.len() > MAX_COMPONENTS {
                return Err(Fault::TooLarge(Limit::Path(MAX_COMPONENTS)));
            }
        }
        Ok((at, stat))
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let names = path.split(|byte| *byte == b'/');
    names.filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec)
}
