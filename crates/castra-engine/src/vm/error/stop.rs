//! Errors of stopping a VM.

use crate::error::{Explain, Kind};

/// Reason why a VM was not stopped, or not in an orderly way.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The VM is suspended, and the operation would drop its memory.
    #[error("VM `{vm}` is suspended")]
    IsSuspended {
        /// The VM.
        vm: String,
    },
    /// The VM was ended by a power cut that was not requested.
    #[error(
        "VM `{vm}` did not shut down{}: its QEMU was stopped by {method}, like a power cut",
        within(*limit_secs)
    )]
    PowerCut {
        /// The VM.
        vm: String,
        /// Seconds that its guest had to shut down; `None` if it could not be asked.
        limit_secs: Option<u64>,
        /// Method that ended QEMU.
        method: &'static str,
    },
    /// The VM was ended by a power cut, since nothing in its guest reacted.
    #[error(
        "VM `{vm}` did not shut down, since neither castra's agent in it nor its power button \
        answers: its QEMU was stopped by {method}, like a power cut"
    )]
    Unresponsive {
        /// The VM.
        vm: String,
        /// Method that ended QEMU.
        method: &'static str,
    },
    /// The VM was ended by a power cut, since its guest ignores the power button.
    #[error(
        "VM `{vm}` does not react to the power button, and has no castra agent to ask: its QEMU \
        was stopped by {method}, like a power cut"
    )]
    ButtonIgnored {
        /// The VM.
        vm: String,
        /// Method that ended QEMU.
        method: &'static str,
    },
    /// QEMU could not be ended.
    #[error("QEMU of VM `{vm}` (process {pid}) does not exit, not even on SIGKILL")]
    Unkillable {
        /// The VM.
        vm: String,
        /// Pid of the process.
        pid: i32,
    },
}

impl Explain for StopError {
    fn kind(&self) -> Kind {
        match self {
            Self::IsSuspended { .. } => Kind::Busy,
            Self::PowerCut { .. }
            | Self::Unresponsive { .. }
            | Self::ButtonIgnored { .. }
            | Self::Unkillable { .. } => Kind::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::IsSuspended { vm } => Some(format!(
                "`castra up {vm}` resumes it; `castra down --discard-suspended {vm}` drops its \
                memory and keeps its disk."
            )),
            Self::PowerCut { vm, .. } => Some(format!(
                "`castra up {vm}` boots it from its disk, whose filesystem recovers by its \
                journal; `castra logs {vm}` shows what delayed it. --timeout SECS gives it more \
                time."
            )),
            Self::Unresponsive { vm, .. } => Some(format!(
                "`castra up {vm}` boots it from its disk, whose filesystem recovers by its \
                journal; `castra logs {vm}` shows what happened in it."
            )),
            Self::ButtonIgnored { vm, .. } => Some(format!(
                "`castra up {vm}` boots it from its disk, whose filesystem recovers by its \
                journal. A guest reacts with systemd or with acpid; shut others down from inside, \
                before `castra down`."
            )),
            Self::Unkillable { .. } => None,
        }
    }
}

fn within(limit_secs: Option<u64>) -> String {
    limit_secs.map_or(String::new(), |secs| format!(" within {secs} s"))
}
