//! State of a server that its successor takes over, so that what the guest has open outlives the
//! process: its nodes and handles.
//!
//! It may have been in a guest's hands. So it names nothing that the guest could not open itself:
//! paths are resolved as those of requests are, and what they lead to must have the same identity.
//! Files that are open and have no name any more are lost.
//!
//! ```text
//! format, epoch, next node, next handle, identity of the root
//! number of nodes, (ID, identity, look-ups, number of names, (parent, name, 0)...)...
//! number of handles, (ID, node, rights)...
//! ```

use std::sync::Mutex;

use rustix::io::Errno;

use super::Server;
use crate::directory::is_hidden;
use crate::fields::Fields;
use crate::handles::{Handle, Handles, Open};
use crate::nodes::{Ids, Nodes, SavedNode};
use crate::platform::{self, Identity};
use crate::request::Opening;

/// Longest state, in bytes: that of some 200,000 nodes. A guest with more finds its open files
/// stale.
pub const MAX_STATE: usize = 16 * 1024 * 1024;

/// Number of this format.
const FORMAT: u32 = 1;

/// Rights of a handle.
const READ: u32 = 1;
const WRITE: u32 = 2;
const DIRECTORY: u32 = 4;

impl Server {
    /// Returns the state for a successor; `None` if it would be longer than [`MAX_STATE`].
    pub fn save(&self) -> Option<Vec<u8>> {
        let mut state = Vec::new();
        let (nodes, handles) = (self.nodes(), self.handles());
        put_u32(&mut state, FORMAT);
        let (ids, handle_ids) = (nodes.ids(), handles.ids());
        put_u64(&mut state, ids.epoch());
        put_u64(&mut state, ids.given());
        put_u64(&mut state, handle_ids.given());
        put_identity(&mut state, self.directory.identity());
        let count = state.len();
        put_u32(&mut state, 0);
        let mut written: u32 = 0;
        for node in nodes.named() {
            put_u64(&mut state, node.id);
            put_identity(&mut state, node.identity);
            put_u64(&mut state, node.lookups);
            put_u32(&mut state, u32::try_from(node.names.len()).ok()?);
            for (parent, name) in node.names {
                put_u64(&mut state, parent);
                state.extend_from_slice(name);
                state.push(0);
            }
            written += 1;
            if state.len() > MAX_STATE {
                return None;
            }
        }
        state[count..count + 4].copy_from_slice(&written.to_le_bytes());
        let handles = handles.all();
        put_u32(&mut state, u32::try_from(handles.len()).ok()?);
        for (id, node, rights) in handles {
            put_u64(&mut state, id);
            put_u64(&mut state, node);
            put_u32(&mut state, rights);
        }
        (state.len() <= MAX_STATE).then_some(state)
    }

    /// Takes over the state of a predecessor, as [`Self::save`] returned it. Must come before the
    /// first request.
    ///
    /// # Errors
    /// `EINVAL` if it is no such state, `ESTALE` if it is that of another directory. Then the guest
    /// finds what it has open stale.
    pub fn restore(&self, state: &[u8]) -> Result<(), Errno> {
        let mut fields = Fields(state);
        if state.len() > MAX_STATE || fields.u32()? != FORMAT {
            return Err(Errno::INVAL);
        }
        let epoch = fields.u64()?;
        let (nodes_given, handles_given) = (fields.u64()?, fields.u64()?);
        let root = self.directory.identity();
        let former = take_identity(&mut fields)?;
        if former.inode != root.inode || former.born != root.born {
            return Err(Errno::STALE);
        }
        let mut nodes = Nodes::new(Ids::continued(epoch, nodes_given)?, root);
        for _ in 0..fields.u32()? {
            let id = fields.u64()?;
            let mut identity = take_identity(&mut fields)?;
            // The number of a device may be another one after the host has booted again.
            if identity.device == former.device {
                identity.device = root.device;
            }
            let lookups = fields.u64()?;
            let count = fields.u32()?;
            let mut names = Vec::new();
            for _ in 0..count {
                let parent = fields.u64()?;
                let name = fields.name()?;
                if is_hidden(name) {
                    return Err(Errno::INVAL);
                }
                names.push((parent, name));
            }
            nodes.restore(SavedNode { id, identity, lookups, names })?;
        }
        *self.nodes() = nodes;
        self.drop_unseen();
        self.watch_known();
        let limit = self.handles().limit();
        *self.handles() = Handles::new(Ids::continued(epoch, handles_given)?, limit);
        for _ in 0..fields.u32()? {
            let (id, node, rights) = (fields.u64()?, fields.u64()?, fields.u32()?);
            let handle = self.reopen(node, rights);
            self.handles().restore(id, node, handle)?;
        }
        fields.end()
    }

    /// Drops restored directories through which a path would lead into a hidden one: a path is a
    /// row of names, and only its end is compared with what the guest knows.
    fn drop_unseen(&self) {
        if !self.directory.hides_any() {
            return;
        }
        let parents = self.nodes().parents();
        for parent in parents {
            if self.locate(parent).is_err() {
                self.nodes().forget(parent, u64::MAX);
            }
        }
    }

    /// Opens again what a handle had open.
    fn reopen(&self, node: u64, rights: u32) -> Result<Handle, Errno> {
        let open = if rights & DIRECTORY != 0 {
            let reference = self.locate_directory(node)?;
            Open::Directory(Mutex::new(platform::open_directory(&reference)?))
        } else {
            let (read, write) = (rights & READ != 0, rights & WRITE != 0);
            if !read && !write {
                // It was lost before.
                return Err(Errno::STALE);
            }
            let opening = Opening { read, write, truncate: false };
            let (reference, status) = self.locate(node)?;
            let fd = self.open_reference(&reference, &status, opening)?;
            Open::File { fd, read, write }
        };
        Ok(Handle { node, open })
    }
}

/// Returns the rights of a handle.
pub(crate) fn rights(open: &Open) -> u32 {
    match open {
        Open::Directory(_) => DIRECTORY,
        Open::File { read, write, .. } => {
            (if *read { READ } else { 0 }) | (if *write { WRITE } else { 0 })
        }
    }
}

fn put_u32(state: &mut Vec<u8>, number: u32) {
    state.extend_from_slice(&number.to_le_bytes());
}

fn put_u64(state: &mut Vec<u8>, number: u64) {
    state.extend_from_slice(&number.to_le_bytes());
}

fn put_identity(state: &mut Vec<u8>, identity: Identity) {
    let Identity { device, inode, kind, born } = identity;
    put_u64(state, device);
    put_u64(state, inode);
    put_u32(state, kind);
    put_u64(state, born.0.cast_unsigned());
    put_u32(state, born.1);
}

fn take_identity(fields: &mut Fields<'_>) -> Result<Identity, Errno> {
    let (device, inode) = (fields.u64()?, fields.u64()?);
    let kind = fields.u32()?;
    let born = (fields.u64()?.cast_signed(), fields.u32()?);
    Ok(Identity { device, inode, kind, born })
}
