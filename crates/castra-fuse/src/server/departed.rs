//! Files that the guest has just removed or replaced.
//!
//! A process of the guest may have found such a file and be about to open it: so do all who read a
//! file that others replace by renames. On a disk it gets the file. Here it has no name any more by
//! which it could be found, so it is kept by a reference until the kernel forgets it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::{Server, out_of_descriptors};
use crate::abi::kind;
use crate::handles::Open;
use crate::platform::{self, Status};

/// Maximum number of files that are kept. The kernel forgets most at once.
pub(super) const MAX_DEPARTED: usize = 64;

/// References to files without a name, by node, the latest last.
#[derive(Debug, Default)]
pub(super) struct Departed(VecDeque<(u64, OwnedFd)>);

impl Departed {
    /// Keeps a file, in place of the oldest one if there is no room.
    fn keep(&mut self, node: u64, reference: OwnedFd) {
        if self.0.len() >= MAX_DEPARTED {
            self.0.pop_front();
        }
        self.0.push_back((node, reference));
    }

    /// Returns another reference to a file that is kept.
    pub(super) fn reference(&self, node: u64) -> Option<Result<OwnedFd, Errno>> {
        let (_, reference) = self.0.iter().rev().find(|(kept, _)| *kept == node)?;
        Some(duplicate(reference))
    }

    /// Drops the files of all nodes but those that are still known.
    pub(super) fn retain(&mut self, is_known: impl Fn(u64) -> bool) {
        self.0.retain(|(node, _)| is_known(*node));
    }

    /// Drops all files.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Server {
    /// Keeps a file whose last name the guest is about to take, while `take` does that. A file that
    /// the kernel does not know, or that has other names, is not kept.
    pub(super) fn departing(
        &self,
        (directory, name): (&OwnedFd, &[u8]),
        status: &Status,
        take: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        // Before the name is gone, since others may ask for the file at that moment.
        let kept = self.keep(directory, name, status);
        let taken = take();
        if let Some(node) = kept.filter(|_| taken.is_err()) {
            self.departed().retain(|other| other != node);
        }
        taken
    }

    fn keep(&self, directory: &OwnedFd, name: &[u8], status: &Status) -> Option<u64> {
        if status.kind() != kind::REGULAR || status.links > 1 {
            return None;
        }
        let node = self.nodes().id_of(status.identity)?;
        // Without a descriptor to spare, it is lost to those who have not opened it.
        let reference = platform::reference_in(directory, name).ok()?;
        let found = self.directory.status(&reference).ok()?;
        (found.identity == status.identity).then(|| {
            self.departed().keep(node, reference);
            node
        })
    }

    #[cfg(test)]
    pub(crate) fn departed_count(&self) -> usize {
        self.departed().len()
    }

    /// Returns a reference to a file without a name: one that has just lost it, or is open.
    pub(super) fn nameless(&self, node: u64) -> Result<OwnedFd, Errno> {
        if let Some(reference) = self.departed().reference(node) {
            return reference;
        }
        let open = self.handles().file_of(node, |_| true).ok_or(Errno::STALE)?;
        match &open.open {
            Open::File { fd, .. } => duplicate(fd),
            Open::Directory(_) => Err(Errno::STALE),
        }
    }
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(out_of_descriptors)
}
