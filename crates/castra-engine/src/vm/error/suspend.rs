//! Errors of suspending and resuming a VM.

use crate::error::{Explain, Kind};

/// Reason why a VM cannot be suspended or resumed.
#[derive(Debug, thiserror::Error)]
pub enum SuspendError {
    /// Too little is known of the machine to save its state.
    #[error("VM `{vm}` cannot be suspended: it was started by an earlier castra")]
    NotSuspendable {
        /// The VM.
        vm: String,
    },
    /// A suspended VM cannot be resumed.
    #[error("cannot resume VM `{vm}`: {reason}")]
    NotResumable {
        /// The VM.
        vm: String,
        /// The reason.
        reason: String,
    },
}

impl Explain for SuspendError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotSuspendable { .. } => Kind::Unavailable,
            Self::NotResumable { .. } => Kind::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotSuspendable { vm } => {
                format!("Start it again first: castra down {vm} && castra up {vm}")
            }
            Self::NotResumable { vm, .. } => format!(
                "Castra has dropped nothing. `castra up --discard-suspended {vm}` gives up the \
                saved memory and boots from the disk, which was synced at the suspend."
            ),
        })
    }
}
