//! Names in directories: finding, making, moving and removing them.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::{Server, out_of_descriptors};
use crate::abi::PERMISSIONS;
use crate::directory::{Writable, is_hidden};
use crate::platform::{self, Status};
use crate::reply::{Attributes, Reply};
use crate::request::{Made, Replacing};
use crate::watches::NameChange;

/// Checks that a name may be made.
pub(super) fn check_new(name: &[u8]) -> Result<(), Errno> {
    if is_hidden(name) { Err(Errno::PERM) } else { Ok(()) }
}

/// Checks that a name may be there.
fn check_old(name: &[u8]) -> Result<(), Errno> {
    if is_hidden(name) { Err(Errno::NOENT) } else { Ok(()) }
}

impl Server {
    pub(super) fn look_up(&self, parent: u64, name: &[u8]) -> Result<Reply, Errno> {
        match self.find(parent, name) {
            Ok((node, status)) => Ok(self.entry(node, status)),
            Err(Errno::NOENT) => Ok(Reply::of(Attributes::ENTRY_BYTES, Reply::no_entry)),
            Err(errno) => Err(errno),
        }
    }

    /// Finds a file, and counts it as looked up.
    pub(super) fn find(&self, parent: u64, name: &[u8]) -> Result<(u64, Status), Errno> {
        let directory = self.locate_directory(parent)?;
        self.note_use(parent, &directory);
        check_old(name)?;
        let status = self.directory.status_in(&directory, name)?;
        let node = self.nodes().found(parent, name, &status)?;
        self.note_found(node, (&directory, name), &status, false);
        Ok((node, status))
    }

    pub(super) fn read_link(&self, node: u64) -> Result<Reply, Errno> {
        let (reference, _) = self.locate(node)?;
        let target = rustix::fs::readlinkat(&reference, "", Vec::new())?;
        let target = target.to_bytes();
        let mut reply = Reply::with_room(target.len());
        reply.buffer().extend(target);
        Ok(reply)
    }

    pub(super) fn make_link(
        &self,
        parent: u64,
        name: &[u8],
        target: &[u8],
    ) -> Result<Reply, Errno> {
        self.make(parent, name, None, |directory, permission| {
            platform::make_link(directory, name, target, permission)
        })
    }

    pub(super) fn make_node(
        &self,
        parent: u64,
        name: &[u8],
        made: Made,
        mode: u32,
    ) -> Result<Reply, Errno> {
        self.make(parent, name, Some(mode), |directory, permission| {
            platform::make_node(directory, name, made, mode, permission)
        })
    }

    pub(super) fn make_directory(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
    ) -> Result<Reply, Errno> {
        self.make(parent, name, Some(mode), |directory, permission| {
            platform::make_directory(directory, name, mode, permission)
        })
    }

    pub(super) fn link(&self, file: u64, parent: u64, name: &[u8]) -> Result<Reply, Errno> {
        self.directory.writable()?;
        let (reference, _) = self.locate(file)?;
        self.make(parent, name, None, |directory, permission| {
            platform::link(&reference, directory, name, permission)
        })
    }

    /// Makes a file by a function. The mode that the guest asked for is without its own umask, so
    /// that of this process does not count.
    fn make(
        &self,
        parent: u64,
        name: &[u8],
        mode: Option<u32>,
        make: impl FnOnce(&OwnedFd, Writable) -> Result<(), Errno>,
    ) -> Result<Reply, Errno> {
        let permission = self.directory.writable()?;
        check_new(name)?;
        self.check_room_for_node()?;
        let directory = self.locate_directory(parent)?;
        self.as_own(&[(parent, name, NameChange::Created)], || make(&directory, permission))?;
        let mut status = self.directory.status_in(&directory, name)?;
        if let Some(mode) = mode
            && status.mode & PERMISSIONS != mode & PERMISSIONS
        {
            let made = platform::reference_in(&directory, name).map_err(out_of_descriptors)?;
            // Unless the host has already put something else there.
            if self.directory.status(&made)?.identity == status.identity {
                platform::set_mode(&made, &status, mode, permission)?;
                status = self.directory.status(&made)?;
            }
        }
        let node = self.nodes().found(parent, name, &status)?;
        self.note_made(node, &status);
        self.note_found(node, (&directory, name), &status, false);
        Ok(self.entry(node, status))
    }

    pub(super) fn unlink(
        &self,
        parent: u64,
        name: &[u8],
        is_directory: bool,
    ) -> Result<Reply, Errno> {
        let permission = self.directory.writable()?;
        check_old(name)?;
        let directory = self.locate_directory(parent)?;
        let status = self.directory.status_in(&directory, name)?;
        self.as_own(&[(parent, name, NameChange::Removed)], || {
            self.departing((&directory, name), &status, || {
                platform::unlink(&directory, name, is_directory, permission)
            })
        })?;
        self.nodes().unlinked(parent, name, &status);
        Ok(Reply::empty())
    }

    pub(super) fn rename(
        &self,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        replacing: Replacing,
    ) -> Result<Reply, Errno> {
        let permission = self.directory.writable()?;
        check_old(from.1)?;
        check_new(to.1)?;
        let source = self.locate_directory(from.0)?;
        let target = self.locate_directory(to.0)?;
        let moved = self.directory.status_in(&source, from.1)?;
        let replaced = self.directory.status_in(&target, to.1).ok();
        let mut own =
            vec![(from.0, from.1, NameChange::MovedFrom), (to.0, to.1, NameChange::MovedTo)];
        if replacing == Replacing::Exchange {
            own.push((to.0, to.1, NameChange::MovedFrom));
            own.push((from.0, from.1, NameChange::MovedTo));
        }
        let rename = || platform::rename((&source, from.1), (&target, to.1), replacing, permission);
        self.as_own(&own, || match &replaced {
            Some(replaced)
                if replacing == Replacing::Allowed && replaced.identity != moved.identity =>
            {
                self.departing((&target, to.1), replaced, rename)
            }
            _ => rename(),
        })?;
        let mut nodes = self.nodes();
        if let Some(replaced) = replaced {
            if replacing == Replacing::Exchange {
                nodes.moved(to, from, &replaced);
            } else if replaced.identity != moved.identity {
                nodes.unlinked(to.0, to.1, &replaced);
            }
        }
        if replaced.is_none_or(|replaced| replaced.identity != moved.identity) {
            nodes.moved(from, to, &moved);
        }
        Ok(Reply::empty())
    }

    /// Checks that a file may be made whose node is not known yet.
    pub(super) fn check_room_for_node(&self) -> Result<(), Errno> {
        if self.nodes().is_full() { Err(Errno::NOMEM) } else { Ok(()) }
    }

    pub(super) fn entry(&self, node: u64, status: Status) -> Reply {
        let attributes = self.directory.attributes(status);
        Reply::of(Attributes::ENTRY_BYTES, |reply| reply.entry(node, &attributes))
    }
}
