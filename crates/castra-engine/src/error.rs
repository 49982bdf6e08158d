//! Errors: their kind, message, cause and hint.
//!
//! Every module has an error type of its own (`ConfigError`, `ImageError`, `QemuError`, …), made
//! with `thiserror`: `Display` says what happened and names the thing, `source()` is the cause, and
//! [`Explain`] adds the [`Kind`] (which becomes the exit code) and the hint. [`Error`] holds any of
//! them; the command line prints message, causes and hint once each.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

/// Result of Castra's own operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Kind of a failure. The command line turns it into the exit code (the numbers of `sysexits.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Unexpected: exit code 1.
    Other,
    /// Invalid command line: 64.
    Usage,
    /// Invalid configuration or other data: 65.
    Data,
    /// No such configuration, VM or image: 66.
    NotFound,
    /// Network, QEMU, qemu-img or another helper is unavailable: 69.
    Unavailable,
    /// A bug in Castra: 70.
    Internal,
    /// Cannot create a file: 73.
    CannotCreate,
    /// I/O error: 74.
    Io,
    /// In use by another process; trying again may help: 75.
    Busy,
    /// Permission denied: 77.
    Permission,
    /// Not possible on this host: 78.
    HostNotCapable,
    /// The user interrupted it (Ctrl-C): 130.
    Interrupted,
}

/// Extension of [`std::error::Error`] by kind and hint, for every error type of Castra.
pub trait Explain: StdError + std::any::Any + Send + Sync {
    /// Returns the kind of failure.
    fn kind(&self) -> Kind;

    /// Returns a next step for the reader, as complete sentences without a label.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// An I/O error that can be cloned. In a chain of causes it stands for the error itself, so that
/// a search for an [`io::Error`] there succeeds.
#[derive(Debug, Clone)]
pub struct SharedIoError(Arc<io::Error>);

impl From<io::Error> for SharedIoError {
    fn from(error: io::Error) -> Self {
        Self(Arc::new(error))
    }
}

impl std::ops::Deref for SharedIoError {
    type Target = io::Error;

    fn deref(&self) -> &io::Error {
        &self.0
    }
}

/// Any error of Castra.
pub struct Error(Box<dyn Explain>);

impl Error {
    /// Returns the kind of failure.
    pub fn kind(&self) -> Kind {
        self.0.kind()
    }

    /// Returns a next step for the reader. A file-size limit has the same hint wherever it is met,
    /// and so has a full filesystem of which the error itself says nothing.
    pub fn hint(&self) -> Option<String> {
        let is_caused_by = |is_it: fn(&std::io::Error) -> bool| {
            self.causes().filter_map(|cause| cause.downcast_ref()).any(is_it)
        };
        if is_caused_by(|error| error.kind() == std::io::ErrorKind::FileTooLarge) {
            return Some(FILE_SIZE_HINT.to_owned());
        }
        self.0.hint().or_else(|| is_caused_by(is_full).then(|| MORE_SPACE.to_owned()))
    }

    /// Returns the causes below the message, outermost first.
    pub fn causes(&self) -> impl Iterator<Item = &(dyn StdError + 'static)> {
        std::iter::successors(self.0.source(), |cause| (*cause).source())
    }

    /// Returns the error as the type it was made from.
    pub fn downcast_ref<E: Explain>(&self) -> Option<&E> {
        (&*self.0 as &dyn std::any::Any).downcast_ref()
    }
}

impl<E: Explain> From<E> for Error {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Returns an error and its causes as one line.
#[must_use]
pub fn one_line(error: &dyn StdError) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// Hint for a file that has reached a size limit.
pub const FILE_SIZE_HINT: &str = "`ulimit -f` shows the limit of this shell, and `ulimit -f \
    unlimited` lifts it; where that is refused, a login without the limit is needed. If there is \
    none, the filesystem cannot hold files of that size.";

/// Hint for a full disk.
pub const MORE_SPACE: &str = "Free some space (`castra image prune` removes what no project \
    needs), or use a larger disk: the project's directory can be moved, and XDG_CACHE_HOME sets the \
    cache directory. Partial downloads are kept.";

/// Returns `true` if the filesystem, or this user's part of it, is full.
pub fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// Returns the [`Kind`] of an I/O error.
pub fn kind_of_io(error: &std::io::Error) -> Kind {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            Kind::Permission
        }
        _ => Kind::Io,
    }
}
