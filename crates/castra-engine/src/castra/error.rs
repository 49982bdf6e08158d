//! Errors of throw-away VMs and of runs with a time limit.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::MAX_STEPS;
use crate::error::{Explain, Kind, kind_of_io};

/// Error before a throw-away VM is started.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    /// Neither the cache nor the directory for temporary files can be written to.
    #[error("cannot create {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    /// A script that prepares the disk cannot be read.
    #[error("cannot read the script {}", path.display())]
    Script { path: PathBuf, source: io::Error },
    /// A disk has too many layers.
    #[error("the image and the command line together have more than {MAX_STEPS} steps")]
    TooManySteps,
    /// The thread that QEMU's life depends on cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

impl Explain for SandboxError {
    fn kind(&self) -> Kind {
        match self {
            Self::Directory { source, .. } if kind_of_io(source) == Kind::Io => Kind::CannotCreate,
            Self::Script { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Kind::NotFound
            }
            Self::Directory { source, .. } | Self::Script { source, .. } | Self::Thread(source) => {
                kind_of_io(source)
            }
            Self::TooManySteps => Kind::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Directory { path, source } if kind_of_io(source) == Kind::Permission => {
                let path = path.display();
                Some(format!("Give yourself access to {path}, or set TMPDIR to another directory."))
            }
            Self::TooManySteps => Some("Put several scripts into one.".to_owned()),
            Self::Directory { .. } | Self::Script { .. } | Self::Thread(_) => None,
        }
    }
}

/// Error of a run that was ended by its time limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the command timed out after {} s and was stopped with its VM", limit.as_secs_f64())]
pub struct TimedOut {
    /// The limit.
    pub limit: Duration,
}

impl Explain for TimedOut {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn hint(&self) -> Option<String> {
        Some("--timeout SECS gives it more time.".into())
    }
}
