//! A guest: requests in the kernel's layout, and what it reads in replies.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tempfile::TempDir;

use crate::abi::{ROOT, opcode};
use crate::{Access, Directory, Owner, Server};

pub(super) const OWNER: Owner = Owner { uid: 1234, gid: 5678 };

/// Body of a request.
#[derive(Debug, Default)]
pub(super) struct Body(pub(super) Vec<u8>);

impl Body {
    pub(super) fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn name(mut self, name: impl AsRef<[u8]>) -> Self {
        self.0.extend(name.as_ref());
        self.0.push(0);
        self
    }
}

pub(super) fn body() -> Body {
    Body::default()
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Attributes in a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) modified: (u64, u32),
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) owner: (u32, u32),
    pub(super) device: u32,
}

impl Attributes {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        Self {
            inode: u64_at(bytes, 0),
            size: u64_at(bytes, 8),
            modified: (u64_at(bytes, 32), u32_at(bytes, 52)),
            mode: u32_at(bytes, 60),
            links: u32_at(bytes, 64),
            owner: (u32_at(bytes, 68), u32_at(bytes, 72)),
            device: u32_at(bytes, 76),
        }
    }
}

/// A node in a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) node: u64,
    pub(super) attributes: Attributes,
}

impl Entry {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        assert!(u64_at(bytes, 16) == 1 && u32_at(bytes, 32) == 0, "names are valid for a second");
        Self { node: u64_at(bytes, 0), attributes: Attributes::parse(&bytes[40..]) }
    }
}

/// Error number of a failed request.
pub(super) type Error = i32;

pub(super) const EPERM: Error = 1;
pub(super) const ENOENT: Error = 2;
pub(super) const ENXIO: Error = 6;
pub(super) const EBADF: Error = 9;
pub(super) const ENOMEM: Error = 12;
pub(super) const EEXIST: Error = 17;
pub(super) const ENOTDIR: Error = 20;
pub(super) const EISDIR: Error = 21;
pub(super) const EINVAL: Error = 22;
pub(super) const ENFILE: Error = 23;
pub(super) const EROFS: Error = 30;
pub(super) const ENAMETOOLONG: Error = 36;
pub(super) const ENOSYS: Error = 38;
pub(super) const ENOTEMPTY: Error = 39;
pub(super) const EPROTO: Error = 71;
pub(super) const EOPNOTSUPP: Error = 95;
pub(super) const ESTALE: Error = 116;

/// A guest with a server and a directory of the host, which is gone afterwards.
pub(super) struct Guest {
    pub(super) server: Server,
    /// The served directory, in a directory of its own.
    pub(super) host: PathBuf,
    around: TempDir,
    unique: AtomicU64,
    /// User and group of the process that makes requests.
    process: (AtomicU32, AtomicU32),
}

impl Guest {
    pub(super) fn new() -> Self {
        Self::with(Access::ReadWrite, |_| {}, 1000)
    }

    pub(super) fn read_only(fill: impl FnOnce(&Path)) -> Self {
        Self::with(Access::ReadOnly, fill, 1000)
    }

    pub(super) fn with(access: Access, fill: impl FnOnce(&Path), max_handles: usize) -> Self {
        let around = tempfile::tempdir().expect("a directory");
        let host = around.path().join("served");
        std::fs::create_dir(&host).expect("made");
        fill(&host);
        let directory = Directory::open(&host, access, OWNER).expect("opened");
        let server = Server::with_limit(directory, max_handles);
        let process = Default::default();
        Self { server, host, around, unique: AtomicU64::new(1), process }
    }

    /// Lets the server walk as on kernels before 5.6.
    pub(super) fn by_components() -> Self {
        let mut guest = Self::new();
        guest.server.directory.walk_by_components();
        guest
    }

    /// Starts another server of the same directory.
    pub(super) fn restart(&mut self) {
        let directory = Directory::open(&self.host, Access::ReadWrite, OWNER).expect("opened");
        self.server = Server::with_limit(directory, 1000);
    }

    /// Returns a path beside the served directory.
    pub(super) fn outside(&self, name: &str) -> PathBuf {
        self.around.path().join(name)
    }

    pub(super) fn call(&self, opcode: u32, node: u64, body: Body) -> Result<Vec<u8>, Error> {
        let unique = self.unique.fetch_add(2, Ordering::Relaxed);
        let mut request = request(opcode, unique, node, &body.0);
        let (user, group) = &self.process;
        request[24..28].copy_from_slice(&user.load(Ordering::Relaxed).to_le_bytes());
        request[28..32].copy_from_slice(&group.load(Ordering::Relaxed).to_le_bytes());
        let reply = self.server.answer(&request).expect("an answer");
        assert_eq!(u32_at(&reply, 0) as usize, reply.len());
        assert_eq!(u64_at(&reply, 8), unique);
        match u32_at(&reply, 4).cast_signed() {
            0 => Ok(reply[16..].to_vec()),
            error => {
                assert!(error < 0 && reply.len() == 16, "{reply:?}");
                Err(-error)
            }
        }
    }

    /// Makes requests as a process of this user and group.
    pub(super) fn act_as(&self, user: u32, group: u32) {
        self.process.0.store(user, Ordering::Relaxed);
        self.process.1.store(group, Ordering::Relaxed);
    }

    /// Looks up a name. A negative entry is `ENOENT`, as it is for the kernel.
    pub(super) fn look_up(&self, parent: u64, name: impl AsRef<[u8]>) -> Result<Entry, Error> {
        let entry = Entry::parse(&self.call(opcode::LOOKUP, parent, body().name(name))?);
        if entry.node == 0 { Err(ENOENT) } else { Ok(entry) }
    }

    /// Looks up each component of a path.
    pub(super) fn walk(&self, path: &str) -> Result<Entry, Error> {
        let root = self.get_attributes(ROOT)?;
        path.split('/')
            .filter(|name| !name.is_empty())
            .try_fold(Entry { node: ROOT, attributes: root }, |entry, name| {
                self.look_up(entry.node, name)
            })
    }

    pub(super) fn get_attributes(&self, node: u64) -> Result<Attributes, Error> {
        let reply = self.call(opcode::GETATTR, node, body().u32(0).u32(0).u64(0))?;
        Ok(Attributes::parse(&reply[16..]))
    }

    /// Sets attributes: flags, size, modification time and mode.
    pub(super) fn set(
        &self,
        node: u64,
        valid: u32,
        (size, handle): (u64, u64),
        (seconds, nanoseconds): (u64, u32),
        (mode, owner): (u32, (u32, u32)),
    ) -> Result<Attributes, Error> {
        let request = body().u32(valid).u32(0).u64(handle).u64(size).u64(0).u64(0).u64(seconds);
        let request = request.u64(0).u32(0).u32(nanoseconds).u32(0).u32(mode).u32(0);
        let request = request.u32(owner.0).u32(owner.1).u32(0);
        let reply = self.call(opcode::SETATTR, node, request)?;
        Ok(Attributes::parse(&reply[16..]))
    }

    pub(super) fn set_mode(&self, node: u64, mode: u32) -> Result<Attributes, Error> {
        self.set(node, 1, (0, 0), (0, 0), (mode, (0, 0)))
    }

    pub(super) fn truncate(&self, node: u64, size: u64) -> Result<Attributes, Error> {
        self.set(node, 8, (size, 0), (0, 0), (0, (0, 0)))
    }

    pub(super) fn create(
        &self,
        parent: u64,
        name: impl AsRef<[u8]>,
        flags: u32,
        mode: u32,
    ) -> Result<(Entry, u64), Error> {
        let request = body().u32(flags).u32(mode).u32(0o022).u32(0).name(name);
        let reply = self.call(opcode::CREATE, parent, request)?;
        Ok((Entry::parse(&reply), u64_at(&reply, 128)))
    }

    pub(super) fn open(&self, node: u64, flags: u32) -> Result<u64, Error> {
        let reply = self.call(opcode::OPEN, node, body().u32(flags).u32(0))?;
        assert_eq!(u32_at(&reply, 8), 2, "the kernel keeps its cache");
        Ok(u64_at(&reply, 0))
    }

    pub(super) fn read(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> Result<Vec<u8>, Error> {
        let request = body().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
        self.call(opcode::READ, node, request)
    }

    pub(super) fn write(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        flags: u32,
        data: &[u8],
    ) -> Result<u32, Error> {
        let request = body().u64(handle).u64(offset).u32(data.len() as u32).u32(0).u64(0);
        let mut request = request.u32(flags).u32(0);
        request.0.extend(data);
        self.call(opcode::WRITE, node, request).map(|reply| u32_at(&reply, 0))
    }

    pub(super) fn release(&self, node: u64, handle: u64) -> Result<(), Error> {
        let request = body().u64(handle).u32(0).u32(0).u64(0);
        self.call(opcode::RELEASE, node, request).map(|_| ())
    }

    pub(super) fn make_directory(
        &self,
        parent: u64,
        name: impl AsRef<[u8]>,
    ) -> Result<Entry, Error> {
        let request = body().u32(0o755).u32(0o022).name(name);
        self.call(opcode::MKDIR, parent, request).map(|reply| Entry::parse(&reply))
    }

    pub(super) fn make_link(&self, parent: u64, name: &str, target: &str) -> Result<Entry, Error> {
        let request = body().name(name).name(target);
        self.call(opcode::SYMLINK, parent, request).map(|reply| Entry::parse(&reply))
    }

    pub(super) fn link(&self, file: u64, parent: u64, name: &str) -> Result<Entry, Error> {
        let request = body().u64(file).name(name);
        self.call(opcode::LINK, parent, request).map(|reply| Entry::parse(&reply))
    }

    pub(super) fn unlink(&self, parent: u64, name: impl AsRef<[u8]>) -> Result<(), Error> {
        self.call(opcode::UNLINK, parent, body().name(name)).map(|_| ())
    }

    pub(super) fn remove_directory(
        &self,
        parent: u64,
        name: impl AsRef<[u8]>,
    ) -> Result<(), Error> {
        self.call(opcode::RMDIR, parent, body().name(name)).map(|_| ())
    }

    pub(super) fn rename(
        &self,
        from: (u64, &str),
        to: (u64, &str),
        flags: u32,
    ) -> Result<(), Error> {
        let request = body().u64(to.0).u32(flags).u32(0).name(from.1).name(to.1);
        self.call(opcode::RENAME2, from.0, request).map(|_| ())
    }

    pub(super) fn forget(&self, node: u64, lookups: u64) {
        let request = request(opcode::FORGET, 0, node, &body().u64(lookups).0);
        assert!(self.server.answer(&request).is_none());
    }

    pub(super) fn open_directory(&self, node: u64) -> Result<u64, Error> {
        let reply = self.call(opcode::OPENDIR, node, body().u32(0).u32(0))?;
        Ok(u64_at(&reply, 0))
    }

    /// Lists a directory in replies of this size, and returns names with inode numbers, sorted.
    pub(super) fn list(&self, node: u64, size: u32) -> Result<Vec<(Vec<u8>, u64)>, Error> {
        let handle = self.open_directory(node)?;
        let (mut entries, mut offset) = (Vec::new(), 0);
        loop {
            let request = body().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
            let reply = self.call(opcode::READDIR, node, request)?;
            assert!(reply.len() <= size as usize);
            let mut rest = reply.as_slice();
            if rest.is_empty() {
                break;
            }
            while !rest.is_empty() {
                let length = u32_at(rest, 16) as usize;
                entries.push((rest[24..24 + length].to_vec(), u64_at(rest, 0)));
                offset = u64_at(rest, 8);
                rest = &rest[(24 + length).next_multiple_of(8)..];
            }
        }
        self.release(node, handle)?;
        entries.sort();
        Ok(entries)
    }

    /// Returns the names in a directory, without those that every directory has.
    pub(super) fn names(&self, node: u64) -> Result<Vec<String>, Error> {
        let names = self.list(node, 4096)?.into_iter();
        let names = names.map(|(name, _)| String::from_utf8(name).expect("text"));
        Ok(names.filter(|name| name != "." && name != "..").collect())
    }
}

pub(super) fn request(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(40 + body.len()).expect("short");
    let header = self::body().u32(length).u32(opcode).u64(unique).u64(node);
    let mut request = header.u32(0).u32(0).u32(0).u32(0).0;
    request.extend(body);
    request
}
