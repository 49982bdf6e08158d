//! Failures to make or use a warm template.

use std::io;
use std::path::{Path, PathBuf};

use crate::cancel::Interrupted;
use crate::error::{Explain, Kind, kind_of_io};
use crate::files::{FileError, LockError};
use crate::guest::{ControlError, InitrdError};
use crate::managed::ImageError;
use crate::qemu::{QemuError, QmpError};

/// Reason why a template could not be made or used. A VM also boots without one.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file of a template cannot be written or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// Failed action: `write`, `read`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The guest has not come to rest in time.
    #[error("the guest did not settle for a warm template within {limit_secs} s")]
    SettleTimeout {
        /// The limit.
        limit_secs: u64,
    },
    /// The guest will never come up, according to its own messages.
    #[error("the guest gave up its boot: {cause}")]
    BootFailed {
        /// The probable cause.
        cause: String,
    },
    /// The guest failed at a task that a template needs.
    #[error("the guest could not {task}: {reason}")]
    Guest {
        /// Name of the task.
        task: String,
        /// Message of the guest.
        reason: String,
    },
    /// The disk has no space left for the guest's writes.
    #[error("the filesystem of {} is full", directory.display())]
    DiskFull {
        /// Directory of the template.
        directory: PathBuf,
    },
    /// QEMU ended while the guest booted.
    #[error("QEMU exited while making a warm template{}", quoted(.0))]
    Died(String),
    /// QEMU does not answer.
    #[error("QEMU stopped responding while making a warm template ({0})")]
    NotResponding(QmpError),
    /// Another castra works on the same template, because its lock was removed with the cache.
    #[error("the cache was removed while making a warm template in it")]
    Disturbed,
    /// QEMU cannot keep a guest's memory in a file.
    #[error("this QEMU cannot keep a guest's memory in a file ({0})")]
    Unsupported(QmpError),
    /// QEMU failed.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// Communication with the agent failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The agent could not be put into the initramfs.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The image that it is made of could not be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The template's disk could not be brought into the project.
    #[error(transparent)]
    Share(#[from] FileError),
    /// Another process holds its lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The user pressed Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl TemplateError {
    /// Returns `true` if trying again soon would be pointless.
    pub fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::SettleTimeout { .. }
                | Self::BootFailed { .. }
                | Self::Guest { .. }
                | Self::Unsupported(_)
                | Self::Qemu(QemuError::NotSaved { .. } | QemuError::Died { .. })
        )
    }

    /// Returns `true` if a template cannot be stored here, but perhaps elsewhere.
    pub fn is_unwritable(&self) -> bool {
        match self {
            Self::File { source, .. } | Self::Lock(LockError::File { source, .. }) => {
                matches!(kind_of_io(source), Kind::Permission)
                    || source.kind() == io::ErrorKind::StorageFull
            }
            _ => false,
        }
    }

    /// Returns `true` if the user stopped it.
    pub fn is_interruption(&self) -> bool {
        self.kind() == Kind::Interrupted
    }
}

/// Converts the failure to do this with a file of a template.
pub(super) fn file_error(
    action: &'static str,
    path: &Path,
) -> impl Fn(io::Error) -> TemplateError + use<> {
    let path = path.to_owned();
    move |source| TemplateError::File { action, path: path.clone(), source }
}

impl Explain for TemplateError {
    fn kind(&self) -> Kind {
        match self {
            Self::File { source, .. } => kind_of_io(source),
            Self::DiskFull { .. } => Kind::Io,
            Self::SettleTimeout { .. }
            | Self::BootFailed { .. }
            | Self::Guest { .. }
            | Self::Died(_)
            | Self::NotResponding(_)
            | Self::Unsupported(_) => Kind::Unavailable,
            Self::Disturbed => Kind::Busy,
            Self::Qemu(error) => error.kind(),
            Self::Control(error) => error.kind(),
            Self::Initrd(error) => error.kind(),
            Self::Image(error) => error.kind(),
            Self::Share(error) => error.kind(),
            Self::Lock(error) => error.kind(),
            Self::Interrupted(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Qemu(error) => error.hint(),
            Self::Image(error) => error.hint(),
            Self::Share(error) => error.hint(),
            Self::Lock(error) => error.hint(),
            Self::DiskFull { .. } => Some(
                "`castra image prune` and `castra template prune` free space in the cache."
                    .to_owned(),
            ),
            Self::Interrupted(_) => None,
            Self::Control(_) | Self::Initrd(_) if self.is_interruption() => None,
            Self::File { .. }
            | Self::SettleTimeout { .. }
            | Self::BootFailed { .. }
            | Self::Guest { .. }
            | Self::Died(_)
            | Self::NotResponding(_)
            | Self::Disturbed
            | Self::Unsupported(_)
            | Self::Control(_)
            | Self::Initrd(_) => Some("`castra up --cold` boots without a template.".to_owned()),
        }
    }
}

/// Returns the end of QEMU's log.
fn quoted(log: &str) -> String {
    match log.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(line) => format!(": {}", line.trim()),
        None => ", without any output (is the disk full?)".to_owned(),
    }
}
