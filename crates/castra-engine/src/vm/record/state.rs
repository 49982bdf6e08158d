//! State of a VM, derived from its record and its QEMU, and never stored.

use std::path::PathBuf;

use serde::Serialize;

use crate::host::boot_id;
use crate::layout::{ProjectLayout, VmLayout};
use crate::qemu::{EndingSignal, QemuPid, ending_signal, running_qemu, runs_elsewhere};

use super::{Progress, Record};

/// State of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// QEMU does not run, and nothing was lost.
    Stopped,
    /// QEMU runs; commands cannot run yet.
    Starting,
    /// QEMU runs, and commands can run (for a native boot: QEMU runs).
    Running,
    /// QEMU runs and has paused the guest, since this machine's disk is full. It continues once
    /// there is room.
    #[serde(rename = "disk-full")]
    DiskFull,
    /// A stop is in progress.
    Stopping,
    /// The VM's memory is being saved.
    Suspending,
    /// QEMU does not run; memory and devices are saved, and `up` resumes from them.
    Suspended,
    /// The saved memory is being loaded.
    Resuming,
    /// QEMU runs in another pid namespace of this machine, such as a container's, and cannot be
    /// reached from here.
    Elsewhere,
    /// QEMU ended without a request: it was killed, or the power failed.
    Crashed,
    /// The project is a copy, made while the VM ran in the original: the disk is as after a power
    /// cut, or worse.
    Copied,
}

impl VmState {
    /// Returns the state's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::DiskFull => "disk-full",
            Self::Stopping => "stopping",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Resuming => "resuming",
            Self::Elsewhere => "elsewhere",
            Self::Crashed => "crashed",
            Self::Copied => "copied",
        }
    }

    /// Returns `true` if QEMU runs.
    pub fn is_alive(self) -> bool {
        match self {
            Self::Starting
            | Self::Running
            | Self::DiskFull
            | Self::Stopping
            | Self::Suspending
            | Self::Resuming
            | Self::Elsewhere => true,
            Self::Stopped | Self::Suspended | Self::Crashed | Self::Copied => false,
        }
    }
}

/// Reason for a VM's crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Crash {
    /// A signal asked QEMU to end, and its guest was not asked to shut down.
    Ended(EndingSignal),
    /// QEMU was killed: on purpose, by the kernel for lack of memory, or by a defect of its own.
    Killed,
    /// The host was restarted since the VM was started, cleanly or not.
    HostRestarted,
}

impl std::fmt::Display for Crash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(signal) => write!(f, "its QEMU was killed by {signal}"),
            Self::Killed => f.write_str("its QEMU was killed"),
            Self::HostRestarted => f.write_str("this machine was restarted while it was running"),
        }
    }
}

/// Evidence of a VM's QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trace {
    /// QEMU runs.
    Alive,
    /// QEMU runs where it cannot be seen.
    Elsewhere,
    /// QEMU has ended by itself, and removed its pid file.
    Ended,
    /// QEMU has ended in another way.
    Crashed(Crash),
    /// QEMU belongs to the project of which this one is a copy.
    Copied,
}

/// Returns the VM's state, and its QEMU if that runs. Never blocks.
pub(in crate::vm) fn observe(record: &Record, files: &VmLayout) -> (VmState, Option<QemuPid>) {
    let qemu = running_qemu(&files.pidfile());
    let trace = match &qemu {
        Some(_) => Trace::Alive,
        None if runs_elsewhere(&files.pidfile()) => Trace::Elsewhere,
        None => trace(record, files),
    };
    (derive(record.progress, &trace), qemu)
}

/// Returns the reason for the VM's crash, if it has crashed.
pub(in crate::vm) fn crash(record: &Record, files: &VmLayout) -> Option<Crash> {
    match (observe(record, files).0, trace(record, files)) {
        (VmState::Crashed, Trace::Crashed(crash)) => Some(crash),
        _ => None,
    }
}

/// Returns the state root of the project that was copied while its VM ran, if this is the copy.
fn original_of(record: &Record, files: &VmLayout) -> Option<PathBuf> {
    record.boot.as_ref()?.original(files.state_root())
}

/// Returns the directory of the project in which the VM ran when it was copied.
pub(in crate::vm) fn copy_of(record: &Record, layout: &ProjectLayout) -> Option<PathBuf> {
    let root = original_of(record, &layout.vm(&record.name))?;
    Some(ProjectLayout::unchecked(root).directory().to_owned())
}

/// Returns the evidence of a QEMU that has ended. QEMU removes its pid file whenever it ends by
/// itself: when its guest has shut down, but also after a signal, as at a logout or a restart of
/// the machine. In the latter case its log says so, and the guest was not asked to shut down.
fn trace(record: &Record, files: &VmLayout) -> Trace {
    if original_of(record, files).is_some() {
        return Trace::Copied;
    }
    let booted_in = record.boot.as_ref().and_then(|boot| boot.boot_id.as_ref());
    if booted_in.is_some() && booted_in != boot_id().as_ref() {
        return Trace::Crashed(Crash::HostRestarted);
    }
    if files.pidfile().exists() {
        return Trace::Crashed(Crash::Killed);
    }
    let was_up =
        matches!(record.progress, Progress::Starting | Progress::Running | Progress::Suspending);
    match was_up.then(|| ending_signal(&files.qemu_log())).flatten() {
        Some(signal) => Trace::Crashed(Crash::Ended(signal)),
        None => Trace::Ended,
    }
}

/// Derives the state. Pure, and the whole state machine.
fn derive(progress: Progress, trace: &Trace) -> VmState {
    use Trace::{Alive, Copied, Crashed, Elsewhere, Ended};
    match (progress, trace) {
        (_, Elsewhere) => VmState::Elsewhere,
        (Progress::Starting, Alive) => VmState::Starting,
        (Progress::Running | Progress::Stopped | Progress::Cloning, Alive) => VmState::Running,
        (Progress::Stopping, Alive) => VmState::Stopping,
        // Suspended, and QEMU has not ended yet: the machine is paused.
        (Progress::Suspending | Progress::Suspended, Alive) => VmState::Suspending,
        (Progress::Resuming, Alive) => VmState::Resuming,
        // Until a machine that is being resumed has run, the saved state is the valid one.
        (Progress::Suspended | Progress::Resuming, Ended | Crashed(_) | Copied) => {
            VmState::Suspended
        }
        (Progress::Stopped | Progress::Cloning, Ended | Crashed(_) | Copied) => VmState::Stopped,
        (Progress::Stopping, Ended | Crashed(_)) => VmState::Stopped,
        (
            Progress::Starting | Progress::Running | Progress::Stopping | Progress::Suspending,
            Copied,
        ) => VmState::Copied,
        (Progress::Starting | Progress::Running | Progress::Suspending, Crashed(_)) => {
            VmState::Crashed
        }
        // The guest has powered itself off, or the start failed.
        (Progress::Starting | Progress::Running | Progress::Suspending, Ended) => VmState::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_there_can_be() {
        use Progress as P;
        use VmState as S;
        // With QEMU alive; ended by itself; ended otherwise; belonging to the project of which this
        // is a copy.
        let states = [
            (P::Starting, [S::Starting, S::Stopped, S::Crashed, S::Copied]),
            (P::Running, [S::Running, S::Stopped, S::Crashed, S::Copied]),
            (P::Stopping, [S::Stopping, S::Stopped, S::Stopped, S::Copied]),
            (P::Stopped, [S::Running, S::Stopped, S::Stopped, S::Stopped]),
            (P::Suspending, [S::Suspending, S::Stopped, S::Crashed, S::Copied]),
            (P::Suspended, [S::Suspending, S::Suspended, S::Suspended, S::Suspended]),
            (P::Cloning, [S::Running, S::Stopped, S::Stopped, S::Stopped]),
            (P::Resuming, [S::Resuming, S::Suspended, S::Suspended, S::Suspended]),
        ];
        for (progress, [alive, ended, crashed, copied]) in states {
            assert_eq!(derive(progress, &Trace::Alive), alive, "{progress:?}");
            assert_eq!(derive(progress, &Trace::Ended), ended, "{progress:?}");
            assert_eq!(derive(progress, &Trace::Crashed(Crash::Killed)), crashed, "{progress:?}");
            assert_eq!(derive(progress, &Trace::Copied), copied, "{progress:?}");
            assert_eq!(derive(progress, &Trace::Elsewhere), S::Elsewhere, "{progress:?}");
            assert!(
                alive.is_alive() && !ended.is_alive() && !crashed.is_alive() && !copied.is_alive()
            );
        }
    }
}
