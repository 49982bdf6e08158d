//! Pretence: answers to the process in the guest that repeats changes of the host.
//!
//! That process, the nudger, makes system calls for nothing but the reports that the guest's kernel
//! gives of them: it creates a file that the host has created, and removes one that the host has
//! removed. Its requests have a user of their own, so that nothing that it does has an effect here,
//! whatever happened meanwhile. Nothing in this module can change the directory: it gets no
//! [`Writable`](crate::directory::Writable). Another program of the guest that takes this user can
//! do no more.
//!
//! The nudger's group is the number of the change that it repeats. By this number it finds the
//! directory as it was before the change, and other processes as it is. A system call that is not
//! that of its change fails.

use std::sync::{MutexGuard, PoisonError};

use rustix::io::Errno;

use super::Server;
use crate::abi::kind;
use crate::platform::{self, Status};
use crate::reply::{Attributes, Reply};
use crate::request::{Header, Made, Operation, Replacing};
use crate::watches::Event;

/// User of the nudger, whose requests have no effect.
pub const NUDGER: u32 = 0xffff_fff0;

/// Least group of a change.
const FIRST_GROUP: u32 = 0x8000_0000;

/// Number of groups after which they begin again.
const GROUPS: u32 = 0x4000_0000;

/// Handle of all files that the nudger opens: no server gives this number.
const NO_HANDLE: u64 = 0;

/// A name in the directory of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    parent: u64,
    name: Vec<u8>,
}

impl Name {
    pub(super) fn of(event: &Event) -> Self {
        Self { parent: event.parent, name: event.name.clone() }
    }

    fn is(&self, parent: u64, name: &[u8]) -> bool {
        self.parent == parent && self.name == name
    }
}

/// File that the host has removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Former {
    /// Node, if the guest knew it.
    pub(super) node: Option<u64>,
    /// Type, as `st_mode` has it.
    pub(super) kind: u32,
}

/// System call that repeats a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Script {
    /// Makes what the host has made there.
    Create(Name),
    /// Removes what the host has removed.
    Remove(Name, Former),
    /// Renames what the host has renamed.
    Move {
        from: Name,
        to: Name,
        /// Node that had the new name.
        replaced: Option<u64>,
    },
    /// Sets times.
    Look,
}

/// Scripts of the changes that are being repeated.
#[derive(Debug)]
pub(super) struct Scripts {
    first: u32,
    scripts: Vec<Script>,
}

/// Answer to a look-up of the nudger.
enum Found {
    Truth,
    Nothing,
    Former(Former),
    /// The file that is at another name now.
    At(Name),
}

impl Scripts {
    pub(super) fn new() -> Self {
        // Requests that an earlier server has not answered have other numbers.
        Self { first: FIRST_GROUP + platform::epoch() % GROUPS, scripts: Vec::new() }
    }

    /// Replaces the scripts, and returns the group of the first one.
    pub(super) fn replace(&mut self, scripts: Vec<Script>) -> u32 {
        let used = u32::try_from(self.scripts.len()).unwrap_or(u32::MAX);
        self.first = FIRST_GROUP + (self.first - FIRST_GROUP + used) % GROUPS;
        self.scripts = scripts;
        self.first
    }

    fn index(&self, group: u32) -> Option<usize> {
        let index = usize::try_from(group.checked_sub(self.first)?).ok()?;
        (index < self.scripts.len()).then_some(index)
    }

    fn get(&self, group: u32) -> Option<&Script> {
        self.index(group).map(|index| &self.scripts[index])
    }

    /// Returns what the nudger of a change is to find at a name.
    fn find(&self, group: u32, parent: u64, name: &[u8]) -> Found {
        match self.get(group) {
            Some(Script::Create(at)) if at.is(parent, name) => Found::Nothing,
            Some(Script::Remove(at, former)) if at.is(parent, name) => Found::Former(*former),
            Some(Script::Move { from, to, .. }) if from.is(parent, name) => Found::At(to.clone()),
            Some(Script::Move { to, replaced, .. }) if to.is(parent, name) => match *replaced {
                Some(node) => Found::Former(Former { node: Some(node), kind: kind::REGULAR }),
                None => Found::Nothing,
            },
            _ => Found::Truth,
        }
    }

    /// Returns a directory that is removed by a later change: what was in it was removed first.
    fn removed_later(&self, group: u32, parent: u64, name: &[u8]) -> Option<Former> {
        let later = &self.scripts[self.index(group)?..];
        later.iter().find_map(|script| match script {
            Script::Remove(at, former) if at.is(parent, name) => {
                Some(*former).filter(|former| former.kind == kind::DIRECTORY)
            }
            _ => None,
        })
    }
}

impl Server {
    /// Answers a request of the nudger, without an effect on the directory.
    pub(super) fn pretend(
        &self,
        header: &Header,
        operation: &Operation<'_>,
    ) -> Result<Reply, Errno> {
        let (node, group) = (header.node, header.group);
        match *operation {
            Operation::Lookup { name } => self.pretend_look_up(node, name, group),
            Operation::GetAttributes { .. } | Operation::SetAttributes(_) => {
                self.get_attributes(node, None)
            }
            Operation::Open(_) => {
                let (_, status) = self.locate(node)?;
                if status.kind() != kind::REGULAR {
                    return Err(Errno::NXIO);
                }
                // Without a flag: the kernel drops the contents that it has.
                Ok(Reply::of(16, |reply| reply.handle(NO_HANDLE, 0)))
            }
            Operation::Create { name, .. } => {
                self.pretend_create(node, name, kind::REGULAR, group, true)
            }
            Operation::MakeNode { name, made, .. } => {
                let kind = match made {
                    Made::Regular => kind::REGULAR,
                    Made::Fifo => kind::FIFO,
                    Made::Socket => kind::SOCKET,
                };
                self.pretend_create(node, name, kind, group, false)
            }
            Operation::MakeDirectory { name, .. } => {
                self.pretend_create(node, name, kind::DIRECTORY, group, false)
            }
            Operation::SymbolicLink { name, .. } => {
                self.pretend_create(node, name, kind::LINK, group, false)
            }
            Operation::Unlink { name } => self.pretend_unlink(node, name, false, group),
            Operation::RemoveDirectory { name } => self.pretend_unlink(node, name, true, group),
            Operation::Rename { name, new_parent, new_name, replacing: Replacing::Allowed } => {
                self.pretend_rename((node, name), (new_parent, new_name), group)
            }
            Operation::Release { .. } | Operation::Access { .. } => Ok(Reply::empty()),
            Operation::Statistics => self.statistics(),
            _ => Err(Errno::PERM),
        }
    }

    fn pretend_look_up(&self, parent: u64, name: &[u8], group: u32) -> Result<Reply, Errno> {
        let found = self.scripts().find(group, parent, name);
        match found {
            // For other processes, the truth is not known to the kernel then.
            Found::Nothing => {
                Ok(Reply::of(Attributes::ENTRY_BYTES, |reply| reply.zeros(Attributes::ENTRY_BYTES)))
            }
            Found::Former(former) => self.former(former),
            Found::At(to) => {
                let (node, status) = self.find(to.parent, &to.name)?;
                Ok(self.passing_entry(node, status))
            }
            Found::Truth => match self.find(parent, name) {
                Ok((node, status)) => Ok(self.entry(node, status)),
                Err(errno @ (Errno::NOENT | Errno::STALE)) => {
                    let former = self.scripts().removed_later(group, parent, name);
                    self.former(former.ok_or(errno)?)
                }
                Err(errno) => Err(errno),
            },
        }
    }

    /// Answers the look-up of a file that is gone.
    fn former(&self, Former { node, kind }: Former) -> Result<Reply, Errno> {
        let (node, identity) = match node {
            Some(node) => (node, self.nodes().count(node)?),
            None => self.nodes().invent(kind)?,
        };
        let status = self.former_status(node, identity);
        Ok(self.passing_entry(node, status))
    }

    fn pretend_create(
        &self,
        parent: u64,
        name: &[u8],
        kind: u32,
        group: u32,
        is_opened: bool,
    ) -> Result<Reply, Errno> {
        match self.scripts().get(group) {
            Some(Script::Create(at)) if at.is(parent, name) => {}
            _ => return Err(Errno::CANCELED),
        }
        let directory = self.locate_directory(parent)?;
        // Another file may have the name by now: its own change follows.
        if self.directory.status_in(&directory, name)?.kind() != kind {
            return Err(Errno::CANCELED);
        }
        let (node, status) = self.find(parent, name)?;
        let attributes = self.directory.attributes(status);
        Ok(Reply::of(Attributes::ENTRY_BYTES + 16, |reply| {
            reply.entry(node, &attributes);
            if is_opened { reply.handle(NO_HANDLE, 0) } else { reply }
        }))
    }

    fn pretend_unlink(
        &self,
        parent: u64,
        name: &[u8],
        is_directory: bool,
        group: u32,
    ) -> Result<Reply, Errno> {
        let former = match self.scripts().get(group) {
            Some(Script::Remove(at, former)) if at.is(parent, name) => *former,
            _ => return Err(Errno::CANCELED),
        };
        if is_directory != (former.kind == kind::DIRECTORY) {
            return Err(Errno::CANCELED);
        }
        if let Some(node) = former.node {
            self.nodes().lost_name(node, parent, name);
        }
        Ok(Reply::empty())
    }

    fn pretend_rename(
        &self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        group: u32,
    ) -> Result<Reply, Errno> {
        let replaced = match self.scripts().get(group) {
            Some(Script::Move { from, to, replaced })
                if from.is(parent, name) && to.is(new_parent, new_name) =>
            {
                *replaced
            }
            _ => return Err(Errno::CANCELED),
        };
        if let Some(node) = replaced {
            self.nodes().lost_name(node, new_parent, new_name);
        }
        Ok(Reply::empty())
    }

    /// Returns a reply with an entry that the kernel looks up again at its next use.
    fn passing_entry(&self, node: u64, status: Status) -> Reply {
        let attributes = self.directory.attributes(status);
        Reply::of(Attributes::ENTRY_BYTES, |reply| reply.passing_entry(node, &attributes))
    }

    pub(super) fn scripts(&self) -> MutexGuard<'_, Scripts> {
        self.scripts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
