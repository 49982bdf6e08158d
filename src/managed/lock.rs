//! One castra at a time works on an image.

use std::path::Path;

use super::error::{ImageError, io_error};
use super::files;
use super::job::Job;
use crate::lock::{Lock, LockError};
use crate::report::Event;

/// Takes the lock on this file. Who has to wait says so once, as waiting for `what`; after waiting, look again at what
/// the lock guards: whoever held it has probably done the work.
///
/// # Errors
/// [`ImageError::Interrupted`], or that the file cannot be made or locked.
pub(super) fn take(job: &Job, path: &Path, what: &str) -> Result<Lock, ImageError> {
    if let Some(directory) = path.parent() {
        files::create_directory(directory)?;
    }
    let file = files::open_or_create(path)?;
    let tell = || job.report(Event::Waiting { what: what.to_owned() });
    Lock::hold(file, path, &job.context.cancel, tell).map_err(|error| match error {
        LockError::File { path, source } => io_error("lock", &path, source),
        LockError::Interrupted(interrupted) => interrupted.into(),
    })
}
