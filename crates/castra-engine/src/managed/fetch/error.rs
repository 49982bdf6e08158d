//! Errors of pip, with hints.

use crate::command::CommandError;
use crate::error::{Explain, Kind};

/// Failure of pip.
#[derive(Debug, thiserror::Error)]
pub enum PipError {
    /// None of `python3 -m pip`, `pip3` and `pip` is installed.
    #[error("pip is not installed, but {requirement} needs it")]
    Missing {
        /// Requirement that was to be fetched.
        requirement: String,
    },
    /// pip could not reach its index.
    #[error("pip cannot reach its package index for {requirement}")]
    NoNetwork {
        /// Requirement that was to be fetched.
        requirement: String,
        /// Output of pip, mostly about its library's Python objects. The image log has it; users
        /// learn nothing from it.
        said: CommandError,
    },
    /// The index answered, and does not have this version for this platform.
    #[error("pip's package index does not have {requirement}")]
    Gone {
        /// Requirement that was to be fetched.
        requirement: String,
        /// Output of pip.
        source: CommandError,
    },
    /// pip failed in another way.
    #[error("pip could not fetch {requirement}")]
    Failed {
        /// Requirement that was to be fetched.
        requirement: String,
        /// Output of pip.
        source: CommandError,
    },
    /// pip reported success, but left not exactly one wheel.
    #[error("pip left {found} wheels for {requirement}, not one")]
    NoWheel {
        /// Requirement that was to be fetched.
        requirement: String,
        /// Number of wheels.
        found: usize,
    },
}

impl PipError {
    /// Returns `true` if another source may work where this one did not.
    pub(crate) fn is_unreachable(&self) -> bool {
        !matches!(self, Self::NoWheel { .. })
    }
}

impl Explain for PipError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing { .. } if cfg!(target_os = "macos") => {
                "Install Python: brew install python".to_owned()
            }
            Self::Missing { .. } => {
                "Install pip: `apt install python3-pip` (Debian, Ubuntu), `dnf install python3-pip` \
                 (Fedora), `pacman -S python-pip` (Arch), `apk add py3-pip` (Alpine)."
                    .to_owned()
            }
            Self::NoNetwork { .. } => {
                "Check the network, and pip's own settings: `pip config list`.".to_owned()
            }
            Self::Gone { .. } => {
                "If pip uses a mirror (`pip config list`), the mirror may lack it.".to_owned()
            }
            Self::Failed { .. } | Self::NoWheel { .. } => {
                "Try the download with pip itself: `pip download`.".to_owned()
            }
        })
    }
}
