//! Faults of what a running VM's companion does for it, and the way out.

/// Fault of a running VM's mounts or ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CompanionFault {
    /// The process has ended.
    Ended {
        /// Work that it is needed for.
        work: CompanionWork,
    },
    /// The process does not answer.
    Silent {
        /// Pid of the process.
        pid: i32,
        /// Work that it is needed for.
        work: CompanionWork,
    },
    /// One of the directories is not mounted.
    NotMounted {
        /// Path in the guest.
        guest: String,
        /// The reason.
        reason: String,
    },
    /// One of the ports is not forwarded.
    NotForwarded {
        /// Port of this machine.
        host: u16,
        /// The reason.
        reason: String,
    },
}

/// Work of a companion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompanionWork {
    /// Serving mounts, and perhaps forwarding ports.
    Mounts,
    /// Forwarding ports.
    Ports,
}

impl CompanionFault {
    /// Returns a sentence about the fault, without a period.
    pub fn in_words(&self, vm: &str) -> String {
        match self {
            Self::Ended { work: CompanionWork::Mounts } => {
                format!("VM `{vm}` cannot reach its mounts: the process that serves them has ended")
            }
            Self::Ended { work: CompanionWork::Ports } => {
                format!("no live port leads to VM `{vm}`: the process that forwards them has ended")
            }
            Self::Silent { pid, work: CompanionWork::Mounts } => format!(
                "VM `{vm}` cannot reach its mounts: process {pid}, which serves them, does not \
                answer"
            ),
            Self::Silent { pid, work: CompanionWork::Ports } => format!(
                "no live port leads to VM `{vm}`: process {pid}, which forwards them, does not \
                answer"
            ),
            Self::NotMounted { guest, reason } => {
                format!("VM `{vm}` has not mounted {guest}: {reason}")
            }
            Self::NotForwarded { host, reason } => {
                format!("port {host} of this machine does not lead to VM `{vm}`: {reason}")
            }
        }
    }

    /// Returns what to do about the fault.
    pub fn way_out(&self, vm: &str) -> String {
        match self {
            Self::Ended { .. } => format!("`castra up {vm}` starts another one."),
            Self::Silent { .. } => format!("`castra up {vm}` ends it and starts another one."),
            Self::NotMounted { .. } => format!("Once that is solved, `castra up {vm}` mounts it."),
            Self::NotForwarded { .. } => {
                format!("Once that is solved, `castra up {vm}` forwards it.")
            }
        }
    }
}
