//! Errors of cloning a VM.

use crate::error::{Explain, Kind};
use crate::vm::record::VmState;

use super::state::in_words;

/// Reason why a VM cannot be cloned, or a clone not used.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The name of the clone is not valid for a VM.
    #[error("`{name}` is not a valid VM name")]
    BadName {
        /// The name.
        name: String,
    },
    /// The clone needs a name of its own.
    #[error("VM `{vm}` already exists, or its disk does")]
    Exists {
        /// The name.
        vm: String,
    },
    /// Only a running or suspended VM can be cloned.
    #[error("VM `{vm}` is neither running nor suspended ({})", in_words(*state))]
    NotSuspended {
        /// The VM.
        vm: String,
        /// State that it is in instead.
        state: VmState,
    },
    /// The clone was interrupted before it was complete.
    #[error("VM `{vm}` is an unfinished clone of `{of}`")]
    Unfinished {
        /// Name of the clone.
        vm: String,
        /// The VM that was being cloned.
        of: String,
    },
}

impl Explain for CloneError {
    fn kind(&self) -> Kind {
        match self {
            Self::BadName { .. } => Kind::Usage,
            Self::Exists { .. } => Kind::CannotCreate,
            Self::NotSuspended { .. } | Self::Unfinished { .. } => Kind::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::BadName { .. } => {
                "Use letters, digits, `-`, `_` and `.`, a letter or digit first.".into()
            }
            Self::Exists { .. } => "Choose another name.".into(),
            Self::NotSuspended { vm, .. } => format!(
                "Cloning also copies memory, so the VM must be running or suspended. \
                Start it: castra up {vm}"
            ),
            Self::Unfinished { vm, of } => format!(
                "Nothing has run in it. `castra clone {of} {vm}` creates it again; `castra clean \
                --disks {vm}` removes it."
            ),
        })
    }
}
