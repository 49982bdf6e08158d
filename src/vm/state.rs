//! What a VM does right now, derived and never stored.

use serde::Serialize;

use crate::layout::VmLayout;
use crate::qemu::{QemuPid, running_qemu};

use super::record::{Progress, Record};

/// What a VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// QEMU does not run, and nothing was lost.
    Stopped,
    /// QEMU runs; commands cannot run yet.
    Starting,
    /// QEMU runs, and commands can (for a native boot: QEMU runs).
    Running,
    /// A stop is under way.
    Stopping,
    /// Its memory is being saved.
    Suspending,
    /// QEMU does not run; memory and devices are saved, and `up` goes on from there.
    Suspended,
    /// The saved memory is being loaded.
    Resuming,
    /// QEMU went away without being asked: killed, or the power did.
    Crashed,
}

impl VmState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Resuming => "resuming",
            Self::Crashed => "crashed",
        }
    }

    /// Whether QEMU runs.
    pub fn is_alive(self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::Stopping | Self::Suspending | Self::Resuming => true,
            Self::Stopped | Self::Suspended | Self::Crashed => false,
        }
    }
}

/// The VM's state, and its QEMU if that runs. Never blocks.
pub(super) fn observe(record: &Record, files: &VmLayout) -> (VmState, Option<QemuPid>) {
    let qemu = running_qemu(&files.pidfile());
    // QEMU removes its pid file when it ends by itself, so one that is left over means that it was killed.
    let left_over = qemu.is_none() && files.pidfile().exists();
    (derive(record.progress, qemu.is_some(), left_over), qemu)
}

/// Pure: all there is to the state machine.
fn derive(progress: Progress, alive: bool, pidfile_left_over: bool) -> VmState {
    match (progress, alive) {
        (Progress::Starting, true) => VmState::Starting,
        (Progress::Running | Progress::Stopped | Progress::Cloning, true) => VmState::Running,
        (Progress::Stopping, true) => VmState::Stopping,
        // Suspended, and QEMU has not ended yet: it stands still.
        (Progress::Suspending | Progress::Suspended, true) => VmState::Suspending,
        (Progress::Resuming, true) => VmState::Resuming,
        // As long as a machine that is being resumed has not run, what was saved is what there is.
        (Progress::Suspended | Progress::Resuming, false) => VmState::Suspended,
        (Progress::Stopping | Progress::Stopped | Progress::Cloning, false) => VmState::Stopped,
        (Progress::Starting | Progress::Running | Progress::Suspending, false) if pidfile_left_over => {
            VmState::Crashed
        }
        // The guest has powered itself off, or the start came to nothing.
        (Progress::Starting | Progress::Running | Progress::Suspending, false) => VmState::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_there_can_be() {
        use Progress as P;
        use VmState as S;
        // With QEMU alive; gone with its pid file; gone, and its pid file left over.
        let states = [
            (P::Starting, [S::Starting, S::Stopped, S::Crashed]),
            (P::Running, [S::Running, S::Stopped, S::Crashed]),
            (P::Stopping, [S::Stopping, S::Stopped, S::Stopped]),
            (P::Stopped, [S::Running, S::Stopped, S::Stopped]),
            (P::Suspending, [S::Suspending, S::Stopped, S::Crashed]),
            (P::Suspended, [S::Suspending, S::Suspended, S::Suspended]),
            (P::Cloning, [S::Running, S::Stopped, S::Stopped]),
            (P::Resuming, [S::Resuming, S::Suspended, S::Suspended]),
        ];
        for (progress, [alive, gone, killed]) in states {
            assert_eq!(derive(progress, true, false), alive, "{progress:?}");
            assert_eq!(derive(progress, true, true), alive, "{progress:?}");
            assert_eq!(derive(progress, false, false), gone, "{progress:?}");
            assert_eq!(derive(progress, false, true), killed, "{progress:?}");
            assert!(alive.is_alive() && !gone.is_alive() && !killed.is_alive());
        }
    }
}
