//! Refusals of the operating system.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::error::{Explain, Kind, kind_of_io};
use crate::vm::record::hint_of_io;

/// Error of the operating system, with the file that it is about.
#[derive(Debug, thiserror::Error)]
pub enum VmIoError {
    /// A file or directory of the VM, or of its base, cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// The refused operation.
        action: FileAction,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The project's state belongs to another user.
    #[error("cannot read {}, which belongs to {owner}", path.display())]
    StateOfAnother {
        /// The file or directory.
        path: PathBuf,
        /// Owner, in words.
        owner: String,
        /// The project's state root.
        state_root: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The system provides no random bytes.
    #[error("cannot read random bytes from the system")]
    Random(#[source] io::Error),
}

/// Operation on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAction {
    /// Read it.
    Read,
    /// Read its metadata.
    LookAt,
    /// Write to it.
    Write,
    /// Create it, or what it needs.
    Create,
    /// Remove it.
    Remove,
    /// Move it out of the way.
    Quarantine,
    /// Lock it.
    Lock,
    /// Connect to it, a socket.
    ConnectTo,
    /// Choose a port for the VM with this directory.
    FindPort,
}

impl fmt::Display for FileAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::LookAt => "look at",
            Self::Write => "write",
            Self::Create => "create",
            Self::Remove => "remove",
            Self::Quarantine => "quarantine",
            Self::Lock => "lock",
            Self::ConnectTo => "connect to",
            Self::FindPort => "find a free port for",
        })
    }
}

impl Explain for VmIoError {
    fn kind(&self) -> Kind {
        match self {
            Self::File { action: FileAction::Create, source, .. }
                if kind_of_io(source) == Kind::Io =>
            {
                Kind::CannotCreate
            }
            Self::File { source, .. } | Self::Random(source) => kind_of_io(source),
            Self::StateOfAnother { .. } => Kind::Permission,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File { path, source, .. } => hint_of_io(path, source),
            Self::StateOfAnother { state_root, .. } => Some(format!(
                "Perhaps castra was run with sudo here. Nothing is lost: stop its VMs with `sudo \
                 castra down`, then `sudo chown -R \"$(id -u)\" {}` makes the VMs yours.",
                state_root.display()
            )),
            Self::Random(_) => None,
        }
    }
}
