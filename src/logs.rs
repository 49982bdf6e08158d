//! The bounds of logs: none grows without end, whatever writes to it.
//!
//! A log that castra writes makes place for a new one when it is opened. A log that QEMU holds open cannot be renamed away from
//! it, so its end is copied beside it and it is emptied, each time a castra command opens the project, and every second while
//! one runs. QEMU appends, so that it continues at the new end.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::files::{self, Lock};
use crate::layout::{earlier_log, is_log_of_qemu};
use crate::trusted;

/// Size at which a log that castra writes makes place for a new one.
pub const CASTRA_BYTES: u64 = 1 << 20;

/// Size at which a log that QEMU writes is emptied, and the most that is kept of what it held.
pub const QEMU_BYTES: u64 = 2 << 20;

/// Interval between looks at the logs that QEMU writes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Opens a log for lines of castra's own, after it has made place for a new one if it is full. The directory is there.
///
/// # Errors
/// Those of `rename` and `open`, and [`trusted::Distrust`].
pub(crate) fn open_to_append(log: &Path) -> io::Result<File> {
    if fs::symlink_metadata(log).is_ok_and(|metadata| metadata.len() >= CASTRA_BYTES) {
        fs::rename(log, earlier_log(log))?;
    }
    files::part_from_other_names(log)?;
    trusted::open_with(OpenOptions::new().append(true).create(true).mode(0o600), log)
}

/// Makes an empty log for a QEMU that is about to start, whatever was there, and removes what the last one wrote.
///
/// # Errors
/// Those of `mkdir` and `open`, and [`trusted::Distrust`].
pub(crate) fn begin(log: &Path) -> io::Result<File> {
    if let Some(directory) = log.parent() {
        files::create_private_directory(directory)?;
    }
    files::part_from_other_names(log)?;
    let file = trusted::open_with(OpenOptions::new().append(true).create(true).mode(0o600), log)?;
    // Only now: it might have been a file that castra does not write to.
    file.set_len(0)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    match fs::remove_file(earlier_log(log)) {
        Err(error) if !trusted::is_absence(&error) => Err(error),
        _ => Ok(file),
    }
}

/// Empties every log of this directory that QEMU writes and that is over its bound; the end of it is kept beside it. What cannot
/// be looked at or written to stays as it is.
pub(crate) fn bound(directory: &Path) {
    for entry in files::readable_entries(directory) {
        let is_full = || entry.metadata().is_ok_and(|metadata| metadata.len() > QEMU_BYTES);
        if is_log_of_qemu(&entry.file_name()) && is_full() {
            let _ = rotate(&entry.path());
        }
    }
}

fn rotate(log: &Path) -> io::Result<()> {
    let file = trusted::open_with(OpenOptions::new().read(true).write(true), log)?;
    // One castra at a time, and the next one finds it short.
    let Ok(Some(lock)) = Lock::try_hold(file, log) else { return Ok(()) };
    let mut file = lock.file();
    let found = file.metadata()?;
    let length = found.len();
    // One with another name is no log that castra has made, and not castra's alone to empty.
    if length <= QEMU_BYTES || found.nlink() > 1 {
        return Ok(());
    }
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(length - QEMU_BYTES))?;
    file.take(QEMU_BYTES).read_to_end(&mut end)?;
    // On a full disk the bound matters more than what was said.
    let kept = files::write_lazily(&earlier_log(log), &end, 0o600);
    file.set_len(0)?;
    kept
}

/// A thread that keeps the logs of running QEMUs within their bounds, from the first that it is given until this is dropped.
#[derive(Debug, Default)]
pub struct LogWatch {
    given: Mutex<Option<Sender<Watched>>>,
}

#[derive(Debug)]
enum Watched {
    /// The logs of a project.
    Directory(PathBuf),
    /// A log that is not read afterwards, and may have no name any more.
    File(File),
}

impl Watched {
    fn bound(&self) {
        match self {
            Self::Directory(directory) => bound(directory),
            Self::File(log) if log.metadata().is_ok_and(|metadata| metadata.len() > QEMU_BYTES) => {
                // A log that cannot be emptied grows on; it is tried again.
                let _ = log.set_len(0);
            }
            Self::File(_) => {}
        }
    }
}

impl LogWatch {
    /// Bounds the logs of a directory now and from now on.
    pub(crate) fn watch(&self, directory: &Path) {
        bound(directory);
        self.give(Watched::Directory(directory.to_owned()));
    }

    /// Bounds one log by emptying it, for as long as it is written to, wherever its name goes.
    pub(crate) fn watch_file(&self, log: &Path) {
        // What cannot be opened is not there, or is no log of ours.
        if let Ok(file) = trusted::open_with(OpenOptions::new().write(true), log) {
            self.give(Watched::File(file));
        }
    }

    fn give(&self, watched: Watched) {
        let Ok(mut given) = self.given.lock() else { return };
        let sender = given.get_or_insert_with(|| {
            let (sender, receiver) = channel();
            // Without a thread, the next command bounds the logs.
            let _ =
                thread::Builder::new().name("log-watch".to_owned()).spawn(move || keep_bounded(&receiver));
            sender
        });
        let _ = sender.send(watched);
    }
}

/// Bounds what it is given until there is no giver any more.
fn keep_bounded(given: &Receiver<Watched>) {
    let (mut all, mut directories) = (Vec::new(), HashSet::new());
    let mut next = Instant::now() + INTERVAL;
    loop {
        match given.recv_timeout(next.saturating_duration_since(Instant::now())) {
            // A command may open its project several times.
            Ok(Watched::Directory(directory)) if !directories.insert(directory.clone()) => {}
            Ok(watched) => all.push(watched),
            Err(RecvTimeoutError::Timeout) => {
                all.iter().for_each(Watched::bound);
                next = Instant::now() + INTERVAL;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// A log with that many bytes, the last of which say something.
    fn log(directory: &Path, name: &str, bytes: u64) -> PathBuf {
        let path = directory.join(name);
        let mut file = File::create(&path).expect("made");
        file.set_len(bytes).expect("made long");
        file.seek(SeekFrom::End(0)).expect("moved");
        file.write_all(b"last words").expect("written");
        path
    }

    fn length(path: &Path) -> u64 {
        fs::metadata(path).expect("there").len()
    }

    #[test]
    fn a_full_log_of_qemu_is_emptied_and_its_end_is_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = log(directory.path(), "web-console.log", 1 << 40);
        let mut qemu = OpenOptions::new().append(true).open(&path).expect("opened");
        bound(directory.path());
        assert_eq!((length(&path), length(&earlier_log(&path))), (0, QEMU_BYTES));
        assert!(fs::read(earlier_log(&path)).expect("read").ends_with(b"last words"));
        qemu.write_all(b"more").expect("written");
        bound(directory.path());
        assert_eq!((length(&path), length(&earlier_log(&path))), (4, QEMU_BYTES));
        begin(&path).expect("begun");
        assert!(length(&path) == 0 && !earlier_log(&path).exists());
    }

    #[test]
    fn other_files_stay_as_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let others = ["castra.log", "web-console.log.1", "console.txt", "web.json"];
        let paths = others.map(|name| log(directory.path(), name, QEMU_BYTES));
        let elsewhere = tempfile::tempdir().expect("a directory");
        let target = log(elsewhere.path(), "web-console.log", QEMU_BYTES);
        std::os::unix::fs::symlink(&target, directory.path().join("web-qemu.log")).expect("linked");
        bound(directory.path());
        for path in paths.iter().chain([&target]) {
            assert_eq!(length(path), QEMU_BYTES + 10, "{}", path.display());
        }
    }

    #[test]
    fn a_log_is_bounded_as_long_as_the_watch_lasts() {
        let directory = tempfile::tempdir().expect("a directory");
        let watch = LogWatch::default();
        watch.watch(directory.path());
        let named = log(directory.path(), "web-qemu.log", QEMU_BYTES);
        let unnamed = log(directory.path(), "other", QEMU_BYTES);
        let file = File::open(&unnamed).expect("opened");
        watch.watch_file(&unnamed);
        fs::remove_file(&unnamed).expect("removed");
        let deadline = Instant::now() + Duration::from_secs(60);
        while length(&named) + file.metadata().expect("open").len() > 0 {
            assert!(Instant::now() < deadline, "the logs stay long");
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_full_log_of_castra_makes_place_and_one_is_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = log(directory.path(), "castra.log", CASTRA_BYTES);
        open_to_append(&path).expect("opened").write_all(b"line").expect("written");
        assert_eq!((length(&path), length(&earlier_log(&path))), (4, CASTRA_BYTES + 10));
    }
}
