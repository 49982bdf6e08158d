//! A batch of changes: from the kernel's reports to what the guest is to repeat.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;

use super::Server;
use super::changes::{Change, ChangeKind};
use super::pretence::{Former, Name, Script};
use crate::abi::kind;
use crate::nodes::{Named, Names, Origin};
use crate::platform::inotify::Changed;
use crate::platform::{Identity, Status};
use crate::watches::Event;

/// Maximum length of the names of a batch, in bytes.
const MAX_BYTES: usize = 256 * 1024;

/// Maximum number of directories that are open at once.
const MAX_OPEN: usize = 32;

/// Maximum number of directories that are reported after reports were lost.
const MAX_LOST: usize = 256;

/// Longest path that a guest can use at once, in bytes.
const MAX_PATH: usize = 4000;

type Key = (u64, Vec<u8>);

/// A batch that is being made.
pub(super) struct Batch<'a> {
    server: &'a Server,
    /// Directories and their paths. One that is gone is not open.
    directories: HashMap<u64, (Option<OwnedFd>, Option<Vec<u8>>)>,
    /// Nodes that are or were at the names that are changed.
    known: HashMap<Key, Vec<(u64, Identity)>>,
    /// Names that were made, and are gone again.
    vanished: HashSet<Key>,
    /// Place of the latest change of each name.
    latest: HashMap<Key, usize>,
    changes: Vec<Change>,
    scripts: Vec<Script>,
    unsettled: Vec<Event>,
    bytes: usize,
}

impl<'a> Batch<'a> {
    /// Returns an empty batch for these events.
    pub(super) fn of(server: &'a Server, events: &[Event]) -> Self {
        let mut names = Names::new();
        for event in events {
            if matches!(
                event.change,
                Changed::Removed | Changed::MovedFrom(_) | Changed::MovedTo(_)
            ) {
                names.entry(event.parent).or_default().insert(&event.name);
            }
        }
        let found = if names.is_empty() { Vec::new() } else { server.nodes().at(&names) };
        let mut known: HashMap<Key, Vec<(u64, Identity)>> = HashMap::new();
        for Named { parent, name, node, identity } in found {
            known.entry((parent, name)).or_default().push((node, identity));
        }
        Self {
            server,
            directories: HashMap::new(),
            known,
            vanished: HashSet::new(),
            latest: HashMap::new(),
            changes: Vec::new(),
            scripts: Vec::new(),
            unsettled: Vec::new(),
            bytes: 0,
        }
    }

    /// Adds what these events are to the guest. Returns those for which there is no room.
    pub(super) fn add_all(&mut self, events: Vec<Event>) -> Vec<Event> {
        let mut events: Vec<Option<Event>> = events.into_iter().map(Some).collect();
        for index in 0..events.len() {
            if self.bytes > MAX_BYTES {
                break;
            }
            let Some(event) = events[index].take() else { continue };
            match event.change {
                Changed::Created => self.add_created(event),
                Changed::Removed => self.add_removed(event),
                Changed::Contents | Changed::Attributes => self.add_changed(event),
                Changed::MovedTo(_) => {
                    self.add_replaced(&event);
                    self.add_created(event);
                }
                Changed::MovedFrom(number) => {
                    let is_other = |other: &&mut Option<Event>| {
                        other.as_ref().is_some_and(|it| it.change == Changed::MovedTo(number))
                    };
                    match events[index..].iter_mut().find(is_other).and_then(Option::take) {
                        Some(to) => self.add_moved(event, to),
                        // It may be used in the guest, and come back: a removal is for ever.
                        None if event.is_directory => self.add_directories(&[event.parent]),
                        None => self.add_removed(event),
                    }
                }
            }
        }
        events.into_iter().flatten().collect()
    }

    /// Adds directories in which something may have changed.
    pub(super) fn add_directories(&mut self, nodes: &[u64]) {
        for node in nodes.iter().take(MAX_LOST) {
            if let Some(directory) = self.path(*node) {
                let kind = ChangeKind::Attributes { is_file: false };
                self.push(Change { directory, name: Vec::new(), kind }, Script::Look);
            }
        }
    }

    /// Returns the changes, what the guest's nudger may pretend for each, and events that are too
    /// early.
    pub(super) fn finish(self) -> (Vec<Change>, Vec<Script>, Vec<Event>) {
        (self.changes, self.scripts, self.unsettled)
    }

    fn add_created(&mut self, event: Event) {
        let Some(status) = self.status(event.parent, &event.name) else {
            self.vanished.insert((event.parent, event.name));
            return;
        };
        let kind = match status.kind() {
            kind::REGULAR => ChangeKind::File {
                is_written: matches!(event.change, Changed::MovedTo(_)),
                is_executable: is_executable(&status),
            },
            kind::DIRECTORY => ChangeKind::Directory,
            kind::LINK => ChangeKind::Link,
            kind::FIFO => ChangeKind::Fifo,
            kind::SOCKET => ChangeKind::Socket,
            _ => return,
        };
        let script = Script::Create(Name::of(&event));
        self.push_of(event, kind, script);
    }

    fn add_removed(&mut self, event: Event) {
        if self.vanished.remove(&(event.parent, event.name.clone())) {
            return;
        }
        let (node, file_kind) = match self.former(&event) {
            Some((node, identity)) => (Some(node), identity.kind),
            None if event.is_directory => (None, kind::DIRECTORY),
            None => (None, kind::REGULAR),
        };
        if self.is_made_again(&event, file_kind) {
            return self.add_directories(&[event.parent]);
        }
        let kind = match file_kind {
            kind::DIRECTORY => ChangeKind::RemovedDirectory,
            _ => ChangeKind::Removed,
        };
        let script = Script::Remove(Name::of(&event), Former { node, kind: file_kind });
        self.push_of(event, kind, script);
    }

    /// Returns `true` if what was removed is there again, and its removal must not be repeated: a
    /// file that the guest has made, whose programs would take it for gone, or a directory, in
    /// which the guest may have mounted something.
    fn is_made_again(&mut self, event: &Event, file_kind: u32) -> bool {
        let Some(now) = self.status(event.parent, &event.name) else { return false };
        match now.kind() {
            kind::DIRECTORY => file_kind == kind::DIRECTORY,
            _ => self.server.nodes().origin(&now, true) != Origin::Host,
        }
    }

    /// Adds the removal of what the guest knows at a name to which something has come from outside.
    fn add_replaced(&mut self, event: &Event) {
        if self.former(event).is_some() {
            self.add_removed(event.clone());
        }
    }

    fn add_moved(&mut self, from: Event, to: Event) {
        let Some(status) = self.status(to.parent, &to.name) else {
            // It has been moved or removed since.
            self.vanished.insert((to.parent, to.name));
            return self.add_removed(from);
        };
        self.vanished.remove(&(from.parent, from.name.clone()));
        let replaced = self.former(&to).map(|(node, _)| node);
        // What is in a directory is found only where the directory is.
        let (old, new) = ((from.parent, &*from.name), (to.parent, &*to.name));
        self.server.nodes().moved(old, new, &status);
        self.directories.clear();
        let Some(directory) = self.path(to.parent) else { return };
        let script = Script::Move { from: Name::of(&from), to: Name::of(&to), replaced };
        let kind = ChangeKind::Moved { directory, name: to.name.clone() };
        self.latest.remove(&(to.parent, to.name));
        self.push_of(from, kind, script);
    }

    fn add_changed(&mut self, event: Event) {
        let latest = self.latest.get(&(event.parent, event.name.clone())).copied();
        let latest = latest.map(|index| &mut self.changes[index].kind);
        let is_contents = event.change == Changed::Contents;
        match latest {
            Some(ChangeKind::File { is_written, .. }) if is_contents => {
                *is_written = true;
                return;
            }
            Some(ChangeKind::Attributes { .. }) if is_contents => {}
            Some(ChangeKind::Moved { .. } | ChangeKind::Removed) | None => {}
            Some(_) => return,
        }
        let Some(status) = self.status(event.parent, &event.name) else { return };
        match self.server.nodes().origin(&status, is_contents) {
            Origin::Guest => return,
            Origin::Unknown => return self.unsettled.push(event),
            Origin::Host => {}
        }
        let kind = match (is_contents, status.kind()) {
            (true, kind::REGULAR) => ChangeKind::Contents { is_executable: is_executable(&status) },
            (true, _) => return,
            (false, found) => ChangeKind::Attributes { is_file: found == kind::REGULAR },
        };
        self.push_of(event, kind, Script::Look);
    }

    fn push_of(&mut self, event: Event, kind: ChangeKind, script: Script) {
        let Some(directory) = self.path(event.parent) else { return };
        self.latest.insert((event.parent, event.name.clone()), self.changes.len());
        self.push(Change { directory, name: event.name, kind }, script);
    }

    fn push(&mut self, change: Change, script: Script) {
        self.bytes += change.directory.len() + change.name.len();
        if let ChangeKind::Moved { directory, name } = &change.kind {
            self.bytes += directory.len() + name.len();
        }
        self.changes.push(change);
        self.scripts.push(script);
    }

    /// Returns the node that was at a name, and is not there now.
    fn former(&mut self, event: &Event) -> Option<(u64, Identity)> {
        let now = self.status(event.parent, &event.name).map(|status| status.identity);
        let known = self.known.get(&(event.parent, event.name.clone()))?;
        known.iter().find(|(_, identity)| Some(*identity) != now).copied()
    }

    fn status(&mut self, parent: u64, name: &[u8]) -> Option<Status> {
        let server = self.server;
        let (directory, _) = self.directory(parent);
        server.directory.status_in(directory.as_ref()?, name).ok()
    }

    fn path(&mut self, node: u64) -> Option<Vec<u8>> {
        self.directory(node).1.clone().filter(|path| path.len() <= MAX_PATH)
    }

    fn directory(&mut self, node: u64) -> &(Option<OwnedFd>, Option<Vec<u8>>) {
        if self.directories.len() >= MAX_OPEN && !self.directories.contains_key(&node) {
            self.directories.clear();
        }
        let server = self.server;
        self.directories.entry(node).or_insert_with(|| {
            let path = server.nodes().path_of(node);
            (server.locate_directory(node).ok(), path)
        })
    }
}

fn is_executable(status: &Status) -> bool {
    status.mode & 0o111 != 0
}
