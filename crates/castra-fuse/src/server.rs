//! The server: from operations to replies.

mod ahead;
mod attributes;
mod batch;
mod changes;
mod departed;
mod files;
mod listing;
mod names;
mod pretence;
mod state;

pub(crate) use ahead::Version;
pub use changes::{Change, ChangeKind, Changes, MAX_CHANGES};
pub use pretence::NUDGER;
pub use state::MAX_STATE;
pub(crate) use state::rights;

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::MAX_WRITE;
use crate::abi::{MAJOR, MINOR, OLDEST_MINOR, feature, kind, opcode};
use crate::directory::Directory;
use crate::handles::Handles;
use crate::nodes::{Ids, Nodes};
use crate::platform::{self, Status};
use crate::reply::{Reply, failure};
use crate::request::{Header, Operation, forgotten};
use crate::watches::Watches;
use departed::{Departed, MAX_DEPARTED};
use pretence::Scripts;

/// Maximum number of handles.
const MAX_HANDLES: u64 = 16 * 1024;
/// Number of descriptors that are left to other purposes than handles.
const SPARE_DESCRIPTORS: u64 = 64 + MAX_DEPARTED as u64;
/// Number of requests that the kernel has in flight for others than waiting processes, such as
/// read-ahead.
const MAX_BACKGROUND: u16 = 32;

/// Receiver of notifications for the kernel, as they are to be written to `/dev/fuse`.
pub type Notify<'a> = &'a dyn Fn(Vec<u8>);

/// Server of one directory to one guest.
///
/// Nothing is negotiated that answers depend on. So a new server can take over the connection of an
/// earlier one. If that was killed, its IDs are answered with `ESTALE`, and Linux looks up paths
/// again; with its [state](Self::save), they stay what they were.
#[derive(Debug)]
pub struct Server {
    pub(crate) directory: Directory,
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
    departed: Mutex<Departed>,
    /// Directories that are watched, if any shall be.
    watches: Option<Mutex<Watches>>,
    scripts: Mutex<Scripts>,
}

impl Server {
    /// Returns a server of a directory.
    pub fn new(directory: Directory) -> Self {
        let spare = platform::descriptor_limit().saturating_sub(SPARE_DESCRIPTORS);
        let limit = spare.clamp(16, MAX_HANDLES);
        Self::with_limit(directory, usize::try_from(limit).unwrap_or(usize::MAX))
    }

    pub(crate) fn with_limit(directory: Directory, max_handles: usize) -> Self {
        let epoch = platform::epoch();
        let nodes = Nodes::new(Ids::new(epoch), directory.identity());
        let handles = Handles::new(Ids::new(epoch), max_handles);
        let scripts = Mutex::new(Scripts::new());
        let (nodes, handles) = (Mutex::new(nodes), Mutex::new(handles));
        let departed = Mutex::default();
        Self { directory, nodes, handles, departed, watches: None, scripts }
    }

    /// Answers one raw request: header and body, as read from `/dev/fuse`. Several threads may call
    /// it at once. Returns `None` if the request has no answer, as FORGET and INTERRUPT, or no
    /// complete header.
    pub fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        self.answer_with(request, &|_| ())
    }

    /// Answers one raw request as [`Self::answer`] does, and passes on notifications that the
    /// kernel should get before the reply: the contents of small files, with which it need not send
    /// a READ.
    ///
    /// They may be written to `/dev/fuse` by the thread that writes the replies, if it writes each
    /// of them in the order in which they are passed on and the replies are returned. Then none
    /// waits for a page that a READ without a reply has locked.
    pub fn answer_with(&self, request: &[u8], notify: Notify<'_>) -> Option<Vec<u8>> {
        let (header, body) = Header::parse(request)?;
        let is_whole = usize::try_from(header.length) == Ok(request.len());
        if !header.wants_reply() {
            if is_whole && matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
                self.forget(&header, body);
            }
            return None;
        }
        let operation = if is_whole { Operation::parse(&header, body) } else { Err(Errno::INVAL) };
        let answer = operation.and_then(|operation| match header.user {
            NUDGER => self.pretend(&header, &operation),
            _ => self.perform(header.node, operation, notify),
        });
        Some(match answer {
            Ok(reply) => reply.finish(header.unique),
            Err(errno) => failure(errno, header.unique),
        })
    }

    fn perform(
        &self,
        node: u64,
        operation: Operation<'_>,
        notify: Notify<'_>,
    ) -> Result<Reply, Errno> {
        match operation {
            Operation::Initialize { major, minor, features } => {
                self.initialize(major, minor, features)
            }
            Operation::Destroy => {
                self.forget_all();
                Ok(Reply::empty())
            }
            Operation::Lookup { name } => self.look_up(node, name),
            Operation::GetAttributes { handle } => self.get_attributes(node, handle),
            Operation::SetAttributes(changes) => self.set_attributes(node, &changes),
            Operation::ReadLink => self.read_link(node),
            Operation::SymbolicLink { name, target } => self.make_link(node, name, target),
            Operation::MakeNode { name, made, mode } => self.make_node(node, name, made, mode),
            Operation::MakeDirectory { name, mode } => self.make_directory(node, name, mode),
            Operation::Unlink { name } => self.unlink(node, name, false),
            Operation::RemoveDirectory { name } => self.unlink(node, name, true),
            Operation::Rename { name, new_parent, new_name, replacing } => {
                self.rename((node, name), (new_parent, new_name), replacing)
            }
            Operation::Link { file, name } => self.link(file, node, name),
            Operation::Open(opening) => self.open(node, opening, notify),
            Operation::Create { name, opening, exclusive, mode } => {
                self.create(node, name, opening, exclusive, mode)
            }
            Operation::Read { handle, offset, size } => self.read(node, handle, offset, size),
            Operation::Write { handle, offset, append, data } => {
                self.write(node, handle, offset, append, data)
            }
            Operation::Statistics => self.statistics(),
            Operation::Release { handle } => {
                self.handles().remove(handle);
                Ok(Reply::empty())
            }
            Operation::Sync { handle, data_only } => self.sync(node, handle, data_only),
            Operation::OpenDirectory => self.open_directory(node),
            Operation::ReadDirectory { handle, offset, size, with_attributes } => {
                self.read_directory(node, handle, offset, size, with_attributes)
            }
            Operation::Access { mask } => self.access(node, mask),
            Operation::Allocate { handle, offset, length, mode } => {
                self.allocate(node, handle, offset, length, mode)
            }
            Operation::Seek { handle, offset, sought } => self.seek(node, handle, offset, sought),
            Operation::Copy { from, to, length } => self.copy(from, to, length),
        }
    }

    fn initialize(&self, major: u32, minor: u32, features: u32) -> Result<Reply, Errno> {
        if major < MAJOR || major == MAJOR && minor < OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        let mut wanted = feature::ASYNC_READ
            | feature::ATOMIC_O_TRUNC
            | feature::BIG_WRITES
            | feature::AUTO_INVAL_DATA
            | feature::DO_READDIRPLUS
            | feature::READDIRPLUS_AUTO
            | feature::ASYNC_DIO
            | feature::PARALLEL_DIROPS
            | feature::HANDLE_KILLPRIV
            | feature::HANDLE_KILLPRIV_V2
            | feature::MAX_PAGES;
        if self.directory.has_births() {
            // A target never changes, and another link is another node.
            wanted |= feature::CACHE_SYMLINKS;
        }
        // To a later major version, the kernel sends another INIT with this one.
        Ok(Reply::of(64, |reply| {
            reply
                .u32(MAJOR)
                .u32(MINOR)
                // The kernel takes the lesser of this and its own, which may be raised meanwhile.
                .u32(MAX_WRITE)
                .u32(features & wanted)
                .u16(MAX_BACKGROUND)
                .u16(MAX_BACKGROUND / 4 * 3)
                .u32(MAX_WRITE)
                // Times have this many nanoseconds.
                .u32(1)
                .u16(u16::try_from(MAX_WRITE / 4096).unwrap_or(u16::MAX))
                .u16(0)
                // Reserved, or of features that are not wanted.
                .zeros(32)
        }))
    }

    fn forget(&self, header: &Header, body: &[u8]) {
        let forgotten = forgotten(header, body);
        let mut nodes = self.nodes();
        for (node, lookups) in forgotten {
            nodes.forget(node, lookups);
        }
        self.departed().retain(|node| nodes.knows(node));
    }

    pub(crate) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn departed(&self) -> MutexGuard<'_, Departed> {
        self.departed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a node as a reference.
    ///
    /// # Errors
    /// `ESTALE` if none of its names leads to its file any more, unless the guest has it open or
    /// has just taken its last name.
    fn locate(&self, node: u64) -> Result<(OwnedFd, Status), Errno> {
        let wanted = self.nodes().wanted(node)?;
        for path in &wanted.paths {
            let reference = match self.directory.reference(path) {
                Ok(reference) => reference,
                // No such file, or a link or something else where a directory was.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
                Err(errno) => return Err(out_of_descriptors(errno)),
            };
            let status = self.directory.status(&reference)?;
            let Status { identity, .. } = &status;
            if self.directory.hides(identity.device, identity.inode) {
                continue;
            }
            if *identity == wanted.identity {
                return Ok((reference, status));
            }
        }
        let reference = self.nameless(node)?;
        let status = self.directory.status(&reference)?;
        // One that has a name is elsewhere, perhaps outside of the directory.
        if status.links == 0 { Ok((reference, status)) } else { Err(Errno::STALE) }
    }

    /// Forgets all nodes and handles: the guest's kernel is another one.
    pub fn forget_all(&self) {
        self.handles().clear();
        self.nodes().clear();
        self.departed().clear();
        if let Some(mut watches) = self.watches() {
            watches.clear();
        }
        self.watch_known();
    }

    /// Opens a node that must be a directory, as a reference.
    fn locate_directory(&self, node: u64) -> Result<OwnedFd, Errno> {
        let (reference, status) = self.locate(node)?;
        if status.kind() == kind::DIRECTORY { Ok(reference) } else { Err(Errno::NOTDIR) }
    }
}

/// Returns what a guest gets to know of a lack of descriptors: its process is not at fault.
fn out_of_descriptors(errno: Errno) -> Errno {
    if errno == Errno::MFILE { Errno::NFILE } else { errno }
}
