//! Files and directory trees, copied to the guest and back over SFTP.
//!
//! As with `scp -rp`, a source is copied *into* a target that is a directory, else *as* the target;
//! modes and times are preserved. Unlike with scp, symbolic links inside a tree stay links.
//! Directories come first and get their modes and times last; the files between them are copied
//! several at once, and each in several pieces at once, so that the copy does not wait for round
//! trips. A file is read to its end, whatever its reported size. Paths are bytes.
//!
//! Failures inside a tree are listed in [`Copied`], and the rest is copied. A file that a failed
//! copy has created is removed again; a file that existed before is written in place, as `cp` does,
//! so that its links, owner and mode stay, and is listed as incomplete.

mod download;
mod glob;
mod landing;
mod session;
mod transfers;
mod tree;
mod upload;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::connection::Connection;
use super::{SshError, Target, block_on};
use crate::cancel::Cancel;
use session::{Interrupted, Session};

/// Outcome of a copy.
#[derive(Debug, Default)]
pub struct Copied {
    /// Number of regular files and streams.
    pub files: u64,
    /// Total size of the files, in bytes.
    pub bytes: u64,
    /// Entries of a tree that were left out because they are neither file, directory nor link:
    /// sockets, pipes, devices. Paths at the source.
    pub skipped: Vec<PathBuf>,
    /// State directories of Castra's that were left out of a tree, because they hold keys and live
    /// disks.
    pub states: Vec<PathBuf>,
    /// Failures of entries that could not be copied.
    pub failed: Vec<SshError>,
    /// Files of this host that existed before and are part old, part new, because their copy
    /// failed.
    pub incomplete: Vec<PathBuf>,
}

/// Copies a file or a directory of this host into the guest.
///
/// A `remote` path is relative to the guest user's home. `progress` is called with the number of
/// bytes of each piece that has arrived. A `local` path that is no regular file is read to its end,
/// too.
///
/// # Errors
/// The guest could not be reached or was lost, or the source could not be copied at all.
pub fn upload(
    target: &Target,
    local: &Path,
    remote: impl AsRef<OsStr>,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    upload_until(&Cancel::new(), target, local, remote, progress)
}

/// Copies like `upload`, until it is cancelled.
///
/// # Errors
/// As `upload`, and [`SshError::Interrupted`].
pub fn upload_until(
    cancel: &Cancel,
    target: &Target,
    local: &Path,
    remote: impl AsRef<OsStr>,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    let remote = from_home(remote.as_ref().as_bytes());
    with_session(cancel, target, async |session| {
        upload::run(session, local, remote, progress).await
    })
}

/// Copies a file or a directory of the guest to this host. See `upload`.
///
/// A `remote` path that does not exist and contains `*`, `?` or `[…]` names everything that it
/// matches. The guest is not trusted: nothing is written outside `local`, whatever names and links
/// the guest shows.
///
/// # Errors
/// As `upload`.
pub fn download(
    target: &Target,
    remote: impl AsRef<OsStr>,
    local: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    download_until(&Cancel::new(), target, remote, local, progress)
}

/// Copies like `download`, until it is cancelled.
///
/// # Errors
/// As `download`, and [`SshError::Interrupted`].
pub fn download_until(
    cancel: &Cancel,
    target: &Target,
    remote: impl AsRef<OsStr>,
    local: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    let remote = from_home(remote.as_ref().as_bytes());
    with_session(cancel, target, async |session| {
        download::run(session, remote, local, progress).await
    })
}

fn with_session(
    cancel: &Cancel,
    target: &Target,
    work: impl AsyncFnOnce(&Session) -> Result<Copied, SshError>,
) -> Result<Copied, SshError> {
    let interrupted = Interrupted::default();
    let copied = block_on(async {
        let connection = Connection::open(target, cancel).await?;
        let session =
            connection.guard(cancel, Session::open(&connection, interrupted.clone())).await?;
        let result = connection.guard(cancel, work(&session)).await;
        if result.is_err() {
            session.remove_unfinished().await;
        }
        result
    });
    // Only now have all transfers ended, so that their guards have recorded what they leave behind.
    let incomplete = interrupted.take();
    match copied {
        Ok(copied) => Ok(Copied { incomplete, ..copied }),
        Err(error) if incomplete.is_empty() => Err(error),
        Err(error) => Err(SshError::Incomplete { paths: incomplete, source: Box::new(error) }),
    }
}

/// Strips a leading `~/`, since paths start at the home anyway.
fn from_home(path: &[u8]) -> &[u8] {
    match path {
        b"" | b"~" | b"~/" => b".",
        _ => path.strip_prefix(b"~/").unwrap_or(path),
    }
}

/// Joins `directory` and a name into a guest path.
fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if directory.ends_with(b"/") { b"" } else { b"/" };
    [directory, slash, name].concat()
}

/// Returns `true` if all bytes are zero. They become a hole: both ends write into files that are
/// empty.
fn is_hole(data: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    data.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

/// A list to which the guards of transfers append.
type Noted<T> = Arc<std::sync::Mutex<Vec<T>>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_home() {
        let paths: [&[u8]; 6] = [b"~", b"~/a", b"", b"b/c", b"/d", b"~root"];
        let expected: [&[u8]; 6] = [b".", b"a", b".", b"b/c", b"/d", b"~root"];
        assert_eq!(paths.map(from_home), expected);
        assert_eq!((join(b"a", b"b"), join(b"/", b"b")), (b"a/b".to_vec(), b"/b".to_vec()));
    }

    #[test]
    fn holes_are_nothing_but_zeros() {
        assert!(is_hole(&[0; 10_000]) && is_hole(&[]));
        for at in [0, 4095, 4096, 9999] {
            let mut data = vec![0; 10_000];
            data[at] = 1;
            assert!(!is_hole(&data), "{at}");
        }
    }
}
