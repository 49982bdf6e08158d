//! Changes of directories, as Linux's inotify reports them.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// Bytes of events that are read at once: some hundred.
const BUFFER: usize = 16 * 1024;

/// Queue of a kernel's reports, whose length the kernel bounds.
#[derive(Debug)]
pub(crate) struct Inotify(OwnedFd);

/// Number of a directory that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Watch(i32);

/// Report of the kernel.
#[derive(Debug)]
pub(crate) enum Report {
    /// A change of a name in a directory, or of the file that has it.
    Change { watch: Watch, name: Vec<u8>, change: Changed, is_directory: bool },
    /// The directory is not watched any more: it is gone.
    Ended(Watch),
    /// Earlier reports are lost.
    Overflow,
}

/// Kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Changed {
    Created,
    Removed,
    /// Both sides of a move have the same number.
    MovedFrom(u32),
    MovedTo(u32),
    Contents,
    Attributes,
}

impl Inotify {
    pub(crate) fn new() -> Result<Self, Errno> {
        inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map(Self)
    }

    /// Returns another descriptor of the queue, which is readable when there are reports.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 0)
    }

    /// Watches a referenced directory.
    ///
    /// # Errors
    /// `ENOSPC` if the user may watch no more.
    pub(crate) fn add(&self, directory: &OwnedFd) -> Result<Watch, Errno> {
        let wanted = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR
            | WatchFlags::EXCL_UNLINK;
        inotify::add_watch(&self.0, super::path_of(directory), wanted).map(Watch)
    }

    /// Ends a watch. One that has ended is no error.
    pub(crate) fn remove(&self, watch: Watch) {
        let _ = inotify::remove_watch(&self.0, watch.0);
    }

    /// Passes on the next reports: at most some hundred. Both sides of a move are reported
    /// together.
    pub(crate) fn read(&self, mut each: impl FnMut(Report)) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(&self.0, &mut buffer);
        while let Ok(event) = reader.next() {
            let is_half = event.events().contains(ReadFlags::MOVED_FROM);
            let report = report(event.wd(), event.events(), event.cookie(), event.file_name());
            report.into_iter().for_each(&mut each);
            if reader.is_buffer_empty() && !is_half {
                return;
            }
        }
    }
}

fn report(
    watch: i32,
    flags: ReadFlags,
    cookie: u32,
    name: Option<&std::ffi::CStr>,
) -> Option<Report> {
    if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
        return Some(Report::Overflow);
    }
    if flags.contains(ReadFlags::IGNORED) {
        return Some(Report::Ended(Watch(watch)));
    }
    let changes = [
        (ReadFlags::CREATE, Changed::Created),
        (ReadFlags::DELETE, Changed::Removed),
        (ReadFlags::MOVED_FROM, Changed::MovedFrom(cookie)),
        (ReadFlags::MOVED_TO, Changed::MovedTo(cookie)),
        (ReadFlags::MODIFY, Changed::Contents),
        (ReadFlags::ATTRIB, Changed::Attributes),
    ];
    let (_, change) = changes.into_iter().find(|(flag, _)| flags.contains(*flag))?;
    // Without a name, it is the directory itself, which its parent reports, too.
    let name = name?.to_bytes().to_vec();
    let is_directory = flags.contains(ReadFlags::ISDIR);
    Some(Report::Change { watch: Watch(watch), name, change, is_directory })
}
