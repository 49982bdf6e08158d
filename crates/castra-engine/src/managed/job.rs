//! Context of one image operation: reporter, cancellation, timeouts, log.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::log::ImageLog;
use super::spec::ArtifactRole;
use super::timeouts::Timeouts;
use crate::cancel::Interrupted;
use crate::context::RuntimeContext;
use crate::files::{self, At, FileError, Lock};
use crate::managed::store::witness::Witness;
use crate::report::{Event, ImageLabel};

/// Least time between two [`Event::Download`]s of one artifact: ten per second.
const BETWEEN_EVENTS: Duration = Duration::from_millis(100);

/// Work on one image.
pub(super) struct Job<'a> {
    pub(super) context: &'a RuntimeContext,
    pub(super) image: ImageLabel,
    pub(super) timeouts: &'a Timeouts,
    pub(super) log: ImageLog,
    /// Record of what this user's castra has made.
    pub(super) witness: Witness,
    /// Warnings given already, since the same thing may be checked again under a lock.
    warned: Mutex<BTreeSet<String>>,
}

impl<'a> Job<'a> {
    pub(super) fn new(
        context: &'a RuntimeContext,
        image: ImageLabel,
        timeouts: &'a Timeouts,
        log: ImageLog,
    ) -> Self {
        let witness = Witness::of(context);
        Self { context, image, timeouts, log, witness, warned: Mutex::default() }
    }

    /// Checks for cancellation.
    ///
    /// # Errors
    /// Returns [`Interrupted`] once the operation is cancelled.
    pub(super) fn check(&self) -> Result<(), Interrupted> {
        self.context.cancel.check()
    }

    pub(super) fn report(&self, event: Event) {
        self.context.reporter.report(&event);
    }

    /// Logs and reports the start of a step.
    pub(super) fn step(&self, artifact: ArtifactRole, step: impl Into<String>) {
        let step = step.into();
        self.log.line(&format!("{} {artifact}: {step}", self.image));
        self.report(Event::ArtifactStep {
            image: self.image.clone(),
            artifact: artifact.to_string(),
            step,
        });
    }

    /// Logs and reports a warning, once.
    pub(super) fn warn(&self, message: impl Into<String>) {
        let message = message.into();
        let is_new =
            self.warned.lock().unwrap_or_else(PoisonError::into_inner).insert(message.clone());
        if !is_new {
            return;
        }
        self.log.line(&format!("{} warning: {message}", self.image));
        self.report(Event::Warning { message });
    }

    /// Writes a line to the log only.
    pub(super) fn note(&self, text: &str) {
        self.log.line(&format!("{} {text}", self.image));
    }

    /// Takes the lock on this file, which is created if needed. Reports a wait once, as waiting for
    /// `what`. After a wait, check again what the lock guards: its last holder has probably done
    /// the work.
    ///
    /// # Errors
    /// Returns [`FileError::Interrupted`], or the error of creating or locking the file.
    pub(super) fn lock(&self, path: &Path, what: &str) -> Result<Lock, FileError> {
        self.until_it_is_on(path, what, |on_wait| {
            Lock::hold(open_lock(path)?, path, &self.context.cancel, on_wait)
                .map_err(FileError::from)
        })
    }

    /// Takes a shared lock on this file, which excludes [`Self::lock`] and [`lock_if_free`] but not
    /// other shared locks.
    ///
    /// # Errors
    /// Returns errors as [`Self::lock`] does.
    pub(super) fn share_lock(&self, path: &Path, what: &str) -> Result<Lock, FileError> {
        self.until_it_is_on(path, what, |on_wait| {
            Lock::share(path, &self.context.cancel, on_wait).map_err(FileError::from)
        })
    }

    /// Takes the lock on a file whose bytes will be trusted: a file of another user is replaced.
    ///
    /// # Errors
    /// Returns errors as [`Self::lock`] does.
    pub(super) fn lock_own(&self, path: &Path, what: &str) -> Result<Lock, FileError> {
        loop {
            drop(files::open_own_or_create(path)?);
            let lock = self.lock(path, what)?;
            if files::is_trusted(&lock.file().metadata().at("look at", path)?) {
                return Ok(lock);
            }
        }
    }

    /// Repeats taking a lock until its file is still the one of that name: the cache may be removed
    /// at any moment, and its locks with it.
    fn until_it_is_on(
        &self,
        path: &Path,
        what: &str,
        take: impl Fn(&mut dyn FnMut()) -> Result<Lock, FileError>,
    ) -> Result<Lock, FileError> {
        let mut is_reported = false;
        loop {
            let lock = take(&mut || {
                if !std::mem::replace(&mut is_reported, true) {
                    self.report(Event::Waiting { what: what.to_owned() });
                }
            })?;
            if lock.is_on(path) {
                return Ok(lock);
            }
        }
    }

    /// Starts the progress of an artifact's download.
    pub(super) fn progress(
        &self,
        artifact: ArtifactRole,
        total_bytes: Option<u64>,
    ) -> Progress<'_> {
        Progress { job: self, artifact, total_bytes, last: None }
    }
}

/// Takes the lock on this file if it is free.
///
/// # Errors
/// Returns the error of creating or locking the file.
pub(super) fn lock_if_free(path: &Path) -> Result<Option<Lock>, FileError> {
    Ok(Lock::try_hold(open_lock(path)?, path)?)
}

fn open_lock(path: &Path) -> Result<File, FileError> {
    if let Some(directory) = path.parent() {
        files::create_directory(directory)?;
    }
    files::open_or_create(path)
}

/// Progress of a download, reported at a limited rate.
pub(super) struct Progress<'a> {
    job: &'a Job<'a>,
    artifact: ArtifactRole,
    total_bytes: Option<u64>,
    last: Option<Instant>,
}

impl Progress<'_> {
    pub(super) fn started(&mut self, from: &str, resumed_bytes: u64) {
        let (image, artifact) = (self.job.image.clone(), self.artifact.to_string());
        let (from, total_bytes) = (from.to_owned(), self.total_bytes);
        self.job.note(&format!("{artifact}: downloading {from}, from byte {resumed_bytes}"));
        self.job.report(Event::DownloadStarted {
            image,
            artifact,
            from,
            resumed_bytes,
            total_bytes,
        });
    }

    /// Sets the total number of bytes once the server has announced it.
    pub(super) fn expect(&mut self, total_bytes: u64) {
        self.total_bytes.get_or_insert(total_bytes);
    }

    pub(super) fn at(&mut self, done_bytes: u64) {
        if self.last.is_some_and(|last| last.elapsed() < BETWEEN_EVENTS) {
            return;
        }
        self.last = Some(Instant::now());
        let (image, artifact) = (self.job.image.clone(), self.artifact.to_string());
        self.job.report(Event::Download {
            image,
            artifact,
            done_bytes,
            total_bytes: self.total_bytes,
        });
    }

    pub(super) fn retry(&self, reason: String, wait: Duration) {
        let (image, artifact) = (self.job.image.clone(), self.artifact.to_string());
        self.job.note(&format!("{artifact}: {reason}; retrying in {} ms", wait.as_millis()));
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.job.report(Event::DownloadRetry { image, artifact, reason, wait_ms });
    }

    pub(super) fn finished(&self, total_bytes: u64) {
        let (image, artifact) = (self.job.image.clone(), self.artifact.to_string());
        self.job.note(&format!("{artifact}: {total_bytes} bytes, digest verified"));
        self.job.report(Event::DownloadFinished { image, artifact, total_bytes });
    }
}
