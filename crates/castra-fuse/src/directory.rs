//! The directory that is served, and everything that is reached from it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::platform::{self, Identity, Status, Walk};
use crate::reply::Attributes;

/// Rights that a guest has in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything that would change the directory or a file is `EROFS`.
    ReadOnly,
    /// The rights of the process that serves.
    ReadWrite,
}

/// Owner of every file, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
}

/// Permission to change the directory, which calls that change something need.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writable(());

/// An open directory of the host.
#[derive(Debug)]
pub struct Directory {
    root: OwnedFd,
    access: Access,
    owner: Owner,
    walk: Walk,
    /// Identity of the root, whose time of birth counts if the filesystem's times do.
    identity: Identity,
    has_births: bool,
    /// Device and inode number of directories that guests do not see.
    hidden: Vec<(u64, u64)>,
}

impl Directory {
    /// Opens a directory. Its path may contain symbolic links; from here on, its descriptor is all
    /// that counts, wherever the directory is moved.
    ///
    /// # Errors
    /// The path is not a directory, or cannot be read.
    pub fn open(path: &Path, access: Access, owner: Owner) -> io::Result<Self> {
        let root = platform::open_root(path)?;
        let walk = Walk::of_kernel(&root)?;
        let has_births = platform::has_births(&root)?;
        let identity = platform::status(&root)?.identity;
        let hidden = Vec::new();
        let mut directory = Self { root, access, owner, walk, identity, has_births, hidden };
        directory.identity = directory.status(&directory.root)?.identity;
        Ok(directory)
    }

    /// Hides another directory from guests, wherever in this one it is. One that does not exist is
    /// not hidden once it does.
    pub fn hide(&mut self, path: &Path) {
        if let Ok(status) = platform::open_root(path).and_then(|fd| platform::status(&fd)) {
            self.hidden.push((status.identity.device, status.identity.inode));
        }
    }

    /// Returns `true` for an inode of a device that guests do not see.
    pub(crate) fn hides(&self, device: u64, inode: u64) -> bool {
        self.hidden.contains(&(device, inode))
    }

    /// Returns `true` if there is any that guests do not see.
    pub(crate) fn hides_any(&self) -> bool {
        !self.hidden.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn walk_by_components(&mut self) {
        self.walk = Walk::Components;
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd as _;
        self.root.as_fd()
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) fn owner(&self) -> Owner {
        self.owner
    }

    pub(crate) fn has_births(&self) -> bool {
        self.has_births
    }

    /// Gives permission to change the directory.
    ///
    /// # Errors
    /// `EROFS` if it is read-only.
    pub(crate) fn writable(&self) -> Result<Writable, Errno> {
        match self.access {
            Access::ReadWrite => Ok(Writable(())),
            Access::ReadOnly => Err(Errno::ROFS),
        }
    }

    /// Opens what is at a path below the root, without following links, for nothing but a
    /// reference.
    pub(crate) fn reference(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.walk.open(&self.root, path)
    }

    /// Returns the status of an open file.
    pub(crate) fn status(&self, fd: &OwnedFd) -> Result<Status, Errno> {
        platform::status(fd).map(|status| self.normalized(status))
    }

    /// Returns the status of a file in an open directory. One that is hidden is `ENOENT`.
    pub(crate) fn status_in(&self, directory: &OwnedFd, name: &[u8]) -> Result<Status, Errno> {
        let status = platform::status_in(directory, name)?;
        if self.hides(status.identity.device, status.identity.inode) {
            return Err(Errno::NOENT);
        }
        Ok(self.normalized(status))
    }

    fn normalized(&self, mut status: Status) -> Status {
        if !self.has_births || status.identity.device != self.identity.device {
            status.identity.born = (0, 0);
        }
        status
    }

    /// Returns the number by which the guest identifies a file. The guest sees one device, whatever
    /// is mounted in the directory on the host.
    pub(crate) fn inode(&self, identity: Identity) -> u64 {
        self.inode_on(identity.device, identity.inode)
    }

    /// Returns the number by which the guest identifies an inode of a device.
    pub(crate) fn inode_on(&self, device: u64, inode: u64) -> u64 {
        if device == self.identity.device { inode } else { inode ^ device.rotate_right(24) }
    }

    /// Returns the attributes of a file, as the guest sees them.
    pub(crate) fn attributes(&self, status: Status) -> Attributes {
        Attributes::new(self.inode(status.identity), self.owner, status)
    }
}

/// Returns `true` for names that guests neither see nor use: castra's own directory, also in the
/// spellings that filesystems without upper and lower case take for it.
pub fn is_hidden(name: &[u8]) -> bool {
    const HIDDEN: &str = ".CASTRA";
    if name.is_ascii() {
        return name.eq_ignore_ascii_case(HIDDEN.as_bytes());
    }
    // Such filesystems ignore some characters, and have lower-case letters beyond ASCII.
    let Ok(name) = std::str::from_utf8(name) else { return false };
    name.chars().flat_map(char::to_uppercase).filter(char::is_ascii).eq(HIDDEN.chars())
}
