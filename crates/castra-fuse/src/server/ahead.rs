//! Contents of small files, which the kernel gets with the reply to their OPEN. A READ would take
//! as long as the OPEN did.

use std::os::fd::OwnedFd;

use super::Server;
use crate::platform::Status;
use crate::reply::store;

/// Length of the longest file whose contents are sent, in bytes. The kernel would read as much
/// ahead.
const MAX_CONTENTS: u64 = 64 * 1024;

/// State of a file's contents, as far as its attributes show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

impl Version {
    pub(crate) fn of(status: &Status) -> Self {
        Self { size: status.size, modified: status.modified, changed: status.changed }
    }

    /// Returns `true` if the contents are the same, as far as size and time show it.
    pub(crate) fn has_contents_of(self, other: Self) -> bool {
        (self.size, self.modified) == (other.size, other.modified)
    }
}

impl Server {
    /// Returns the notification with the contents of an open file, of which this is the status from
    /// before it was opened: the kernel drops what is older than the attributes it knows. `None` if
    /// the file is large or open already, or the kernel has this version.
    pub(super) fn contents(&self, node: u64, fd: &OwnedFd, status: &Status) -> Option<Vec<u8>> {
        if status.size == 0 || status.size > MAX_CONTENTS || self.handles().has_file(node) {
            return None;
        }
        if !self.nodes().note_sent(node, Version::of(status)) {
            return None;
        }
        let mut contents = vec![0; usize::try_from(status.size).ok()?];
        let mut read = 0;
        while read < contents.len() {
            match rustix::io::pread(fd, &mut contents[read..], read as u64).ok()? {
                0 => return None,
                count => read += count,
            }
        }
        Some(store(node, &contents))
    }
}
