//! Handles: files and directories that the guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::nodes::Ids;
use crate::server::rights;

/// Something open.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) node: u64,
    pub(crate) open: Open,
}

/// Descriptor of a handle.
#[derive(Debug)]
pub(crate) enum Open {
    File {
        fd: OwnedFd,
        read: bool,
        write: bool,
    },
    /// A directory, whose position each request sets.
    Directory(Mutex<OwnedFd>),
}

/// Table of handles.
#[derive(Debug)]
pub(crate) struct Handles {
    ids: Ids,
    limit: usize,
    by_id: HashMap<u64, Arc<Handle>>,
    /// Open files of each node, also those that are lost.
    files: HashMap<u64, Vec<u64>>,
    /// Nodes of handles of an earlier server that could not be opened again. The kernel may still
    /// send requests for them.
    lost: HashMap<u64, u64>,
}

impl Handles {
    /// Returns an empty table for at most this many handles.
    pub(crate) fn new(ids: Ids, limit: usize) -> Self {
        Self { ids, limit, by_id: HashMap::new(), files: HashMap::new(), lost: HashMap::new() }
    }

    pub(crate) fn ids(&self) -> &Ids {
        &self.ids
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Returns all handles, their nodes and rights.
    pub(crate) fn all(&self) -> Vec<(u64, u64, u32)> {
        let held = self.by_id.iter().map(|(id, held)| (*id, held.node, rights(&held.open)));
        held.chain(self.lost.iter().map(|(id, node)| (*id, *node, 0))).collect()
    }

    /// Adds a handle of an earlier server, which is lost if it could not be opened again.
    ///
    /// # Errors
    /// `EINVAL` if no server can have had it beside the others.
    pub(crate) fn restore(
        &mut self,
        id: u64,
        node: u64,
        handle: Result<Handle, Errno>,
    ) -> Result<(), Errno> {
        let is_new = self.ids.has_given(id) && !self.by_id.contains_key(&id);
        if !is_new || self.lost.contains_key(&id) {
            return Err(Errno::INVAL);
        }
        match handle.ok().filter(|_| self.by_id.len() < self.limit) {
            Some(handle) => self.insert(id, handle),
            None => {
                self.files.entry(node).or_default().push(id);
                self.lost.insert(id, node);
            }
        }
        Ok(())
    }

    /// Checks that there is room for another handle.
    ///
    /// # Errors
    /// `ENFILE` if there is none.
    pub(crate) fn check_room(&self) -> Result<(), Errno> {
        if self.by_id.len() < self.limit { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// Adds a handle and returns its ID.
    pub(crate) fn add(&mut self, handle: Handle) -> Result<u64, Errno> {
        self.check_room()?;
        let id = self.ids.next()?;
        self.insert(id, handle);
        Ok(id)
    }

    fn insert(&mut self, id: u64, handle: Handle) {
        if matches!(handle.open, Open::File { .. }) {
            self.files.entry(handle.node).or_default().push(id);
        }
        self.by_id.insert(id, Arc::new(handle));
    }

    /// Returns the handle of a node.
    ///
    /// # Errors
    /// `ESTALE` if another server gave the ID or the handle is lost, `EBADF` if it is not open on
    /// this node.
    pub(crate) fn get(&self, id: u64, node: u64) -> Result<Arc<Handle>, Errno> {
        match self.by_id.get(&id) {
            Some(handle) if handle.node == node => Ok(Arc::clone(handle)),
            None if !self.ids.is_own(id) || self.lost.contains_key(&id) => Err(Errno::STALE),
            _ => Err(Errno::BADF),
        }
    }

    /// Returns an open file of a node that fits, if there is one.
    pub(crate) fn file_of(&self, node: u64, fits: impl Fn(&Handle) -> bool) -> Option<Arc<Handle>> {
        let handles = self.files.get(&node)?.iter().rev().filter_map(|id| self.by_id.get(id));
        handles.take(SEARCHED).find(|handle| fits(handle)).cloned()
    }

    /// Returns `true` if a node is open as a file.
    pub(crate) fn has_file(&self, node: u64) -> bool {
        self.files.contains_key(&node)
    }

    /// Removes a handle.
    pub(crate) fn remove(&mut self, id: u64) {
        let held = self.by_id.remove(&id).map(|handle| handle.node);
        let Some(node) = held.or_else(|| self.lost.remove(&id)) else { return };
        if let Some(files) = self.files.get_mut(&node) {
            files.retain(|file| *file != id);
            if files.is_empty() {
                self.files.remove(&node);
            }
        }
    }

    /// Removes all handles.
    pub(crate) fn clear(&mut self) {
        self.by_id.clear();
        self.files.clear();
        self.lost.clear();
    }
}

/// Number of handles of a node that are searched for one that fits.
const SEARCHED: usize = 64;
