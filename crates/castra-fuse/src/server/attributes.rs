//! Attributes of files.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::Server;
use crate::abi::kind;
use crate::directory::Writable;
use crate::handles::Open;
use crate::platform::{self, Status, Time};
use crate::reply::{Attributes, Reply};
use crate::request::{Changes, Opening};

/// Bit of `access`: writing.
const WRITE: u32 = 0o2;

impl Server {
    pub(super) fn get_attributes(&self, node: u64, handle: Option<u64>) -> Result<Reply, Errno> {
        let status = self.with_any(node, handle, |_, status| Ok(*status))?;
        Ok(self.attributes(status))
    }

    pub(super) fn set_attributes(&self, node: u64, changes: &Changes) -> Result<Reply, Errno> {
        let permission = self.directory.writable()?;
        let owner = self.directory.owner();
        if changes.user.is_some_and(|user| user != owner.uid)
            || changes.group.is_some_and(|group| group != owner.gid)
        {
            return Err(Errno::PERM);
        }
        let status = self.with_any(node, changes.handle, |fd, status| {
            let _own = self.own_change(node, fd);
            if let Some(mode) = changes.mode {
                platform::set_mode(fd, status, mode, permission)?;
            }
            if let Some(size) = changes.size {
                self.truncate(node, changes.handle, (fd, status), size, permission)?;
            }
            if changes.accessed != Time::Unchanged || changes.modified != Time::Unchanged {
                platform::set_times(fd, changes.accessed, changes.modified, permission)?;
            }
            self.directory.status(fd)
        })?;
        Ok(self.attributes(status))
    }

    pub(super) fn access(&self, node: u64, mask: u32) -> Result<Reply, Errno> {
        if mask & WRITE != 0 {
            self.directory.writable()?;
        }
        let (reference, _) = self.locate(node)?;
        platform::access(&reference, mask)?;
        Ok(Reply::empty())
    }

    fn truncate(
        &self,
        node: u64,
        handle: Option<u64>,
        (fd, status): (&OwnedFd, &Status),
        size: u64,
        permission: Writable,
    ) -> Result<(), Errno> {
        let writes = |open: &Open| matches!(open, Open::File { write: true, .. });
        if let Some(handle) = handle {
            let handle = self.handles().get(handle, node)?;
            return match &handle.open {
                Open::File { fd, write: true, .. } => platform::truncate(fd, size, permission),
                _ => Err(Errno::BADF),
            };
        }
        if status.kind() != kind::REGULAR {
            return Err(if status.kind() == kind::DIRECTORY { Errno::ISDIR } else { Errno::INVAL });
        }
        let opening = Opening { read: false, write: true, truncate: false };
        let opened = platform::open_file(fd, opening, Some(permission));
        match opened {
            Ok(file) => platform::truncate(&file, size, permission),
            Err(errno) => {
                // Its permissions may have been taken away since it was opened.
                let handle = self.handles().file_of(node, |handle| writes(&handle.open));
                match handle.as_deref().map(|handle| &handle.open) {
                    Some(Open::File { fd, .. }) => platform::truncate(fd, size, permission),
                    _ => Err(errno),
                }
            }
        }
    }

    /// Calls a function with a descriptor of a node: that of a handle, or a reference. A file that
    /// is open and has no name any more is reached by any of its handles.
    pub(super) fn with_any<T>(
        &self,
        node: u64,
        handle: Option<u64>,
        call: impl FnOnce(&OwnedFd, &Status) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let handle = match handle {
            Some(handle) => Some(self.handles().get(handle, node)?),
            None => self.handles().file_of(node, |_| true),
        };
        match handle.as_deref().map(|handle| &handle.open) {
            Some(Open::File { fd, .. }) => {
                let status = self.directory.status(fd)?;
                call(fd, &status)
            }
            _ => {
                let (reference, status) = self.locate(node)?;
                call(&reference, &status)
            }
        }
    }

    fn attributes(&self, status: Status) -> Reply {
        let attributes = self.directory.attributes(status);
        Reply::of(16 + Attributes::BYTES, |reply| reply.valid_attributes(&attributes))
    }
}
