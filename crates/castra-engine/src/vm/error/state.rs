//! Errors of a VM whose state an operation cannot work with.

use crate::error::{Explain, Kind};
use crate::vm::full_disk::FullDisk;
use crate::vm::record::VmState;

/// Reason why the state of a VM keeps an operation from working on it.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The VM does not run.
    #[error("VM `{vm}` is not running ({})", in_words(*state))]
    NotRunning {
        /// The VM.
        vm: String,
        /// State that it is in instead.
        state: VmState,
    },
    /// The VM's QEMU was stopped by a signal.
    #[error("VM `{vm}` is frozen: its QEMU process {pid} is stopped (SIGSTOP)")]
    Frozen {
        /// The VM.
        vm: String,
        /// Pid of QEMU.
        pid: i32,
    },
    /// The VM runs where it cannot be reached.
    #[error(
        "VM `{vm}` is running in another container or pid namespace of this machine, out of reach \
        from here"
    )]
    Elsewhere {
        /// The VM.
        vm: String,
    },
    /// The host's disk is full, and the VM is paused until there is room.
    #[error("VM `{vm}` is paused: {full}")]
    DiskFull {
        /// The VM.
        vm: String,
        /// Filesystem of its disk.
        full: FullDisk,
    },
    /// QEMU runs, but there is no record of it.
    #[error("QEMU of VM `{vm}` is running (process {pid}), but its record is gone")]
    Unrecorded {
        /// The VM.
        vm: String,
        /// Pid of QEMU.
        pid: i32,
    },
}

impl Explain for StateError {
    fn kind(&self) -> Kind {
        match self {
            Self::NotRunning { .. } | Self::Frozen { .. } | Self::Unrecorded { .. } => {
                Kind::Unavailable
            }
            Self::Elsewhere { .. } => Kind::Busy,
            Self::DiskFull { .. } => Kind::Io,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotRunning { vm, state: VmState::Suspended } => {
                format!("Resume it: castra up {vm}")
            }
            Self::NotRunning { vm, .. } => format!("Start it: castra up {vm}"),
            Self::Frozen { vm, pid } => {
                format!("`kill -CONT {pid}` continues it; `castra down {vm}` stops the VM.")
            }
            Self::Elsewhere { vm } => format!(
                "Use castra where the VM was started: `castra down {vm}` there stops it. Nothing \
                has been changed."
            ),
            Self::DiskFull { vm, full } => format!(
                "Nothing is lost: free some space on {}, and the next command continues the VM, \
                 for instance `castra up {vm}`. `castra down --force {vm}` would cut its power \
                 instead and lose unwritten data.",
                full.filesystem.display()
            ),
            Self::Unrecorded { vm, .. } => format!(
                "`castra down {vm}` stops it; then `castra up {vm}` starts it with a record."
            ),
        })
    }
}

/// Returns a state as a clause that explains why something else is not possible.
pub(super) fn in_words(state: VmState) -> String {
    match state {
        VmState::Crashed => "it has crashed".to_owned(),
        VmState::Copied => "it is a copy of a running VM".to_owned(),
        VmState::Elsewhere => "it is running elsewhere".to_owned(),
        VmState::DiskFull => "it is paused: the disk is full".to_owned(),
        other => format!("it is {}", other.name()),
    }
}
