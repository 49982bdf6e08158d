//! Nodes as changes of the host concern them: which the guest has made itself, and which files had
//! the names that are gone.

use std::collections::{HashMap, HashSet};

use rustix::io::Errno;

use super::{Node, Nodes, Place};
use crate::abi::{ROOT, kind};
use crate::platform::{Identity, Status};
use crate::server::Version;

/// Origin of a file's present state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The guest's last operation on it.
    Guest,
    /// Something else.
    Host,
    /// The guest is changing the file now: it is too early to say.
    Unknown,
}

/// Names in directories: the nodes of these, each with names.
pub(crate) type Names<'a> = HashMap<u64, HashSet<&'a [u8]>>;

/// A node that is, or was, at a name.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) parent: u64,
    pub(crate) name: Vec<u8>,
    pub(crate) node: u64,
    pub(crate) identity: Identity,
}

impl Nodes {
    /// Notes that the guest begins to change a file.
    pub(crate) fn begin_change(&mut self, id: u64) {
        if let Some(node) = self.by_id.get_mut(&id) {
            node.changing = node.changing.saturating_add(1);
        }
    }

    /// Notes that the guest has changed a file, to this state.
    pub(crate) fn end_change(&mut self, id: u64, made: Option<Version>) {
        if let Some(node) = self.by_id.get_mut(&id) {
            node.changing = node.changing.saturating_sub(1);
            node.made = made.or(node.made);
        }
    }

    /// Notes the state of a file that the guest has made.
    pub(crate) fn made(&mut self, id: u64, made: Version) {
        if let Some(node) = self.by_id.get_mut(&id) {
            node.made = Some(made);
        }
    }

    /// Returns the origin of a file's contents, or else of its attributes.
    pub(crate) fn origin(&self, status: &Status, is_of_contents: bool) -> Origin {
        let now = Version::of(status);
        let is_made = |made: Version| match is_of_contents {
            true => made.has_contents_of(now),
            false => made == now,
        };
        let id = self.by_identity.get(&status.identity);
        match id.and_then(|id| self.by_id.get(id)) {
            Some(node) if node.changing > 0 => Origin::Unknown,
            Some(node) if node.made.is_some_and(is_made) => Origin::Guest,
            _ => Origin::Host,
        }
    }

    /// Counts a look-up of a node without regard to the name.
    pub(crate) fn count(&mut self, id: u64) -> Result<Identity, Errno> {
        let node = self.by_id.get_mut(&id).ok_or(Errno::STALE)?;
        node.lookups = node.lookups.saturating_add(1);
        Ok(node.identity)
    }

    /// Returns a node for a file that is gone and that the guest did not know, with one look-up.
    pub(crate) fn invent(&mut self, kind: u32) -> Result<(u64, Identity), Errno> {
        if self.is_full() {
            return Err(Errno::NOMEM);
        }
        let id = self.ids.next()?;
        let identity = Identity { device: 0, inode: id, kind, born: (0, 0) };
        let node = Node { lookups: 1, ..Node::new(identity) };
        self.bytes += node.cost();
        self.by_id.insert(id, node);
        Ok((id, identity))
    }

    /// Returns the nodes that have or had one of these names.
    pub(crate) fn at(&self, names: &Names<'_>) -> Vec<Named> {
        let is_wanted = |place: &Place| {
            names.get(&place.parent).is_some_and(|names| names.contains(&*place.name))
        };
        let mut found = Vec::new();
        for (id, node) in &self.by_id {
            found.extend(node.places.iter().filter(|place| is_wanted(place)).map(|place| Named {
                parent: place.parent,
                name: place.name.to_vec(),
                node: *id,
                identity: node.identity,
            }));
        }
        found
    }

    /// Notes that a file has no longer this name, which another file may have.
    pub(crate) fn lost_name(&mut self, id: u64, parent: u64, name: &[u8]) {
        self.edit(id, |node| node.places.retain(|place| !place.is(parent, name)));
        let Some(node) = self.by_id.get(&id) else { return };
        if node.places.is_empty() {
            let identity = node.identity;
            self.disown(id, identity);
        }
    }

    /// Returns the path of a directory below the root.
    pub(crate) fn path_of(&self, id: u64) -> Option<Vec<u8>> {
        let place = match id {
            ROOT => return Some(Vec::new()),
            id => self.by_id.get(&id)?.places.last()?,
        };
        self.path(place)
    }

    /// Returns all directories.
    pub(crate) fn directories(&self) -> Vec<u64> {
        let is_directory = |node: &Node| node.identity.kind == kind::DIRECTORY;
        self.by_id.iter().filter(|(_, node)| is_directory(node)).map(|(id, _)| *id).collect()
    }
}
