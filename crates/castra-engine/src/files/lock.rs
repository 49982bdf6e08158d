//! Locks between processes: one file per thing that is worked on, freed by the kernel whenever its
//! holder ends.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::directory::create_private_directory;
use super::error::FileError;
use crate::cancel::{Cancel, Interrupted};
use crate::error::{Explain, Kind, MORE_SPACE, is_full, kind_of_io};
use crate::trusted;

/// Interval between two attempts of a waiter.
const POLL: Duration = Duration::from_millis(20);

/// A lock that is held until this is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Failure to take a lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The lock file cannot be opened.
    #[error("cannot lock {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The wait was interrupted.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Explain for LockError {
    fn kind(&self) -> Kind {
        match self {
            Self::File { source, .. } => kind_of_io(source),
            Self::Interrupted(_) => Kind::Interrupted,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File { source, .. } if is_full(source) => Some(MORE_SPACE.to_owned()),
            Self::File { path, .. } => {
                Some(format!("{} must be a file of your own that you may write.", path.display()))
            }
            Self::Interrupted(_) => None,
        }
    }
}

impl From<LockError> for FileError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::File { path, source } => Self::io("lock", &path, source),
            LockError::Interrupted(interrupted) => interrupted.into(),
        }
    }
}

impl Lock {
    /// Takes the lock, waiting as long as it takes; calls `on_wait` once if there is a wait.
    ///
    /// # Errors
    /// Returns [`LockError::File`] or [`LockError::Interrupted`].
    pub fn acquire(
        path: &Path,
        cancel: &Cancel,
        on_wait: impl FnOnce(),
    ) -> Result<Self, LockError> {
        let file =
            open(path).map_err(|source| LockError::File { path: path.to_owned(), source })?;
        Self::hold(file, path, cancel, on_wait)
    }

    /// Takes a shared lock, which excludes only exclusive ones; otherwise as [`Self::acquire`].
    ///
    /// # Errors
    /// Returns errors as [`Self::acquire`] does.
    pub fn share(path: &Path, cancel: &Cancel, on_wait: impl FnOnce()) -> Result<Self, LockError> {
        let file =
            open(path).map_err(|source| LockError::File { path: path.to_owned(), source })?;
        wait_for(file, path, cancel, on_wait, File::try_lock_shared)
    }

    /// Takes the lock if it is free.
    ///
    /// # Errors
    /// Returns [`LockError::File`].
    pub fn try_acquire(path: &Path) -> Result<Option<Self>, LockError> {
        let file =
            open(path).map_err(|source| LockError::File { path: path.to_owned(), source })?;
        Self::try_hold(file, path)
    }

    /// Takes the lock of an open file if it is free.
    ///
    /// # Errors
    /// Returns [`LockError::File`].
    pub fn try_hold(file: File, path: &Path) -> Result<Option<Self>, LockError> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => {
                Err(LockError::File { path: path.to_owned(), source })
            }
        }
    }

    /// Takes the lock as [`Self::acquire`] does, of a thing whose lock file is removed with it: one
    /// that was removed during the wait excludes no one.
    ///
    /// # Errors
    /// Returns errors as [`Self::acquire`] does.
    pub fn acquire_removable(
        path: &Path,
        cancel: &Cancel,
        on_wait: impl Fn(),
    ) -> Result<Self, LockError> {
        loop {
            let lock = Self::acquire(path, cancel, &on_wait)?;
            if lock.is_on(path) {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock as [`Self::acquire_removable`] does, if it is free.
    ///
    /// # Errors
    /// Returns [`LockError::File`].
    pub fn try_acquire_removable(path: &Path) -> Result<Option<Self>, LockError> {
        loop {
            match Self::try_acquire(path)? {
                Some(lock) if !lock.is_on(path) => {}
                outcome => return Ok(outcome),
            }
        }
    }

    /// Removes the lock file, then frees the lock. All who take it must do so by
    /// [`Self::acquire_removable`] or [`Self::try_acquire_removable`].
    pub fn remove(self, path: &Path) {
        if self.is_on(path) {
            let _ = fs::remove_file(path);
        }
    }

    /// Returns the locked file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns `true` if `path` still leads to the locked file: a lock on a removed file excludes
    /// no other process.
    pub fn is_on(&self, path: &Path) -> bool {
        let same = |locked: &Metadata, there: &Metadata| {
            (locked.dev(), locked.ino()) == (there.dev(), there.ino())
        };
        matches!(
            (self.file.metadata(), fs::symlink_metadata(path)),
            (Ok(locked), Ok(there)) if same(&locked, &there)
        )
    }

    /// Takes the lock as [`Self::acquire`] does, on a file that is open already; `path` is for
    /// messages.
    ///
    /// # Errors
    /// Returns errors as [`Self::acquire`] does.
    pub fn hold(
        file: File,
        path: &Path,
        cancel: &Cancel,
        on_wait: impl FnOnce(),
    ) -> Result<Self, LockError> {
        wait_for(file, path, cancel, on_wait, File::try_lock)
    }
}

fn wait_for(
    file: File,
    path: &Path,
    cancel: &Cancel,
    on_wait: impl FnOnce(),
    attempt: impl Fn(&File) -> Result<(), TryLockError>,
) -> Result<Lock, LockError> {
    let mut on_wait = Some(on_wait);
    loop {
        match attempt(&file) {
            Ok(()) => return Ok(Lock { file }),
            Err(TryLockError::Error(source)) => {
                return Err(LockError::File { path: path.to_owned(), source });
            }
            Err(TryLockError::WouldBlock) => {}
        }
        if let Some(on_wait) = on_wait.take() {
            on_wait();
        }
        cancel.check()?;
        thread::sleep(POLL);
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        create_private_directory(directory)?;
    }
    trusted::open_with(
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600),
        path,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_second_waits_until_the_first_is_done() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/vm.lock");
        let first = Lock::acquire(&path, &Cancel::new(), || panic!("no other process holds it"))
            .expect("locked");
        let (waits, waiting) = mpsc::channel();
        let second = thread::spawn({
            let path = path.clone();
            move || Lock::acquire(&path, &Cancel::new(), || waits.send(()).expect("heard")).is_ok()
        });
        waiting.recv().expect("the second waits");
        drop(first);
        assert!(second.join().expect("joined"));
    }

    #[test]
    fn a_waiter_can_be_interrupted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let _first = Lock::acquire(&path, &Cancel::new(), || ()).expect("locked");
        let cancel = Cancel::new();
        let canceller = cancel.clone();
        let result = Lock::acquire(&path, &cancel, move || canceller.cancel());
        assert!(matches!(result, Err(LockError::Interrupted(_))));
    }

    #[test]
    fn a_planted_symlink_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        std::os::unix::fs::symlink(directory.path().join("elsewhere"), &path).expect("planted");
        assert!(matches!(Lock::acquire(&path, &Cancel::new(), || ()), Err(LockError::File { .. })));
        assert!(!directory.path().join("elsewhere").exists());
    }
}
