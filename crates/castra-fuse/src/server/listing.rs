//! Directories: their entries, with attributes or without.

use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use super::{Server, out_of_descriptors};
use crate::MAX_WRITE;
use crate::directory::is_hidden;
use crate::handles::{Handle, Open};
use crate::platform::{self, Listed, Status};
use crate::reply::{Attributes, Reply};

/// Length of an entry before its name, in bytes.
const ENTRY: usize = 24;

impl Server {
    pub(super) fn open_directory(&self, node: u64) -> Result<Reply, Errno> {
        self.handles().check_room()?;
        let reference = self.locate_directory(node)?;
        let fd = platform::open_directory(&reference).map_err(out_of_descriptors)?;
        let open = Open::Directory(Mutex::new(fd));
        let handle = self.handles().add(Handle { node, open })?;
        Ok(Reply::with_room(16).handle(handle, 0))
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
        let mut reply = Some(Reply::with_room(size));
        let mut failed = None;
        platform::list(&*directory, offset, |entry| {
            if is_hidden(entry.name) {
                return true;
            }
            let Some(current) = reply.take() else { return false };
            let prefix = if with_attributes { Attributes::ENTRY_BYTES } else { 0 };
            let length = (prefix + ENTRY + entry.name.len()).next_multiple_of(8);
            if current.len() + length > size {
                reply = Some(current);
                return false;
            }
            let is_other = !matches!(entry.name, b"." | b"..");
            let status = match with_attributes && is_other {
                true => self.directory.status_in(&directory, entry.name).map(Some),
                false => Ok(None),
            };
            let status = match status {
                // Gone since the directory was read.
                Err(Errno::NOENT) => {
                    reply = Some(current);
                    return true;
                }
                Err(Errno::IO) => {
                    failed = Some(Errno::IO);
                    reply = Some(current);
                    return false;
                }
                status => status.ok().flatten(),
            };
            let inode = self.entry_inode(device, node, &entry);
            let mut current = current;
            if with_attributes {
                current = self.prefix(current, node, entry.name, status);
            }
            reply = Some(put(current, &entry, inode));
            true
        })?;
        match (reply, failed) {
            (Some(reply), Some(errno)) if reply.len() == 0 => Err(errno),
            (Some(reply), _) => Ok(reply),
            (None, _) => Err(Errno::IO),
        }
    }

    /// Appends the attributes of an entry and counts it as looked up. Without a node, the kernel
    /// uses only the name.
    fn prefix(&self, reply: Reply, parent: u64, name: &[u8], status: Option<Status>) -> Reply {
        let Some(status) = status else { return reply.no_entry() };
        match self.nodes().found(parent, name, &status) {
            Ok(node) => reply.entry(node, &self.directory.attributes(status)),
            Err(_) => reply.no_entry(),
        }
    }

    /// Returns the inode number of an entry. Nothing is said of the directory around the root.
    fn entry_inode(&self, device: u64, node: u64, entry: &Listed<'_>) -> u64 {
        if node == crate::abi::ROOT && entry.name == b".." {
            return self.directory.inode(self.directory.identity());
        }
        self.directory.inode_on(device, entry.inode)
    }
}

fn put(reply: Reply, entry: &Listed<'_>, inode: u64) -> Reply {
    let length = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
    let mut reply = reply.u64(inode).u64(entry.next).u32(length).u32(entry.kind);
    let buffer = reply.buffer();
    buffer.extend(entry.name);
    // The header's length is a multiple of eight, too.
    buffer.resize(buffer.len().next_multiple_of(8), 0);
    reply
}
