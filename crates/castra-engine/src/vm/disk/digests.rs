//! Digests of the user's own disks that are remembered in the cache, so that a second VM on a disk
//! does not hash all of it again.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::files::{create_private_directory, sha256_hex, write_lazily};
use crate::host::unix_time;
use crate::layout::CacheLayout;
use crate::trusted;

/// Digits of a SHA-256.
const DIGITS: usize = 64;
/// Age from which on a file's times tell that nothing was written since: a change at the same
/// moment as an earlier one could have the same time.
const SETTLED: Duration = Duration::from_secs(2);
/// Most notes; beyond that all are forgotten.
const MAX_NOTES: usize = 256;

/// Identity of a disk's files, by everything that changes whenever one of them is written to or
/// replaced. The time of the last change of an inode cannot be set by a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    text: String,
    is_settled: bool,
}

impl Identity {
    /// Returns the identity of these files as they are now.
    pub(super) fn of(files: &[PathBuf], settled: Duration) -> io::Result<Self> {
        let now = unix_time().saturating_sub(settled).as_secs();
        let mut identity = Self { text: String::new(), is_settled: true };
        for file in files {
            let it = fs::metadata(file)?;
            let times = [it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec()];
            identity.text += &format!("{} {} {} {times:?}\n", it.dev(), it.ino(), it.size());
            identity.is_settled &= u64::try_from(it.ctime()).is_ok_and(|changed| changed < now);
        }
        Ok(identity)
    }

    /// Returns the identity of these files, of which nothing is remembered yet.
    pub(super) fn now(files: &[PathBuf]) -> io::Result<Self> {
        Self::of(files, SETTLED)
    }

    fn note(&self, cache: &CacheLayout) -> PathBuf {
        cache.digests().join(sha256_hex(self.text.as_bytes()))
    }

    /// Returns the remembered digest.
    pub(super) fn recall(&self, cache: &CacheLayout) -> Option<String> {
        let bytes = trusted::read(&self.note(cache), DIGITS as u64).ok()?;
        let digest = String::from_utf8(bytes).ok()?;
        (digest.len() == DIGITS && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .then_some(digest)
    }

    /// Remembers the digest of files that had this identity before and after they were read. If it
    /// cannot be written, they are hashed again: slower, but correct.
    pub(super) fn remember(&self, digest: &str, cache: &CacheLayout) {
        if !self.is_settled || create_private_directory(&cache.digests()).is_err() {
            return;
        }
        let notes = fs::read_dir(cache.digests()).map_or(0, Iterator::count);
        if notes >= MAX_NOTES {
            let _ = fs::remove_dir_all(cache.digests());
            let _ = create_private_directory(&cache.digests());
        }
        let _ = write_lazily(&self.note(cache), digest.as_bytes(), 0o600);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_remembered_until_a_file_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = CacheLayout::new(directory.path().join("cache"));
        let files = [directory.path().join("disk")];
        fs::write(&files[0], "one").expect("written");
        let digest = "ab".repeat(32);
        let young = Identity::now(&files).expect("there");
        young.remember(&digest, &cache);
        assert_eq!(young.recall(&cache), None, "it may be written to at the same moment");
        std::thread::sleep(Duration::from_millis(1_100));
        let identity = || Identity::of(&files, Duration::ZERO).expect("there");
        identity().remember(&digest, &cache);
        assert_eq!(identity().recall(&cache), Some(digest.clone()));
        fs::write(cache.digests().join("other"), "").expect("written");
        let before = fs::metadata(&files[0]).and_then(|it| it.modified()).expect("a time");
        fs::write(&files[0], "two").expect("written");
        fs::File::open(&files[0]).and_then(|file| file.set_modified(before)).expect("set");
        assert_eq!(identity().recall(&cache), None, "in spite of the same size and time");
    }
}
