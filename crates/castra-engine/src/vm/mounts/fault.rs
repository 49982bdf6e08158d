//! Faults of the mounts of a running VM, and the way out.

/// Fault of a running VM's mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountFault {
    /// No process serves them.
    NotServed,
    /// The process that serves them does not answer.
    Silent {
        /// Pid of the process.
        pid: i32,
    },
    /// One of the directories is not mounted.
    NotMounted {
        /// Path in the guest.
        guest: String,
        /// The reason.
        reason: String,
    },
}

impl MountFault {
    /// Returns a sentence about the fault, without a period.
    pub fn in_words(&self, vm: &str) -> String {
        match self {
            Self::NotServed => {
                format!("VM `{vm}` cannot reach its mounts: the process that serves them has ended")
            }
            Self::Silent { pid } => format!(
                "VM `{vm}` cannot reach its mounts: process {pid}, which serves them, does not \
                answer"
            ),
            Self::NotMounted { guest, reason } => {
                format!("VM `{vm}` has not mounted {guest}: {reason}")
            }
        }
    }

    /// Returns what to do about the fault.
    pub fn way_out(&self, vm: &str) -> String {
        match self {
            Self::NotServed => format!("`castra up {vm}` starts another one."),
            Self::Silent { .. } => format!("`castra up {vm}` ends it and starts another one."),
            Self::NotMounted { .. } => format!("Once that is solved, `castra up {vm}` mounts it."),
        }
    }
}
