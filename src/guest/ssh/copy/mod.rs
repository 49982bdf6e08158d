//! Files and directory trees, to the guest and back, over SFTP.
//!
//! As with `scp -rp`: a source is copied *into* a target that is a directory, else *as* the target; modes and times are
//! kept. Unlike there, symbolic links inside a tree stay links. Directories come first and get their modes and times
//! last; the files between them are copied several at once, and each in several pieces at once, so that no round trip
//! is waited for.

mod download;
mod session;
mod upload;

use std::path::{Path, PathBuf};

use super::connection::Connection;
use super::{SshError, Target, block_on};
use session::Session;

/// What a copy did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is neither file, directory nor link and was left out: sockets, pipes, devices. Paths at the source.
    pub skipped: Vec<PathBuf>,
}

/// Copies a file or a directory of this host into the guest.
///
/// A `remote` path is relative to the guest user's home. `progress` gets the number of bytes of each piece when it has
/// arrived.
///
/// # Errors
/// The guest could not be reached or was lost, or a file could not be read or written. What was copied by then stays.
pub fn upload(
    target: &Target,
    local: &Path,
    remote: &str,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    let remote = from_home(remote);
    with_session(target, async |session| upload::run(session, local, remote, progress).await)
}

/// Copies a file or a directory of the guest to this host. See [`upload`].
///
/// The guest is not trusted: nothing is written outside `local`, whatever names and links the guest shows.
///
/// # Errors
/// As [`upload`].
pub fn download(
    target: &Target,
    remote: &str,
    local: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, SshError> {
    let remote = from_home(remote);
    with_session(target, async |session| download::run(session, remote, local, progress).await)
}

fn with_session<T>(
    target: &Target,
    work: impl AsyncFnOnce(&Session) -> Result<T, SshError>,
) -> Result<T, SshError> {
    block_on(async {
        let connection = Connection::open(target).await?;
        let session = Session::open(&connection).await?;
        tokio::select! {
            result = work(&session) => result,
            () = connection.until_silent() => Err(SshError::Lost),
        }
    })
}

/// Paths start at the home anyway.
fn from_home(path: &str) -> &str {
    match path {
        "" | "~" | "~/" => ".",
        _ => path.strip_prefix("~/").unwrap_or(path),
    }
}

/// `directory` and a name in it, as one guest path.
fn join(directory: &str, name: &str) -> String {
    if directory.ends_with('/') { format!("{directory}{name}") } else { format!("{directory}/{name}") }
}

/// Pieces of a file: offset and length of each.
fn pieces(size: u64) -> impl Iterator<Item = (u64, u32)> {
    let piece = u64::from(session::PIECE_BYTES);
    (0..size.div_ceil(piece)).map(move |number| {
        let offset = number * piece;
        (offset, u32::try_from(piece.min(size - offset)).unwrap_or(session::PIECE_BYTES))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_file_once() {
        for size in [0, 1, 65_535, 65_536, 65_537, 1_000_000] {
            let mut next = 0;
            for (offset, length) in pieces(size) {
                assert_eq!(offset, next);
                next += u64::from(length);
            }
            assert_eq!(next, size);
        }
    }

    #[test]
    fn paths_start_at_home() {
        assert_eq!(
            ["~", "~/a", "", "b/c", "/d", "~root"].map(from_home),
            [".", "a", ".", "b/c", "/d", "~root"]
        );
        assert_eq!((join("a", "b"), join("/", "b")), ("a/b".to_owned(), "/b".to_owned()));
    }
}
