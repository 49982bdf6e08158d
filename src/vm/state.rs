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
            Self::Crashed => "crashed",
        }
    }

    /// Whether QEMU runs.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Stopping)
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
        (Progress::Running | Progress::Stopped, true) => VmState::Running,
        (Progress::Stopping, true) => VmState::Stopping,
        (Progress::Stopping | Progress::Stopped, false) => VmState::Stopped,
        (Progress::Starting | Progress::Running, false) if pidfile_left_over => VmState::Crashed,
        // The guest has powered itself off, or the start came to nothing.
        (Progress::Starting | Progress::Running, false) => VmState::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_qemu_is_a_crash_and_a_guest_that_powered_off_is_not() {
        assert_eq!(derive(Progress::Running, false, true), VmState::Crashed);
        assert_eq!(derive(Progress::Starting, false, true), VmState::Crashed);
        assert_eq!(derive(Progress::Running, false, false), VmState::Stopped);
    }

    #[test]
    fn a_stop_that_had_to_kill_is_still_a_stop() {
        assert_eq!(derive(Progress::Stopping, false, true), VmState::Stopped);
    }

    #[test]
    fn a_qemu_that_lives_is_never_called_stopped() {
        for progress in [Progress::Starting, Progress::Running, Progress::Stopping, Progress::Stopped] {
            assert!(derive(progress, true, true).is_alive());
        }
    }
}
