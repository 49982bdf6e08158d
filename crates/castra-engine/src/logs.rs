//! Bounds of logs: none grows without limit, whatever writes to it.
//!
//! A log that castra writes is rotated when it is opened. A log that QEMU holds open cannot be
//! renamed away from it, so its end is copied and the log is truncated, each time a castra command
//! opens the project, and every second while a command runs. QEMU appends, so that it continues at
//! the new end.

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

/// Size at which a log that castra writes is rotated, in bytes.
pub const CASTRA_BYTES: u64 = 1 << 20;

/// Size at which a log that QEMU writes is truncated, and maximum size of the copied end, in bytes.
pub const QEMU_BYTES: u64 = 2 << 20;

/// Interval of checks on QEMU's logs.
const INTERVAL: Duration = Duration::from_secs(1);

/// Opens a log for castra's own lines, after rotating it if it is full. Its directory exists.
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

/// Creates an empty log for a QEMU that is about to start, or truncates an existing one, and
/// removes the rotated log of the previous run.
///
/// # Errors
/// Those of `mkdir` and `open`, and [`trusted::Distrust`].
pub(crate) fn begin(log: &Path) -> io::Result<File> {
    if let Some(directory) = log.parent() {
        files::create_private_directory(directory)?;
    }
    files::part_from_other_names(log)?;
    let file = trusted::open_with(OpenOptions::new().append(true).create(true).mode(0o600), log)?;
    // Only now that it is known to be a file that castra may write to.
    file.set_len(0)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    match fs::remove_file(earlier_log(log)) {
        Err(error) if !trusted::is_absence(&error) => Err(error),
        _ => Ok(file),
    }
}

/// Truncates every log of QEMU's in this directory that exceeds its bound, keeping a copy of its
/// end. Leaves a log alone that cannot be examined or written to.
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
    // One castra at a time; the next one finds the log short.
    let Ok(Some(lock)) = Lock::try_hold(file, log) else { return Ok(()) };
    let mut file = lock.file();
    let found = file.metadata()?;
    let length = found.len();
    // A log that castra has made has no other names; castra may not truncate a shared file.
    if length <= QEMU_BYTES || found.nlink() > 1 {
        return Ok(());
    }
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(length - QEMU_BYTES))?;
    file.take(QEMU_BYTES).read_to_end(&mut end)?;
    // On a full disk, the bound is more important than the contents.
    let kept = files::write_lazily(&earlier_log(log), &end, 0o600);
    file.set_len(0)?;
    kept
}

/// A thread that keeps the logs of running QEMUs within their bounds, from the first log it is
/// given until this is dropped.
#[derive(Debug, Default)]
pub struct LogWatch {
    given: Mutex<Option<Sender<Watched>>>,
}

#[derive(Debug)]
enum Watched {
    /// The logs of a project's directory.
    Directory(PathBuf),
    /// A log that is not read afterwards, and may have been deleted.
    File(File),
}

impl Watched {
    fn bound(&self) {
        match self {
            Self::Directory(directory) => bound(directory),
            Self::File(log) if log.metadata().is_ok_and(|metadata| metadata.len() > QEMU_BYTES) => {
                // If truncating fails the log keeps growing; it is tried again.
                let _ = log.set_len(0);
            }
            Self::File(_) => {}
        }
    }
}

impl LogWatch {
    /// Bounds the logs of a directory, now and from now on.
    pub(crate) fn watch(&self, directory: &Path) {
        bound(directory);
        self.give(Watched::Directory(directory.to_owned()));
    }

    /// Bounds one log by truncating it from now on, even if it is renamed or deleted.
    pub(crate) fn watch_file(&self, log: &Path) {
        // A log that cannot be opened does not exist, or is not ours.
        if let Ok(file) = trusted::open_with(OpenOptions::new().write(true), log) {
            self.give(Watched::File(file));
        }
    }

    fn give(&self, watched: Watched) {
        let Ok(mut given) = self.given.lock() else { return };
        let sender = given.get_or_insert_with(|| {
            let (sender, receiver) = channel();
            // Without a thread, the next command bounds the logs.
            let _ = thread::Builder::new()
                .name("log-watch".to_owned())
                .spawn(move || keep_bounded(&receiver));
            sender
        });
        let _ = sender.send(watched);
    }
}

/// Bounds the logs that it is given, until the sender is gone.
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

    /// Creates a log with `bytes` bytes, the last of which are recognisable.
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
