//! Reports of what changes in a directory, for a host that watches it (`inotify(7)`).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use castra_flow::{Incoming, Message, Outgoing, link};
use castra_wire::stream::Refusal;
use castra_wire::{FileEvent, FileEventKind};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;

use crate::users::User;
use crate::watch::watch;

/// Maximum number of directories that one stream watches.
const MAX_DIRECTORIES: usize = 8192;

/// Room for some hundred events.
const BUFFER_BYTES: usize = 16 * 1024;

/// Directories that are watched, with a user's rights.
struct Watched {
    inotify: OwnedFd,
    root: PathBuf,
    is_recursive: bool,
    /// Path of each, relative to the root, by the kernel's number for it.
    directories: Mutex<HashMap<i32, PathBuf>>,
}

/// Reports each change in a directory until the host closes the stream.
pub(crate) async fn report(
    user: Arc<User>,
    path: OsString,
    is_recursive: bool,
    incoming: link::Incoming,
    outgoing: link::Outgoing,
) {
    let root = user.home.join(path);
    let opening = Arc::clone(&user).run_in_thread(move || Watched::new(root, is_recursive));
    let opened = opening.await.and_then(|watched| {
        let changes = watch(watched.inotify.try_clone()?, Interest::READABLE)?;
        Ok((Arc::new(watched), changes))
    });
    let (watched, changes) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let reason = match error.kind() {
                io::ErrorKind::NotFound => Refusal::NotFound,
                _ => Refusal::Unavailable,
            };
            // Fails if the host is gone.
            let _ = outgoing.refuse(reason);
            return;
        }
    };
    // Fails if the host is gone, as everything below then does.
    let _ = outgoing.opened();
    let (mut incoming, outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
    loop {
        tokio::select! {
            ready = changes.readable() => {
                let Ok(mut ready) = ready else { break };
                let (events, new) = match watched.read() {
                    Ok(read) => read,
                    Err(Errno::AGAIN) => {
                        ready.clear_ready();
                        continue;
                    }
                    Err(_) => break,
                };
                for event in events {
                    if outgoing.send(event.encode().into()).await.is_err() {
                        return;
                    }
                }
                if !new.is_empty() {
                    let watched = Arc::clone(&watched);
                    let adding = move || Ok(watched.add_new(new));
                    let found = Arc::clone(&user).run_in_thread(adding).await;
                    for event in found.unwrap_or_default() {
                        if outgoing.send(event.encode().into()).await.is_err() {
                            return;
                        }
                    }
                }
            }
            message = incoming.next() => match message {
                None | Some(Message::Closed) => return,
                Some(_) => {}
            }
        }
    }
    let _ = outgoing.close().await;
}

impl Watched {
    /// Watches a directory and, if that is wanted, those below it. Links are not followed, but for
    /// the path itself.
    fn new(root: PathBuf, is_recursive: bool) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let directories = Mutex::new(HashMap::new());
        let watched = Self { inotify, root, is_recursive, directories };
        watched.add(PathBuf::new())?;
        if is_recursive {
            watched.add_below(Path::new(""), &mut |_| ());
        }
        Ok(watched)
    }

    fn add(&self, path: PathBuf) -> io::Result<()> {
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if directories.len() >= MAX_DIRECTORIES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut flags = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR;
        if !path.as_os_str().is_empty() {
            flags |= WatchFlags::DONT_FOLLOW;
        }
        // A path that ends with a slash would be followed, whatever the flag.
        let full =
            if path.as_os_str().is_empty() { self.root.clone() } else { self.root.join(&path) };
        let number = inotify::add_watch(&self.inotify, &full, flags)?;
        directories.insert(number, path);
        Ok(())
    }

    /// Watches the directories below one, and passes on each entry. One that cannot be read is left
    /// out, as its changes could not be read either.
    fn add_below(&self, path: &Path, found: &mut dyn FnMut(&Path)) {
        let mut open = vec![path.to_owned()];
        while let Some(directory) = open.pop() {
            let entries = fs::read_dir(self.root.join(&directory)).into_iter().flatten().flatten();
            for entry in entries {
                let path = directory.join(entry.file_name());
                found(&path);
                if entry.file_type().is_ok_and(|kind| kind.is_dir())
                    && self.add(path.clone()).is_ok()
                {
                    open.push(path);
                }
            }
        }
    }

    /// Watches new directories. Returns what was made in them before they were watched.
    fn add_new(&self, new: Vec<PathBuf>) -> Vec<FileEvent> {
        let mut events = Vec::new();
        for path in new {
            if self.add(path.clone()).is_ok() {
                self.add_below(&path, &mut |path| {
                    events.push(event(FileEventKind::Created, path));
                });
            }
        }
        events
    }

    /// Reads what has changed. Returns the changes and, of those, the new directories to watch.
    fn read(&self) -> Result<(Vec<FileEvent>, Vec<PathBuf>), Errno> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut events, mut new) = (Vec::new(), Vec::new());
        loop {
            let change = match reader.next() {
                Ok(change) => change,
                Err(error) if events.is_empty() => return Err(error),
                // Read again once these are sent.
                Err(_) => break,
            };
            let flags = change.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                events.push(event(FileEventKind::Lost, Path::new("")));
            } else if flags.contains(ReadFlags::IGNORED) {
                directories.remove(&change.wd());
            } else if let (Some(directory), Some(name)) =
                (directories.get(&change.wd()), change.file_name())
            {
                let path = directory.join(OsStr::from_bytes(name.to_bytes()));
                let is_new = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
                if self.is_recursive && is_new && flags.contains(ReadFlags::ISDIR) {
                    new.push(path.clone());
                }
                events.extend(kind_of(flags).map(|kind| event(kind, &path)));
            }
            if reader.is_buffer_empty() {
                break;
            }
        }
        Ok((events, new))
    }
}

fn event(kind: FileEventKind, path: &Path) -> FileEvent {
    FileEvent { kind, path: path.as_os_str().as_bytes().to_owned() }
}

fn kind_of(flags: ReadFlags) -> Option<FileEventKind> {
    let kinds = [
        (ReadFlags::CREATE | ReadFlags::MOVED_TO, FileEventKind::Created),
        (ReadFlags::MODIFY, FileEventKind::Written),
        (ReadFlags::DELETE, FileEventKind::Removed),
        (ReadFlags::MOVED_FROM, FileEventKind::Renamed),
        (ReadFlags::ATTRIB, FileEventKind::Attributes),
    ];
    kinds.into_iter().find(|(bits, _)| flags.intersects(*bits)).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(watched: &Watched) -> Vec<(FileEventKind, String)> {
        let mut all = Vec::new();
        while let Ok((events, new)) = watched.read() {
            all.extend(events);
            all.extend(watched.add_new(new));
        }
        let text = |event: FileEvent| (event.kind, String::from_utf8(event.path).expect("is text"));
        all.into_iter().map(text).collect()
    }

    #[test]
    fn changes_are_reported_by_their_paths() {
        use FileEventKind::{Created, Removed, Renamed, Written};
        let root = std::env::temp_dir().join(format!("castra-watch-{}", std::process::id()));
        fs::create_dir_all(root.join("old/deep")).expect("directories");
        let flat = Watched::new(root.clone(), false).expect("watches");
        let deep = Watched::new(root.clone(), true).expect("watches");
        fs::write(root.join("file"), "text").expect("written");
        fs::write(root.join("old/deep/file"), "text").expect("written");
        let new = |path: &str| vec![(Created, path.to_owned()), (Written, path.to_owned())];
        assert_eq!(events(&flat), new("file"));
        assert_eq!(events(&deep), [new("file"), new("old/deep/file")].concat());

        fs::create_dir_all(root.join("new/a")).expect("directories");
        fs::write(root.join("new/a/file"), "text").expect("written");
        let made = events(&deep);
        for path in ["new", "new/a", "new/a/file"] {
            assert!(made.contains(&(Created, path.to_owned())), "{path}: {made:?}");
        }
        assert_eq!(events(&flat), [(Created, "new".to_owned())]);
        fs::rename(root.join("file"), root.join("name")).expect("renamed");
        fs::remove_file(root.join("new/a/file")).expect("removed");
        let expected = [(Renamed, "file"), (Created, "name"), (Removed, "new/a/file")];
        assert_eq!(events(&deep), expected.map(|(kind, path)| (kind, path.to_owned())));
        fs::remove_dir_all(&root).expect("removed");
        assert!(events(&deep).contains(&(Removed, "old/deep".to_owned())));

        let missing = Watched::new(root.join("missing"), false);
        assert_eq!(missing.err().map(|error| error.kind()), Some(io::ErrorKind::NotFound));
    }
}
