//! Disk usage of the cache, and files with names outside it.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::files::{self, FileError, entries};
use crate::layout::{CacheLayout, ProjectLayout};

/// Files of a cache by inode: an image's disk and its download may be one file under two names.
pub(super) struct Usage {
    names: HashMap<(u64, u64), Names>,
}

/// Number of names that a file has.
#[derive(Debug, Clone, Copy)]
struct Names {
    /// Names inside the cache, without those that were taken.
    left: u64,
    /// Names outside.
    elsewhere: u64,
}

impl Usage {
    /// Counts the names of everything in the cache, and in the quarantine of a project, which is
    /// pruned with it.
    pub(super) fn of(
        cache: &CacheLayout,
        project: Option<&ProjectLayout>,
    ) -> Result<Self, FileError> {
        let mut names: HashMap<(u64, u64), Names> = HashMap::new();
        let further = project.map(ProjectLayout::quarantine);
        let own = [cache.images().root().to_owned(), cache.blobs(), cache.quarantine()];
        for directory in own.into_iter().chain(further) {
            count(&directory, &mut names)?;
        }
        Ok(Self { names })
    }

    /// Returns `true` if a file of this directory has a name outside the cache, as in a project
    /// that was moved.
    pub(super) fn has_links_elsewhere(&self, directory: &Path) -> bool {
        let files = entries(directory).unwrap_or_default();
        let metadata = files.iter().filter_map(|entry| fs::symlink_metadata(entry.path()).ok());
        let mut names = metadata.filter_map(|metadata| self.names.get(&key(&metadata)));
        names.any(|names| names.elsewhere > 0)
    }

    /// Removes a file or directory from the count, and returns the disk space in bytes that its
    /// removal frees.
    pub(super) fn take(&mut self, path: &Path) -> u64 {
        let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
        if metadata.is_dir() {
            let inside = entries(path).unwrap_or_default();
            return inside.iter().map(|entry| self.take(&entry.path())).sum();
        }
        // Files that appeared after the count are not in it.
        let names = self.names.entry(key(&metadata)).or_insert(Names { left: 1, elsewhere: 0 });
        names.left = names.left.saturating_sub(1);
        if names.left + names.elsewhere == 0 { files::allocated_bytes(&metadata) } else { 0 }
    }
}

fn count(directory: &Path, names: &mut HashMap<(u64, u64), Names>) -> Result<(), FileError> {
    for entry in entries(directory)? {
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            count(&entry.path(), names)?;
        } else {
            let unknown = Names { left: 0, elsewhere: metadata.nlink() };
            let names = names.entry(key(&metadata)).or_insert(unknown);
            names.left += 1;
            names.elsewhere = names.elsewhere.saturating_sub(1);
        }
    }
    Ok(())
}

fn key(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
