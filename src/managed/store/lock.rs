//! One castra at a time works on an image.

use std::path::Path;

use crate::files::{self, At, FileError};
use crate::lock::{Lock, LockError};
use crate::managed::job::Job;
use crate::report::Event;

/// Takes the lock on this file. Who has to wait says so once, as waiting for `what`; after waiting, look again at what
/// the lock guards: whoever held it has probably done the work.
///
/// # Errors
/// [`FileError::Interrupted`], or that the file cannot be made or locked.
pub(crate) fn take(job: &Job, path: &Path, what: &str) -> Result<Lock, FileError> {
    let mut tell = Some(|| job.report(Event::Waiting { what: what.to_owned() }));
    loop {
        let file = open(path)?;
        let on_wait = || tell.take().into_iter().for_each(|tell| tell());
        let lock = Lock::hold(file, path, &job.context.cancel, on_wait).map_err(failed)?;
        // The cache may be removed at any moment, and its locks with it.
        if lock.is_on(path) {
            return Ok(lock);
        }
    }
}

/// Takes a share of the lock on this file, which others may have too, and keeps [`take`] and [`take_if_free`] out.
///
/// # Errors
/// As for [`take`].
pub(crate) fn share(job: &Job, path: &Path, what: &str) -> Result<Lock, FileError> {
    let mut tell = Some(|| job.report(Event::Waiting { what: what.to_owned() }));
    loop {
        let on_wait = || tell.take().into_iter().for_each(|tell| tell());
        let lock = Lock::share(path, &job.context.cancel, on_wait).map_err(failed)?;
        if lock.is_on(path) {
            return Ok(lock);
        }
    }
}

/// The same on a file whose bytes will be relied on: one of another user's is replaced.
///
/// # Errors
/// As for [`take`].
pub(crate) fn take_own(job: &Job, path: &Path, what: &str) -> Result<Lock, FileError> {
    loop {
        drop(files::open_own_or_create(path)?);
        let lock = take(job, path, what)?;
        if files::is_trusted(&lock.file().metadata().at("look at", path)?) {
            return Ok(lock);
        }
    }
}

/// Takes the lock if nobody holds it.
///
/// # Errors
/// That the file cannot be made or locked.
pub(crate) fn take_if_free(path: &Path) -> Result<Option<Lock>, FileError> {
    Lock::try_hold(open(path)?, path).map_err(failed)
}

fn open(path: &Path) -> Result<std::fs::File, FileError> {
    if let Some(directory) = path.parent() {
        files::create_directory(directory)?;
    }
    files::open_or_create(path)
}

fn failed(error: LockError) -> FileError {
    match error {
        LockError::File { path, source } => FileError::io("lock", &path, source),
        LockError::Interrupted(interrupted) => interrupted.into(),
    }
}
