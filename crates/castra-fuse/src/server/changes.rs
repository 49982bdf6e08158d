//! Changes that the host makes, for the guest's programs that watch files.
//!
//! The guest's kernel reports to its programs only what happens in it. So each change is repeated
//! there by a process with a user of its own, whose requests are a [pretence](super::pretence):
//! they do nothing here.

use std::os::fd::OwnedFd;
use std::sync::{MutexGuard, PoisonError};

use rustix::io::Errno;

use super::batch::Batch;
use super::{Server, Version};
use crate::abi::{ROOT, kind};
use crate::platform::{self, Identity, Status};
use crate::watches::{Event, Own, Shortage, Watches};

/// Maximum number of changes that are reported at once.
pub const MAX_CHANGES: usize = 256;

/// A change that is to be repeated in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Path of the directory below the mount, without a slash at either end.
    pub directory: Vec<u8>,
    /// Name in it; empty for the directory itself.
    pub name: Vec<u8>,
    /// Kind of the change.
    pub kind: ChangeKind,
}

/// Kind of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// There is another regular file.
    File {
        /// Set if it was written, too.
        is_written: bool,
        /// Set if it may be a program: opened for writing, it could not be started.
        is_executable: bool,
    },
    /// There is another directory.
    Directory,
    /// There is another symbolic link.
    Link,
    /// There is another FIFO.
    Fifo,
    /// There is another socket.
    Socket,
    /// A regular file was written.
    Contents {
        /// Set if it may be a program.
        is_executable: bool,
    },
    /// Attributes are others.
    Attributes {
        /// Set for a regular file, whose contents may be others, too.
        is_file: bool,
    },
    /// The name of something but a directory is gone.
    Removed,
    /// A directory is gone.
    RemovedDirectory,
    /// A file or directory has another name now.
    Moved {
        /// Path of the directory in which it is.
        directory: Vec<u8>,
        /// Its name there.
        name: Vec<u8>,
    },
}

/// Changes that are to be repeated together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Group that repeats the first one. The next ones have the next groups.
    pub group: u32,
    /// The changes, in their order.
    pub changes: Vec<Change>,
    /// There are more changes, or some are not complete yet.
    pub has_more: bool,
}

impl Server {
    /// Begins to watch directories that the guest uses, at most this many. Must come before the
    /// first request.
    ///
    /// # Errors
    /// The host's kernel allows the user no more queues.
    pub fn watch(&mut self, limit: usize) -> Result<(), Errno> {
        self.watches = Some(Watches::new(limit)?.into());
        self.watch_root();
        Ok(())
    }

    /// Returns a descriptor that is readable when there are changes; `None` if nothing is watched.
    pub fn watched(&self) -> Option<OwnedFd> {
        self.watches()?.descriptor().ok()
    }

    /// Returns the reason why some directories are not watched.
    pub fn shortage(&self) -> Option<Shortage> {
        self.watches()?.shortage()
    }

    /// Returns the next changes that the guest has not made itself. The guest's nudger may repeat
    /// them until the next call.
    pub fn changes(&self) -> Changes {
        let (events, has_lost) = match self.watches() {
            Some(mut watches) => (watches.next(MAX_CHANGES), watches.take_lost()),
            None => (Vec::new(), false),
        };
        let mut batch = Batch::of(self, &events);
        let rest = batch.add_all(events);
        if has_lost {
            let nodes = self.watches().map(|watches| watches.nodes()).unwrap_or_default();
            batch.add_directories(&nodes);
        }
        let (changes, scripts, unsettled) = batch.finish();
        let has_more = self.watches().is_some_and(|mut watches| {
            watches.put_back(unsettled.into_iter().chain(rest).collect::<Vec<Event>>().into_iter());
            watches.has_events()
        });
        Changes { group: self.scripts().replace(scripts), changes, has_more }
    }

    /// Watches a directory that the guest uses.
    pub(super) fn note_use(&self, node: u64, directory: &OwnedFd) {
        if let Some(mut watches) = self.watches()
            && !watches.has(node)
        {
            watches.add(node, directory);
        }
    }

    /// Watches what was found in a directory, if it is one itself: the guest's kernel says nothing
    /// once a program watches it. One that was only listed is watched if there is room.
    pub(super) fn note_found(
        &self,
        node: u64,
        (parent, name): (&OwnedFd, &[u8]),
        status: &Status,
        is_listed: bool,
    ) {
        if status.kind() != kind::DIRECTORY {
            return;
        }
        let is_done = match self.watches() {
            None => true,
            Some(mut watches) if is_listed => watches.knows(node) || !watches.has_room(),
            Some(mut watches) => watches.has(node),
        };
        if is_done {
            return;
        }
        let Ok(directory) = platform::reference_in(parent, name) else { return };
        if self.directory.status(&directory).is_ok_and(|now| now.identity == status.identity) {
            self.note_use(node, &directory);
        }
    }

    /// Watches the root, and the directories that the guest knew before.
    pub(super) fn watch_known(&self) {
        if self.watches.is_none() {
            return;
        }
        self.watch_root();
        let known = self.nodes().directories();
        for node in known {
            if !self.watches().is_some_and(|mut watches| watches.has_room()) {
                return;
            }
            if let Ok(directory) = self.locate_directory(node) {
                self.note_use(node, &directory);
            }
        }
    }

    pub(super) fn watch_root(&self) {
        if let Ok(root) = self.directory.reference(b"") {
            self.note_use(ROOT, &root);
        }
    }

    /// Carries out changes of names by the guest. Their reports are not for it.
    pub(super) fn as_own<T>(
        &self,
        own: &[Own<'_>],
        make: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if let Some(mut watches) = self.watches() {
            own.iter().for_each(|own| watches.expect(*own));
        }
        let made = make();
        if made.is_err()
            && let Some(mut watches) = self.watches()
        {
            for own in own {
                watches.take(*own);
            }
        }
        made
    }

    /// Notes that the guest changes a file until the returned value is dropped.
    pub(super) fn own_change<'a>(&'a self, node: u64, fd: &'a OwnedFd) -> Option<OwnChange<'a>> {
        self.watches.as_ref()?;
        self.nodes().begin_change(node);
        Some(OwnChange { server: self, node, fd })
    }

    /// Notes the state of a file that the guest has made.
    pub(super) fn note_made(&self, node: u64, status: &Status) {
        if self.watches.is_some() {
            self.nodes().made(node, Version::of(status));
        }
    }

    pub(super) fn watches(&self) -> Option<MutexGuard<'_, Watches>> {
        let watches = self.watches.as_ref()?;
        Some(watches.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the status of a file that is gone, as far as it is known: one more name than it has.
    pub(super) fn former_status(&self, node: u64, identity: Identity) -> Status {
        let known = self.with_any(node, None, |_, status| Ok(*status));
        let unknown = Status {
            identity,
            mode: identity.kind | 0o700,
            links: 0,
            size: 0,
            blocks: 0,
            block_size: 4096,
            accessed: (0, 0),
            modified: (0, 0),
            changed: (0, 0),
        };
        let status = known.unwrap_or(unknown);
        Status { links: status.links.saturating_add(1), ..status }
    }
}

/// A change of a file by the guest.
pub(super) struct OwnChange<'a> {
    server: &'a Server,
    node: u64,
    fd: &'a OwnedFd,
}

impl Drop for OwnChange<'_> {
    fn drop(&mut self) {
        let made = self.server.directory.status(self.fd).ok();
        self.server.nodes().end_change(self.node, made.as_ref().map(Version::of));
    }
}
