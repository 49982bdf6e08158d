//! Handles: files and directories that the guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use crate::nodes::Ids;

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
    /// Open files of each node.
    files: HashMap<u64, Vec<u64>>,
}

impl Handles {
    /// Returns an empty table for at most this many handles.
    pub(crate) fn new(ids: Ids, limit: usize) -> Self {
        Self { ids, limit, by_id: HashMap::new(), files: HashMap::new() }
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
        if matches!(handle.open, Open::File { .. }) {
            self.files.entry(handle.node).or_default().push(id);
        }
        self.by_id.insert(id, Arc::new(handle));
        Ok(id)
    }

    /// Returns the handle of a node.
    ///
    /// # Errors
    /// `ESTALE` if another server gave the ID, `EBADF` if it is not open on this node.
    pub(crate) fn get(&self, id: u64, node: u64) -> Result<Arc<Handle>, Errno> {
        match self.by_id.get(&id) {
            Some(handle) if handle.node == node => Ok(Arc::clone(handle)),
            None if !self.ids.is_own(id) => Err(Errno::STALE),
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
    pub(crate) fn remove(&mut self, id: u64) -> Option<Arc<Handle>> {
        let handle = self.by_id.remove(&id)?;
        if let Some(files) = self.files.get_mut(&handle.node) {
            files.retain(|file| *file != id);
            if files.is_empty() {
                self.files.remove(&handle.node);
            }
        }
        Some(handle)
    }

    /// Removes all handles.
    pub(crate) fn clear(&mut self) {
        self.by_id.clear();
        self.files.clear();
    }
}

/// Number of handles of a node that are searched for one that fits.
const SEARCHED: usize = 64;
