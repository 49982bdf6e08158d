//! Open files, and the filesystem.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Notify, Server, out_of_descriptors};
use crate::MAX_WRITE;
use crate::abi::{FOPEN_KEEP_CACHE, PERMISSIONS, allocate, kind};
use crate::fields::MAX_NAME;
use crate::handles::{Handle, Open};
use crate::platform::{self, Status};
use crate::reply::{Attributes, Reply};
use crate::request::{Opening, Position, Sought};
use crate::watches::NameChange;

/// Longest range that is copied at once, in bytes. The guest asks again for the rest.
const MAX_COPY: u64 = 64 * 1024 * 1024;
/// Modes of `fallocate` that are served.
const ALLOCATIONS: u32 = allocate::KEEP_SIZE | allocate::PUNCH_HOLE | allocate::ZERO_RANGE;

impl Server {
    pub(super) fn open(
        &self,
        node: u64,
        opening: Opening,
        notify: Notify<'_>,
    ) -> Result<Reply, Errno> {
        if opening.changes() {
            self.directory.writable()?;
        }
        self.handles().check_room()?;
        let (reference, status) = self.locate(node)?;
        let own = if opening.changes() { self.own_change(node, &reference) } else { None };
        let fd = self.open_reference(&reference, &status, opening)?;
        drop(own);
        let contents = if opening.changes() { None } else { self.contents(node, &fd, &status) };
        let handle = self.add_file(node, fd, opening, contents.map(|it| (it, notify)))?;
        Ok(Reply::of(16, |reply| reply.handle(handle, FOPEN_KEEP_CACHE)))
    }

    pub(super) fn create(
        &self,
        parent: u64,
        name: &[u8],
        opening: Opening,
        exclusive: bool,
        mode: u32,
    ) -> Result<Reply, Errno> {
        let permission = self.directory.writable()?;
        super::names::check_new(name)?;
        self.handles().check_room()?;
        self.check_room_for_node()?;
        let directory = self.locate_directory(parent)?;
        let own = [(parent, name, NameChange::Created)];
        let created = self
            .as_own(&own, || platform::create_file(&directory, name, opening, mode, permission));
        let (fd, status) = match created {
            Ok(fd) => {
                let mut status = self.directory.status(&fd)?;
                if status.mode & PERMISSIONS != mode & PERMISSIONS {
                    platform::set_mode(&fd, &status, mode, permission)?;
                    status = self.directory.status(&fd)?;
                }
                (fd, status)
            }
            Err(Errno::EXIST) if !exclusive => {
                let reference =
                    platform::reference_in(&directory, name).map_err(out_of_descriptors)?;
                let status = self.directory.status(&reference)?;
                let fd = self.open_reference(&reference, &status, opening)?;
                let status = self.directory.status(&fd)?;
                (fd, status)
            }
            Err(errno) => return Err(out_of_descriptors(errno)),
        };
        let node = self.nodes().found(parent, name, &status)?;
        self.note_made(node, &status);
        let handle = match self.add_file(node, fd, opening, None) {
            Ok(handle) => handle,
            Err(errno) => {
                // The kernel does not learn the node's ID.
                self.nodes().forget(node, 1);
                return Err(errno);
            }
        };
        let attributes = self.directory.attributes(status);
        Ok(Reply::of(Attributes::ENTRY_BYTES + 16, |reply| {
            reply.entry(node, &attributes).handle(handle, FOPEN_KEEP_CACHE)
        }))
    }

    /// Opens a file that has been found. Nothing but regular files is opened: the kernel of the
    /// guest serves FIFOs and sockets itself.
    pub(super) fn open_reference(
        &self,
        reference: &OwnedFd,
        status: &Status,
        opening: Opening,
    ) -> Result<OwnedFd, Errno> {
        match status.kind() {
            kind::REGULAR => {}
            kind::DIRECTORY => return Err(Errno::ISDIR),
            kind::LINK => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let permission = match opening.changes() {
            true => Some(self.directory.writable()?),
            false => None,
        };
        if let Some(permission) = permission
            && status.mode & 0o6000 != 0
        {
            // The host's kernel does so at the first write, unless this process is root's.
            platform::set_mode(reference, status, status.mode, permission)?;
        }
        platform::open_file(reference, opening, permission).map_err(out_of_descriptors)
    }

    /// Adds the handle of an open file. The kernel gets the file's contents first, unless the file
    /// is open already: a READ may be under way, which locks what the contents are copied to.
    fn add_file(
        &self,
        node: u64,
        fd: OwnedFd,
        opening: Opening,
        contents: Option<(Vec<u8>, Notify<'_>)>,
    ) -> Result<u64, Errno> {
        let open = Open::File { fd, read: opening.read, write: opening.write };
        let mut handles = self.handles();
        if let Some((contents, notify)) = contents
            && !handles.has_file(node)
        {
            // With the lock held: the reply to the next OPEN of the file, and so the READ that may
            // follow it, comes after the contents.
            notify(contents);
        }
        handles.add(Handle { node, open })
    }

    /// Returns the handle of an open file.
    fn file(&self, node: u64, handle: u64) -> Result<Arc<Handle>, Errno> {
        self.handles().get(handle, node)
    }

    pub(super) fn read(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<Reply, Errno> {
        let handle = self.file(node, handle)?;
        let fd = handle.readable()?;
        let size = size.min(MAX_WRITE) as usize;
        let mut reply = Reply::with_room(size);
        while reply.len() < size {
            let at = offset.checked_add(reply.len() as u64).ok_or(Errno::INVAL)?;
            let missing = size - reply.len();
            let count = read_some(fd, reply.buffer(), missing, at)?;
            if count == 0 {
                break;
            }
        }
        Ok(reply)
    }

    pub(super) fn write(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        append: bool,
        data: &[u8],
    ) -> Result<Reply, Errno> {
        let permission = self.directory.writable()?;
        let handle = self.file(node, handle)?;
        let fd = handle.writable()?;
        let _own = self.own_change(node, fd);
        let mut written = 0;
        while written < data.len() {
            let at = offset.checked_add(written as u64).ok_or(Errno::FBIG)?;
            match platform::write(fd, &data[written..], at, append, permission) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(errno) if written == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        Ok(Reply::of(8, |reply| reply.u32(written).u32(0)))
    }

    pub(super) fn sync(&self, node: u64, handle: u64, data_only: bool) -> Result<Reply, Errno> {
        let handle = self.file(node, handle)?;
        let sync = |fd: &OwnedFd| match data_only {
            true => rustix::fs::fdatasync(fd),
            false => rustix::fs::fsync(fd),
        };
        match &handle.open {
            Open::File { fd, .. } => sync(fd)?,
            Open::Directory(fd) => {
                let fd = fd.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                sync(&fd)?;
            }
        }
        Ok(Reply::empty())
    }

    pub(super) fn allocate(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<Reply, Errno> {
        let permission = self.directory.writable()?;
        if mode & !ALLOCATIONS != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let handle = self.file(node, handle)?;
        let fd = handle.writable()?;
        let _own = self.own_change(node, fd);
        platform::allocate(fd, mode, offset, length, permission)?;
        Ok(Reply::empty())
    }

    pub(super) fn seek(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        sought: Sought,
    ) -> Result<Reply, Errno> {
        let handle = self.file(node, handle)?;
        let Open::File { fd, .. } = &handle.open else { return Err(Errno::BADF) };
        let found = platform::seek(fd, offset, sought)?;
        Ok(Reply::of(8, |reply| reply.u64(found)))
    }

    pub(super) fn copy(&self, from: Position, to: Position, length: u64) -> Result<Reply, Errno> {
        let permission = self.directory.writable()?;
        let source = self.file(from.node, from.handle)?;
        let target = self.file(to.node, to.handle)?;
        let written = target.writable()?;
        let _own = self.own_change(to.node, written);
        let copied = platform::copy(
            (source.readable()?, from.offset),
            (written, to.offset),
            usize::try_from(length.min(MAX_COPY)).unwrap_or(usize::MAX),
            permission,
        )?;
        let copied = u32::try_from(copied).unwrap_or(u32::MAX);
        Ok(Reply::of(8, |reply| reply.u32(copied).u32(0)))
    }

    pub(super) fn statistics(&self) -> Result<Reply, Errno> {
        let statistics = rustix::fs::fstatvfs(self.directory.root())?;
        let number = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Reply::of(80, |reply| {
            reply
                .u64(statistics.f_blocks)
                .u64(statistics.f_bfree)
                .u64(statistics.f_bavail)
                .u64(statistics.f_files)
                .u64(statistics.f_ffree)
                .u32(number(statistics.f_bsize))
                .u32(MAX_NAME as u32)
                .u32(number(statistics.f_frsize))
                .zeros(28)
        }))
    }
}

/// Appends at most this many bytes of a file to a buffer, and returns their number.
fn read_some(fd: &OwnedFd, buffer: &mut Vec<u8>, size: usize, offset: u64) -> Result<usize, Errno> {
    // The capacity of the buffer may be larger than what was asked for.
    let capacity = buffer.capacity() - buffer.len();
    let count = if capacity <= size {
        rustix::io::retry_on_intr(|| {
            rustix::io::pread(fd, rustix::buffer::spare_capacity(buffer), offset)
        })?
    } else {
        let start = buffer.len();
        buffer.resize(start + size, 0);
        let count =
            rustix::io::retry_on_intr(|| rustix::io::pread(fd, &mut buffer[start..], offset));
        buffer.truncate(start + count.unwrap_or(0));
        count?
    };
    Ok(count)
}

impl Handle {
    fn readable(&self) -> Result<&OwnedFd, Errno> {
        match &self.open {
            Open::File { fd, read: true, .. } => Ok(fd),
            Open::File { .. } => Err(Errno::BADF),
            Open::Directory(_) => Err(Errno::ISDIR),
        }
    }

    fn writable(&self) -> Result<&OwnedFd, Errno> {
        match &self.open {
            Open::File { fd, write: true, .. } => Ok(fd),
            _ => Err(Errno::BADF),
        }
    }
}
