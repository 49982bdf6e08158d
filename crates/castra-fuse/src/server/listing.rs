//! Directories: their entries, with attributes or without.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use super::{Server, out_of_descriptors};
use crate::MAX_WRITE;
use crate::directory::is_hidden;
use crate::handles::{Handle, Open};
use crate::platform::{self, Listed};
use crate::reply::{Attributes, Reply};

/// Length of an entry before its name, in bytes.
const ENTRY: usize = 24;

impl Server {
    pub(super) fn open_directory(&self, node: u64) -> Result<Reply, Errno> {
        self.handles().check_room()?;
        let reference = self.locate_directory(node)?;
        self.note_use(node, &reference);
        let fd = platform::open_directory(&reference).map_err(out_of_descriptors)?;
        let open = Open::Directory(Mutex::new(fd));
        let handle = self.handles().add(Handle { node, open })?;
        Ok(Reply::of(16, |reply| reply.handle(handle, 0)))
    }

    pub(super) fn read_directory(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        size: u32,
        with_attributes: bool,
    ) -> Result<Reply, Errno> {
        let handle = self.handles().get(handle, node)?;
        let Open::Directory(directory) = &handle.open else { return Err(Errno::NOTDIR) };
        let directory = directory.lock().unwrap_or_else(PoisonError::into_inner);
        let size = size.min(MAX_WRITE) as usize;
        let device = self.directory.status(&directory)?.identity.device;
        let mut reply = Reply::with_room(size);
        let prefix = if with_attributes { Attributes::ENTRY_BYTES } else { 0 };
        platform::list(&*directory, offset, |entry| {
            let length = (prefix + ENTRY + entry.name.len()).next_multiple_of(8);
            if is_hidden(entry.name) || self.directory.hides(device, entry.inode) {
                return true;
            }
            if reply.len() + length > size {
                return false;
            }
            if with_attributes && !self.prefix(&mut reply, node, &directory, &entry) {
                return true;
            }
            put(&mut reply, &entry, self.entry_inode(device, node, &entry));
            true
        })?;
        Ok(reply)
    }

    /// Appends the attributes of an entry and counts it as looked up. Without attributes, the
    /// kernel uses only the name. Returns `false` if the entry has gone since the directory was
    /// read.
    fn prefix(
        &self,
        reply: &mut Reply,
        parent: u64,
        directory: &OwnedFd,
        entry: &Listed<'_>,
    ) -> bool {
        if matches!(entry.name, b"." | b"..") {
            reply.no_entry();
            return true;
        }
        let status = self.directory.status_in(directory, entry.name);
        let found = status
            .and_then(|status| Ok((self.nodes().found(parent, entry.name, &status)?, status)));
        match found {
            Ok((node, status)) => {
                self.note_found(node, (directory, entry.name), &status, true);
                reply.entry(node, &self.directory.attributes(status));
            }
            Err(Errno::NOENT) => return false,
            Err(_) => {
                reply.no_entry();
            }
        }
        true
    }

    /// Returns the inode number of an entry. Nothing is said of the directory around the root.
    fn entry_inode(&self, device: u64, node: u64, entry: &Listed<'_>) -> u64 {
        if node == crate::abi::ROOT && entry.name == b".." {
            return self.directory.inode(self.directory.identity());
        }
        self.directory.inode_on(device, entry.inode)
    }
}

fn put(reply: &mut Reply, entry: &Listed<'_>, inode: u64) {
    let length = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
    reply.u64(inode).u64(entry.next).u32(length).u32(entry.kind);
    reply.buffer().extend(entry.name);
    reply.zeros(reply.len().next_multiple_of(8) - reply.len());
}
