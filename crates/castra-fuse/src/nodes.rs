//! Nodes: the files that the guest's kernel knows by ID, and where they were found.

mod changes;

pub(crate) use changes::{Named, Names, Origin};

use std::collections::{HashMap, HashSet};

use rustix::io::Errno;

use crate::abi::{ROOT, kind};
use crate::platform::{Identity, Status};
use crate::server::Version;

/// Most memory that nodes may take, in bytes: those of some 700,000 files with usual names. The
/// kernel forgets nodes when its own memory becomes scarce.
const MAX_BYTES: usize = 256 << 20;
/// Memory of a node in both tables, in bytes.
const NODE_BYTES: usize = 320;
/// Memory of a place, in bytes without its name.
const PLACE_BYTES: usize = 64;
/// Maximum number of names of a file with hard links that are remembered.
const MAX_PLACES: usize = 8;
/// Maximum depth of a directory.
const MAX_DEPTH: usize = 2048;

/// Source of IDs that no other server gives: the upper 24 bits are chosen at random.
#[derive(Debug)]
pub(crate) struct Ids {
    epoch: u64,
    next: u64,
}

impl Ids {
    const COUNTER_BITS: u32 = 40;

    /// Returns a source with this epoch, of which 23 bits count.
    pub(crate) fn new(epoch: u32) -> Self {
        // Never zero, so that the root's ID is in no epoch.
        let epoch = u64::from(epoch >> 9 | 1 << 23);
        Self { epoch, next: 1 }
    }

    /// Returns the source of a server that takes over from another one, which has given this many.
    ///
    /// # Errors
    /// `EINVAL` if there is no such epoch or number.
    pub(crate) fn continued(epoch: u64, given: u64) -> Result<Self, Errno> {
        let is_epoch = epoch >> 23 == 1;
        let is_number = given > 0 && given >> Self::COUNTER_BITS == 0;
        if is_epoch && is_number { Ok(Self { epoch, next: given }) } else { Err(Errno::INVAL) }
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Returns the number of the ID that comes next.
    pub(crate) fn given(&self) -> u64 {
        self.next
    }

    /// Returns `true` if the ID was given before now.
    pub(crate) fn has_given(&self, id: u64) -> bool {
        let number = id & ((1 << Self::COUNTER_BITS) - 1);
        self.is_own(id) && number > 0 && number < self.next
    }

    /// Returns the next ID. At a million a second, they last for twelve days, and then there are
    /// none.
    pub(crate) fn next(&mut self) -> Result<u64, Errno> {
        if self.next >> Self::COUNTER_BITS != 0 {
            return Err(Errno::NFILE);
        }
        let id = self.epoch << Self::COUNTER_BITS | self.next;
        self.next += 1;
        Ok(id)
    }

    /// Returns `true` if the ID was given by this server.
    pub(crate) fn is_own(&self, id: u64) -> bool {
        id >> Self::COUNTER_BITS == self.epoch
    }
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    parent: u64,
    name: Box<[u8]>,
}

impl Place {
    fn new(parent: u64, name: &[u8]) -> Self {
        Self { parent, name: name.into() }
    }

    fn is(&self, parent: u64, name: &[u8]) -> bool {
        self.parent == parent && *self.name == *name
    }
}

#[derive(Debug)]
struct Node {
    identity: Identity,
    lookups: u64,
    /// Names under which the file was found, the latest last. A directory has one.
    places: Vec<Place>,
    /// Version of the contents that the kernel was sent last.
    sent: Option<Version>,
    /// State in which the guest's last change left it.
    made: Option<Version>,
    /// Number of changes by the guest that are under way.
    changing: u32,
}

/// A node that outlives its server, with parents and names.
#[derive(Debug)]
pub(crate) struct SavedNode<'a> {
    pub(crate) id: u64,
    pub(crate) identity: Identity,
    pub(crate) lookups: u64,
    pub(crate) names: Vec<(u64, &'a [u8])>,
}

/// A node, and the paths below the root at which its file may be.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) identity: Identity,
    pub(crate) paths: Vec<Vec<u8>>,
}

/// Table of nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    ids: Ids,
    by_id: HashMap<u64, Node>,
    by_identity: HashMap<Identity, u64>,
    bytes: usize,
    max_bytes: usize,
}

impl Nodes {
    /// Returns a table with the root.
    pub(crate) fn new(ids: Ids, root: Identity) -> Self {
        let node = Node { lookups: 1, ..Node::new(root) };
        Self {
            ids,
            by_id: HashMap::from([(ROOT, node)]),
            by_identity: HashMap::from([(root, ROOT)]),
            bytes: NODE_BYTES,
            max_bytes: MAX_BYTES,
        }
    }

    pub(crate) fn ids(&self) -> &Ids {
        &self.ids
    }

    /// Returns all nodes but the root and those whose file has no name any more.
    pub(crate) fn named(&self) -> impl Iterator<Item = SavedNode<'_>> {
        self.by_identity.iter().filter(|(_, id)| **id != ROOT).filter_map(|(identity, id)| {
            let node = self.by_id.get(id)?;
            let names = node.places.iter().map(|place| (place.parent, &*place.name)).collect();
            Some(SavedNode { id: *id, identity: *identity, lookups: node.lookups, names })
        })
    }

    /// Returns the nodes that others have as parents.
    pub(crate) fn parents(&self) -> HashSet<u64> {
        let places = self.by_id.values().flat_map(|node| &node.places);
        places.map(|place| place.parent).filter(|parent| *parent != ROOT).collect()
    }

    /// Adds a node of an earlier server.
    ///
    /// # Errors
    /// `EINVAL` if no server can have had it beside the others, `ENOMEM` if there is no room.
    pub(crate) fn restore(&mut self, saved: SavedNode<'_>) -> Result<(), Errno> {
        let SavedNode { id, identity, lookups, names } = saved;
        let is_new = self.ids.has_given(id)
            && !self.by_id.contains_key(&id)
            && !self.by_identity.contains_key(&identity);
        if !is_new || names.len() > MAX_PLACES {
            return Err(Errno::INVAL);
        }
        if self.is_full() {
            return Err(Errno::NOMEM);
        }
        let places = names.into_iter().map(|(parent, name)| Place::new(parent, name)).collect();
        let node = Node { lookups, places, ..Node::new(identity) };
        self.bytes += node.cost();
        self.by_id.insert(id, node);
        self.by_identity.insert(identity, id);
        Ok(())
    }

    /// Returns `true` if no node can be added.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= self.max_bytes
    }

    /// Counts a look-up that found a file, and returns its ID.
    pub(crate) fn found(
        &mut self,
        parent: u64,
        name: &[u8],
        status: &Status,
    ) -> Result<u64, Errno> {
        let is_full = self.is_full();
        if let Some(id) = self.by_identity.get(&status.identity).copied() {
            self.edit(id, |node| {
                node.lookups = node.lookups.saturating_add(1);
                if id != ROOT {
                    // Without room for all names of a file, the latest is enough.
                    node.put(Place::new(parent, name), if is_full { 1 } else { status.links });
                }
            });
            return Ok(id);
        }
        if is_full {
            return Err(Errno::NOMEM);
        }
        let id = self.ids.next()?;
        let places = vec![Place::new(parent, name)];
        let node = Node { lookups: 1, places, ..Node::new(status.identity) };
        self.bytes += node.cost();
        self.by_id.insert(id, node);
        self.by_identity.insert(status.identity, id);
        Ok(id)
    }

    /// Returns `true` if the kernel knows a node.
    pub(crate) fn knows(&self, id: u64) -> bool {
        self.by_id.contains_key(&id)
    }

    /// Returns the node of a file.
    pub(crate) fn id_of(&self, identity: Identity) -> Option<u64> {
        self.by_identity.get(&identity).copied()
    }

    /// Notes that the kernel is sent this version of a file's contents. Returns `false` if it has
    /// been sent it before, or does not know the file.
    pub(crate) fn note_sent(&mut self, id: u64, version: Version) -> bool {
        self.by_id.get_mut(&id).is_some_and(|node| node.sent.replace(version) != Some(version))
    }

    /// Takes back this many look-ups of a node, and drops it after the last.
    pub(crate) fn forget(&mut self, id: u64, lookups: u64) {
        if id == ROOT {
            return;
        }
        let Some(node) = self.by_id.get_mut(&id) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups == 0 {
            let identity = node.identity;
            self.bytes -= node.cost();
            self.by_id.remove(&id);
            self.disown(id, identity);
            if self.by_id.capacity() > 4096 && self.by_id.len() < self.by_id.capacity() / 8 {
                self.by_id.shrink_to(self.by_id.len() * 2);
                self.by_identity.shrink_to(self.by_identity.len() * 2);
            }
        }
    }

    /// Drops all nodes but the root.
    pub(crate) fn clear(&mut self) {
        self.by_id.retain(|id, _| *id == ROOT);
        self.by_identity.retain(|_, id| *id == ROOT);
        self.bytes = NODE_BYTES;
    }

    /// Notes that a file has lost a name. With its last name goes its identity, which the next
    /// file may have.
    pub(crate) fn unlinked(&mut self, parent: u64, name: &[u8], status: &Status) {
        let Some(id) = self.by_identity.get(&status.identity).copied() else { return };
        self.edit(id, |node| node.places.retain(|place| !place.is(parent, name)));
        if status.links <= 1 || status.kind() == kind::DIRECTORY {
            self.disown(id, status.identity);
        }
    }

    /// Notes that a file has another name.
    pub(crate) fn moved(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), status: &Status) {
        let Some(id) = self.by_identity.get(&status.identity).copied() else { return };
        self.edit(id, |node| {
            node.places.retain(|place| !place.is(from.0, from.1));
            node.put(Place::new(to.0, to.1), status.links);
        });
    }

    /// Changes a node, and keeps the account of memory.
    fn edit(&mut self, id: u64, edit: impl FnOnce(&mut Node)) {
        let Some(node) = self.by_id.get_mut(&id) else { return };
        self.bytes -= node.cost();
        edit(node);
        self.bytes += node.cost();
    }

    fn disown(&mut self, id: u64, identity: Identity) {
        if self.by_identity.get(&identity) == Some(&id) {
            self.by_identity.remove(&identity);
        }
    }

    /// Returns where a node may be.
    ///
    /// # Errors
    /// `ESTALE` if there is no such node, or its place is not known any more.
    pub(crate) fn wanted(&self, id: u64) -> Result<Wanted, Errno> {
        let node = self.by_id.get(&id).ok_or(Errno::STALE)?;
        if id == ROOT {
            return Ok(Wanted { identity: node.identity, paths: vec![Vec::new()] });
        }
        let paths = node.places.iter().rev().filter_map(|place| self.path(place)).collect();
        Ok(Wanted { identity: node.identity, paths })
    }

    fn path(&self, place: &Place) -> Option<Vec<u8>> {
        let mut names = vec![&*place.name];
        let mut parent = place.parent;
        while parent != ROOT {
            let place = self.by_id.get(&parent)?.places.last()?;
            // A host that moves directories about can make a circle of places.
            if names.len() >= MAX_DEPTH {
                return None;
            }
            names.push(&place.name);
            parent = place.parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    #[cfg(test)]
    pub(crate) fn limit(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }
}

impl Node {
    fn new(identity: Identity) -> Self {
        Self { identity, lookups: 0, places: Vec::new(), sent: None, made: None, changing: 0 }
    }

    fn is_directory(&self) -> bool {
        self.identity.kind == kind::DIRECTORY
    }

    fn cost(&self) -> usize {
        NODE_BYTES + self.places.iter().map(|place| PLACE_BYTES + place.name.len()).sum::<usize>()
    }

    fn put(&mut self, place: Place, links: u32) {
        if self.places.last() == Some(&place) {
            return;
        }
        if self.is_directory() || links <= 1 {
            self.places.clear();
        } else {
            self.places.retain(|known| *known != place);
            if self.places.len() >= MAX_PLACES {
                self.places.remove(0);
            }
        }
        self.places.push(place);
    }
}
