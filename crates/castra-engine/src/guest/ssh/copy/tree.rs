//! Directory trees as listed by a guest, within bounds and with names checked to be plain names.

use bytes::Bytes;
use castra_sftp::{Attributes, Request};

use super::super::SshError;
use super::join;
use super::session::{Session, Sort, failed, shown};

/// Maximum number of entries of a tree. They are kept in memory until they are copied, and a guest
/// may list more than exist.
pub(super) const MAX_ENTRIES: usize = 1_000_000;

/// Maximum total size of a tree's paths, in bytes.
const MAX_TREE_BYTES: usize = 256 << 20;

/// Longest path on this host, in bytes (`PATH_MAX`): a guest may list directories without end.
const MAX_PATH_BYTES: usize = 4096;

/// Longest name of a file, in bytes (`NAME_MAX`).
const MAX_NAME_BYTES: usize = 255;

/// An entry of a tree: its path in the guest and its attributes.
pub(super) struct Found {
    pub(super) source: Vec<u8>,
    /// Length of the part of `source` that is not below the root of the tree.
    root: usize,
    pub(super) attributes: Attributes,
}

impl Found {
    /// Returns the path below the root of the tree; empty for the root itself.
    pub(super) fn below(&self) -> &[u8] {
        let below = &self.source[self.root..];
        below.strip_prefix(b"/").unwrap_or(below)
    }
}

/// Contents of a tree. A directory comes before its entries.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) directories: Vec<Found>,
    pub(super) files: Vec<Found>,
    pub(super) links: Vec<Found>,
    pub(super) others: Vec<Found>,
    /// Directories that cannot be read.
    pub(super) failed: Vec<SshError>,
}

/// Lists a tree. `length` is that of the destination's path, to which the tree's paths are
/// appended.
pub(super) async fn walk(
    session: &Session,
    root: &[u8],
    attributes: Attributes,
    length: usize,
) -> Result<Tree, SshError> {
    let mut tree = Tree::default();
    let mut left = vec![Found { source: root.to_vec(), root: root.len(), attributes }];
    let (mut entries, mut bytes) = (0, 0);
    // A list instead of recursion: the guest chooses the depth.
    while let Some(found) = left.pop() {
        if length + found.below().len() >= MAX_PATH_BYTES {
            return Err(refused(&found.source, "its path is too long for this machine"));
        }
        match Sort::of(&found.attributes) {
            Sort::Directory => {
                match list(session, &found.source, MAX_ENTRIES - entries).await {
                    Ok(listed) => {
                        entries += listed.len();
                        for (name, attributes) in listed {
                            let source = join(&found.source, &name);
                            bytes += source.len();
                            if bytes > MAX_TREE_BYTES {
                                return Err(too_much(root));
                            }
                            left.push(Found { source, root: root.len(), attributes });
                        }
                    }
                    // Only the root must be readable.
                    Err(error @ SshError::GuestFile { what: "read the directory", .. })
                        if !found.below().is_empty() =>
                    {
                        tree.failed.push(error);
                    }
                    Err(error) => return Err(error),
                }
                tree.directories.push(found);
            }
            Sort::File => tree.files.push(found),
            Sort::Link => tree.links.push(found),
            Sort::Other => tree.others.push(found),
        }
    }
    Ok(tree)
}

/// Lists a directory.
pub(super) async fn list(
    session: &Session,
    path: &[u8],
    most: usize,
) -> Result<Vec<(Bytes, Attributes)>, SshError> {
    let failure = failed("read the directory", path);
    let handle = session.sftp.opendir(Bytes::copy_from_slice(path)).await.map_err(failure)?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while let Some(some) = session.sftp.readdir(handle.clone()).await.map_err(failure)? {
        for entry in some.into_iter().filter(|entry| entry.name != "." && entry.name != "..") {
            check(&entry.name, path)?;
            bytes += entry.name.len();
            if entries.len() >= most || bytes > MAX_TREE_BYTES {
                return Err(too_much(path));
            }
            // A copy: a slice would hold the whole packet.
            entries.push((Bytes::copy_from_slice(&entry.name), entry.attributes));
        }
    }
    session.sftp.close(handle).await.map_err(failure)?;
    Ok(entries)
}

/// Refuses a name that is not a plain file name, which would lead out of the destination.
fn check(name: &[u8], directory: &[u8]) -> Result<(), SshError> {
    let is_name = !name.is_empty() && !name.contains(&b'/') && !name.contains(&0);
    if is_name && name != b"." && name != b".." && name.len() <= MAX_NAME_BYTES {
        return Ok(());
    }
    Err(refused(&join(directory, name), "this is not a file name"))
}

fn too_much(path: &[u8]) -> SshError {
    refused(path, "it has too many entries for one copy")
}

pub(super) fn refused(path: &[u8], reason: &str) -> SshError {
    SshError::GuestFile {
        what: "copy",
        path: shown(path),
        reason: reason.to_owned(),
        missing: false,
    }
}

/// Returns the last component of a guest's path, even of `.` and `..`; `None` for the root.
pub(super) async fn own_name(session: &Session, path: &[u8]) -> Result<Option<Vec<u8>>, SshError> {
    let last = |path: &[u8]| {
        let parts = path.rsplit(|byte| *byte == b'/');
        parts.into_iter().find(|part| !part.is_empty()).unwrap_or_default().to_vec()
    };
    let name = last(path);
    if !matches!(&name[..], b"" | b"." | b"..") {
        return Ok(Some(name));
    }
    let real = session.sftp.path(Request::Realpath { path: Bytes::copy_from_slice(path) }).await;
    let name = last(&real.map_err(failed("read", path))?);
    if name.is_empty() {
        return Ok(None);
    }
    check(&name, path)?;
    Ok(Some(name))
}
