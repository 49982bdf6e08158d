//! Errors of mounts: directories of the host that a VM sees.

use std::io;
use std::path::PathBuf;

use crate::error::{Explain, Kind, kind_of_io};
use crate::guest::{GuestPathProblem, MAX_MOUNTS, Mount};

/// Reason why a VM does not see a directory of the host.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory does not exist or cannot be read.
    #[error("cannot mount {} in VM `{vm}`", host.display())]
    Directory {
        /// The VM.
        vm: String,
        /// The directory.
        host: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The path names no directory that castra mounts.
    #[error("cannot mount {} in VM `{vm}`: {reason}", host.display())]
    Unsuitable {
        /// The VM.
        vm: String,
        /// The directory.
        host: PathBuf,
        /// The reason.
        reason: &'static str,
    },
    /// The user has not agreed that the VM sees the directories.
    #[error("castra.toml lets VM `{vm}` {}", wishes(mounts))]
    NotGranted {
        /// The VM.
        vm: String,
        /// The mounts.
        mounts: Vec<Mount>,
    },
    /// The consent cannot be written down.
    #[error("cannot write {}", path.display())]
    Grant {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The directory cannot be at this place in the guest.
    #[error("cannot mount at `{guest}` in VM `{vm}`: {problem}")]
    GuestPath {
        /// The VM.
        vm: String,
        /// The path.
        guest: String,
        /// The reason.
        problem: GuestPathProblem,
    },
    /// Another mount is at the same place, or one is inside the other.
    #[error("VM `{vm}` cannot have mounts at both `{first}` and `{second}`")]
    Entangled {
        /// The VM.
        vm: String,
        /// Path of the first one in the guest.
        first: String,
        /// Path of the second one.
        second: String,
    },
    /// There are too many.
    #[error("VM `{vm}` cannot have more than {MAX_MOUNTS} mounts")]
    TooMany {
        /// The VM.
        vm: String,
    },
    /// The VM has no agent, or one of an earlier castra.
    #[error("VM `{vm}` cannot have mounts: {reason}")]
    Unsupported {
        /// The VM.
        vm: String,
        /// The reason.
        reason: &'static str,
    },
    /// Nothing is mounted at this place.
    #[error("VM `{vm}` has no mount at `{guest}`")]
    Unknown {
        /// The VM.
        vm: String,
        /// The path.
        guest: String,
    },
    /// The guest or the companion refuses.
    #[error("VM `{vm}` has not {action} {guest}: {reason}")]
    Refused {
        /// The VM.
        vm: String,
        /// Participle of the action.
        action: &'static str,
        /// Path in the guest.
        guest: String,
        /// The reason.
        reason: String,
    },
}

/// Returns what a VM may do with mounts, to follow its name.
fn wishes(mounts: &[Mount]) -> String {
    let wishes: Vec<_> = mounts.iter().map(Mount::wish).collect();
    wishes.join(", and ")
}

impl Explain for MountError {
    fn kind(&self) -> Kind {
        match self {
            Self::Directory { source, .. } | Self::Grant { source, .. } => kind_of_io(source),
            Self::Unsuitable { .. }
            | Self::GuestPath { .. }
            | Self::Entangled { .. }
            | Self::TooMany { .. }
            | Self::Unknown { .. } => Kind::Usage,
            Self::NotGranted { .. } => Kind::Permission,
            Self::Unsupported { .. } | Self::Refused { .. } => Kind::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Directory { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("Create it, or remove the mount.".to_owned())
            }
            Self::NotGranted { vm, .. } => Some(format!(
                "Programs in the VM can do that, too. If you want it, run `castra up {vm} \
                --allow-mounts` once."
            )),
            Self::Directory { .. } => None,
            Self::Unsuitable { .. } => {
                Some("Mount a directory of your own, such as the project's: .:/src".to_owned())
            }
            Self::GuestPath { .. } => Some(
                "Name a directory for it in the VM, such as /src; it is made if missing."
                    .to_owned(),
            ),
            Self::Entangled { .. } => {
                Some("Give each mount a directory of its own in the VM.".to_owned())
            }
            Self::TooMany { .. } => Some("Mount a directory above them.".to_owned()),
            Self::Unknown { vm, .. } => Some(format!("`castra status -v {vm}` shows its mounts.")),
            Self::Grant { .. } | Self::Unsupported { .. } | Self::Refused { .. } => None,
        }
    }
}
