//! Directories of the host that are watched for the guest, and their reports.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::directory::is_hidden;
use crate::platform::inotify::{Changed, Inotify, Report, Watch};

/// Maximum number of directories that one process watches. The kernel needs about a kilobyte for
/// each, and gives a user a limited number.
pub const MAX_WATCHES: usize = 8192;

/// Number of directories that this process watches.
static WATCHED: AtomicUsize = AtomicUsize::new(0);

/// Maximum number of the guest's own changes that are remembered until they are reported.
const MAX_OWN: usize = 16 * 1024;

/// Time after which one of them is not expected to be reported any more.
const OWN_LIFE: Duration = Duration::from_secs(10);

/// Maximum number of reads for one batch, since all reports may be of the guest's own changes.
const MAX_READS: usize = 64;

/// A part of the watches, which is dropped at once if there are too many.
const DROPPED: usize = 16;

/// A report about a name in a directory.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// Node of the directory.
    pub(crate) parent: u64,
    pub(crate) name: Vec<u8>,
    pub(crate) change: Changed,
    pub(crate) is_directory: bool,
}

/// Kind of a change of a name, without the number of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum NameChange {
    Created,
    Removed,
    MovedFrom,
    MovedTo,
}

/// A change of a name that the guest makes.
pub(crate) type Own<'a> = (u64, &'a [u8], NameChange);

/// Key of the guest's changes of a name. Two with the same key are as good as impossible.
type OwnKey = (u64, u64, NameChange);

#[derive(Debug)]
struct Watched {
    watch: Watch,
    used: u64,
}

/// Reason why not all directories are watched that the guest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// The guest uses more than one process watches.
    Process,
    /// The host's kernel allows the user no more watches.
    Host,
}

/// Watched directories.
#[derive(Debug)]
pub(crate) struct Watches {
    inotify: Inotify,
    limit: usize,
    by_node: HashMap<u64, Watched>,
    by_watch: HashMap<Watch, u64>,
    /// Number of these that the process has counted.
    counted: usize,
    uses: u64,
    shortage: Option<Shortage>,
    /// Number of the guest's changes of each name, and when the last one began.
    own: HashMap<OwnKey, (u32, Instant)>,
    hasher: RandomState,
    /// Events that are read and not yet handled.
    events: VecDeque<Event>,
    /// Set once events were lost.
    has_lost: bool,
    /// Set while the kernel has no reports.
    is_quiet: bool,
}

impl Watches {
    /// Returns an empty set of at most this many watches.
    pub(crate) fn new(limit: usize) -> Result<Self, Errno> {
        Ok(Self {
            inotify: Inotify::new()?,
            limit,
            by_node: HashMap::new(),
            by_watch: HashMap::new(),
            counted: 0,
            uses: 0,
            shortage: None,
            own: HashMap::new(),
            hasher: RandomState::new(),
            events: VecDeque::new(),
            has_lost: false,
            is_quiet: true,
        })
    }

    pub(crate) fn descriptor(&self) -> Result<OwnedFd, Errno> {
        self.inotify.descriptor()
    }

    pub(crate) fn shortage(&self) -> Option<Shortage> {
        self.shortage
    }

    /// Returns `true` if the directory of a node is watched, and notes that the guest uses it.
    pub(crate) fn has(&mut self, node: u64) -> bool {
        self.uses += 1;
        let watched = self.by_node.get_mut(&node);
        watched.map(|watched| watched.used = self.uses).is_some()
    }

    /// Returns `true` if the directory of a node is watched.
    pub(crate) fn knows(&self, node: u64) -> bool {
        self.by_node.contains_key(&node)
    }

    /// Returns `true` if there is room without dropping another. If there is none, a directory is
    /// not watched.
    pub(crate) fn has_room(&mut self) -> bool {
        if self.is_full() {
            self.shortage.get_or_insert(Shortage::Process);
        }
        self.shortage.is_none()
    }

    fn is_full(&self) -> bool {
        self.by_node.len() >= self.limit || WATCHED.load(Ordering::Relaxed) >= MAX_WATCHES
    }

    /// Has the process count what is watched now.
    fn count(&mut self) {
        let now = self.by_node.len();
        WATCHED.fetch_add(now.wrapping_sub(self.counted), Ordering::Relaxed);
        self.counted = now;
    }

    /// Watches the directory of a node. Those that were used longest ago make room.
    pub(crate) fn add(&mut self, node: u64, directory: &OwnedFd) {
        if self.is_full() {
            self.shortage.get_or_insert(Shortage::Process);
            self.drop_oldest();
            if self.is_full() {
                return;
            }
        }
        let mut added = self.inotify.add(directory);
        if matches!(added, Err(Errno::NOSPC | Errno::NOMEM)) {
            self.shortage = Some(Shortage::Host);
            self.drop_oldest();
            added = self.inotify.add(directory);
        }
        // One that cannot be read is not listed by the guest, either.
        let Ok(watch) = added else { return };
        // The kernel has one watch for a directory, which the guest has forgotten meanwhile.
        if let Some(former) = self.by_watch.insert(watch, node) {
            self.by_node.remove(&former);
        }
        self.by_node.insert(node, Watched { watch, used: self.uses });
        self.count();
    }

    fn drop_oldest(&mut self) {
        let mut uses: Vec<u64> = self.by_node.values().map(|watched| watched.used).collect();
        let at = uses.len() / DROPPED;
        if uses.is_empty() {
            return;
        }
        let oldest = *uses.select_nth_unstable(at).1;
        let (inotify, by_watch) = (&self.inotify, &mut self.by_watch);
        self.by_node.retain(|_, watched| {
            let stays = watched.used > oldest;
            if !stays {
                by_watch.remove(&watched.watch);
                inotify.remove(watched.watch);
            }
            stays
        });
        self.count();
    }

    fn remove(&mut self, node: u64) {
        if let Some(watched) = self.by_node.remove(&node) {
            self.by_watch.remove(&watched.watch);
            self.inotify.remove(watched.watch);
            self.count();
        }
    }

    /// Ends all watches: the guest is another one.
    pub(crate) fn clear(&mut self) {
        let nodes: Vec<u64> = self.by_node.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.remove(node));
        self.own.clear();
        self.events.clear();
        self.has_lost = false;
    }

    /// Returns the nodes of all directories, those used last first.
    pub(crate) fn nodes(&self) -> Vec<u64> {
        let mut nodes: Vec<(u64, u64)> =
            self.by_node.iter().map(|(node, watched)| (watched.used, *node)).collect();
        nodes.sort_unstable_by(|one, other| other.cmp(one));
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// Notes a change that the guest is about to make, and that will be reported.
    pub(crate) fn expect(&mut self, own: Own<'_>) {
        if !self.by_node.contains_key(&own.0) || self.own.len() >= MAX_OWN {
            return;
        }
        let key = self.key(own);
        let (count, since) = self.own.entry(key).or_insert((0, Instant::now()));
        *count += 1;
        *since = Instant::now();
    }

    /// Takes back a change that the guest has not made after all, or that was reported. Returns
    /// `false` if it was not noted.
    pub(crate) fn take(&mut self, own: Own<'_>) -> bool {
        let key = self.key(own);
        let Some((count, _)) = self.own.get_mut(&key) else { return false };
        *count -= 1;
        if *count == 0 {
            self.own.remove(&key);
        }
        true
    }

    fn key(&self, (parent, name, change): Own<'_>) -> OwnKey {
        (parent, self.hasher.hash_one(name), change)
    }

    /// Returns at most this many events that the guest has not caused by a change of a name.
    pub(crate) fn next(&mut self, most: usize) -> Vec<Event> {
        let mut reads = 0;
        while self.events.is_empty() && reads < MAX_READS && self.read() {
            reads += 1;
        }
        let mut count = self.events.len().min(most);
        // Both sides of a move belong together.
        if let Some(Changed::MovedFrom(number)) =
            count.checked_sub(1).map(|last| self.events[last].change)
            && self.events.get(count).is_some_and(|next| next.change == Changed::MovedTo(number))
        {
            count += 1;
        }
        self.events.drain(..count).collect()
    }

    /// Returns `true` if there may be events without new reports.
    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty() || !self.is_quiet
    }

    /// Returns `true` once after events were lost.
    pub(crate) fn take_lost(&mut self) -> bool {
        std::mem::take(&mut self.has_lost)
    }

    /// Puts events back to the front of the queue.
    pub(crate) fn put_back(&mut self, events: impl DoubleEndedIterator<Item = Event>) {
        events.rev().for_each(|event| self.events.push_front(event));
    }

    /// Reads reports of the kernel. Returns `false` if there are none.
    fn read(&mut self) -> bool {
        let mut reports = Vec::new();
        self.inotify.read(|report| reports.push(report));
        self.is_quiet = reports.is_empty();
        for report in reports {
            match report {
                Report::Overflow => {
                    self.has_lost = true;
                    self.own.clear();
                }
                Report::Ended(watch) => {
                    if let Some(node) = self.by_watch.remove(&watch) {
                        self.by_node.remove(&node);
                        self.count();
                    }
                }
                Report::Change { watch, name, change, is_directory } => {
                    let Some(parent) = self.by_watch.get(&watch).copied() else { continue };
                    let own = change.of_name().is_some_and(|kind| self.take((parent, &name, kind)));
                    if !own && !is_hidden(&name) {
                        self.events.push_back(Event { parent, name, change, is_directory });
                    }
                }
            }
        }
        if self.is_quiet || self.own.len() >= MAX_OWN {
            self.own.retain(|_, (_, since)| since.elapsed() < OWN_LIFE);
        }
        !self.is_quiet
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.by_node.clear();
        self.count();
    }
}

impl Changed {
    fn of_name(self) -> Option<NameChange> {
        match self {
            Self::Created => Some(NameChange::Created),
            Self::Removed => Some(NameChange::Removed),
            Self::MovedFrom(_) => Some(NameChange::MovedFrom),
            Self::MovedTo(_) => Some(NameChange::MovedTo),
            Self::Contents | Self::Attributes => None,
        }
    }
}
