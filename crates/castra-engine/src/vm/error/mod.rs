//! Errors of operations on a VM, by operation: each file has the messages, the kinds and the hints
//! of its errors.
//!
//! | Where | Errors of |
//! | --- | --- |
//! | `state` | a VM in a state that an operation cannot work with |
//! | `start`, `port` | starting it, and the host's ports that it forwards |
//! | `mount`, `companion` | directories of the host in its guest, and the process behind them |
//! | `access` | reaching its guest: agent, sockets, console |
//! | `suspend`, `clone`, `stop` | suspending and resuming, cloning, stopping |
//! | `provision` | steps that prepare its disk |
//! | `disk` | its disk, base image and layers |
//! | `io` | the operating system |
//! | `throwaway` | a VM for one command, any of the others |

mod access;
mod clone;
mod companion;
mod disk;
mod io;
mod mount;
mod port;
mod provision;
mod start;
mod state;
mod stop;
mod suspend;
mod throwaway;

use crate::cancel::Interrupted;
use crate::context::RuntimeContext;
use crate::error::{Explain, Kind};
use crate::files::{FileError, LockError};
use crate::guest::{ControlError, InitrdError, KeyError, NetworkDown};
use crate::managed::ImageError;
use crate::qemu::QemuError;
use crate::report::Event;
use crate::state_root::StateRootError;
use crate::template::TemplateError;

use super::diagnosis::Diagnosis;
use super::record::RecordError;

pub use access::{AccessError, Attempt};
pub use clone::CloneError;
pub use companion::CompanionError;
pub use disk::VmDiskError;
pub use io::{FileAction, VmIoError};
pub use mount::MountError;
pub use port::PortError;
pub use provision::{ProvisionError, StepName, StepOwner};
pub use start::{NoLogin, Predecessor, StartError};
pub use state::StateError;
pub use stop::StopError;
pub use suspend::SuspendError;
pub use throwaway::ThrowawayError;

/// Error of an operation on a VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The VM's record is not available.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The state of the VM does not allow the operation.
    #[error(transparent)]
    State(#[from] StateError),
    /// The VM could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A declared port of the host is not free.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A directory of the host is not mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The process that serves the VM's mounts cannot be used.
    #[error(transparent)]
    Companion(#[from] CompanionError),
    /// The VM's disk could not be prepared.
    #[error(transparent)]
    Provision(Box<ProvisionError>),
    /// The guest cannot be reached.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The VM cannot be suspended or resumed.
    #[error(transparent)]
    Suspend(#[from] SuspendError),
    /// The VM cannot be cloned.
    #[error(transparent)]
    Clone(#[from] CloneError),
    /// The VM was not stopped, or not in an orderly way.
    #[error(transparent)]
    Stop(#[from] StopError),
    /// The VM's disk, or what it is based on, cannot be used.
    #[error(transparent)]
    Disk(#[from] VmDiskError),
    /// The operating system refuses something.
    #[error(transparent)]
    Io(#[from] VmIoError),
    /// A throwaway VM did not start.
    #[error(transparent)]
    Throwaway(#[from] ThrowawayError),
    /// The image is not available.
    #[error(transparent)]
    Image(Box<ImageError>),
    /// A file of the VM cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// QEMU could not be run.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// A warm template could not be made or used.
    #[error(transparent)]
    Template(Box<TemplateError>),
    /// The agent could not be reached.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The guest runs, but its network does not.
    #[error(transparent)]
    NetworkDown(#[from] NetworkDown),
    /// The agent could not be added to the initramfs.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The VM's keys cannot be created or read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The state root cannot be used.
    #[error(transparent)]
    StateRoot(#[from] StateRootError),
    /// Another process works on the VM.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The operation was interrupted.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl From<ImageError> for VmError {
    fn from(error: ImageError) -> Self {
        Self::Image(Box::new(error))
    }
}

impl From<ProvisionError> for VmError {
    fn from(error: ProvisionError) -> Self {
        Self::Provision(Box::new(error))
    }
}

impl From<TemplateError> for VmError {
    fn from(error: TemplateError) -> Self {
        Self::Template(Box::new(error))
    }
}

impl VmError {
    /// Returns the diagnosis of a failed start, if there is one.
    pub fn diagnosis(&self) -> Option<&Diagnosis> {
        match self {
            Self::Start(error) => error.diagnosis(),
            _ => None,
        }
    }

    /// Returns `true` if the operation was interrupted on request.
    pub fn is_interruption(&self) -> bool {
        self.kind() == Kind::Interrupted
    }

    fn inner(&self) -> &dyn Explain {
        match self {
            Self::Record(error) => error,
            Self::State(error) => error,
            Self::Start(error) => error,
            Self::Port(error) => error,
            Self::Mount(error) => error,
            Self::Companion(error) => error,
            Self::Provision(error) => error.as_ref(),
            Self::Access(error) => error,
            Self::Suspend(error) => error,
            Self::Clone(error) => error,
            Self::Stop(error) => error,
            Self::Disk(error) => error,
            Self::Io(error) => error,
            Self::Throwaway(error) => error,
            Self::Image(error) => error.as_ref(),
            Self::File(error) => error,
            Self::Qemu(error) => error,
            Self::Template(error) => error.as_ref(),
            Self::Control(error) => error,
            Self::NetworkDown(error) => error,
            Self::Initrd(error) => error,
            Self::Key(error) => error,
            Self::StateRoot(error) => error,
            Self::Lock(error) => error,
            Self::Interrupted(error) => error,
        }
    }
}

impl Explain for VmError {
    fn kind(&self) -> Kind {
        self.inner().kind()
    }

    fn hint(&self) -> Option<String> {
        self.inner().hint()
    }
}

/// Reports an error that does not end an operation, with its cause.
pub(super) fn warn(error: &dyn std::error::Error, context: &RuntimeContext) {
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    context.reporter.report(&Event::Warning { message: format!("{error}{source}") });
}
