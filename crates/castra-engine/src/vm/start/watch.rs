//! Watch over a boot from outside the guest: its time limits, its console, and the reason why it
//! ended early.

use std::cell::{Cell, OnceCell};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use castra_wire::Stage;

use crate::context::RuntimeContext;
use crate::guest::ControlError;
use crate::layout::{SocketsLayout, VmLayout};
use crate::qemu::{Accelerator, MachineStatus};
use crate::report::Event;
use crate::vm::diagnosis::{About, Evidence, HostFacts, Trouble, Words, diagnose};
use crate::vm::error::{AccessError, StartError, VmError};
use crate::vm::monitor::disk_full;
use crate::vm::record::{BootRecord, StartKind};
use crate::vm::timeline::{Phase, Stopwatch, Timeline, timelines, usual_ms};

use super::limits::{Limits, least_patience, patience};

/// Interval at which a wait for the guest checks its console.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Watch over a boot from outside the guest.
pub(in crate::vm) struct BootWatch<'a> {
    pub(in crate::vm) vm: &'a str,
    pub(in crate::vm) files: &'a VmLayout,
    /// Path of its disk, which may run out of space.
    pub(in crate::vm) disk: &'a Path,
    pub(in crate::vm) accelerator: Accelerator,
    pub(in crate::vm) cpus: u32,
    pub(in crate::vm) memory_mib: u64,
    /// Set if commands could run in it before: then it is in no known phase of a boot.
    pub(in crate::vm) was_ready: bool,
    /// Time at which QEMU was started, or the wait began; limits count from it.
    pub(in crate::vm) started: Instant,
    /// Time limit; `None` for one that fits.
    pub(in crate::vm) limit: Option<Duration>,
    pub(in crate::vm) context: &'a RuntimeContext,
    pub(in crate::vm) stopwatch: &'a Stopwatch,
}

/// Reason why the watch ended early.
pub(in crate::vm) enum BootEnd {
    TimedOut {
        limit: Duration,
        is_ready: bool,
    },
    Died,
    /// The guest will never be ready.
    Failed,
    Other(Box<VmError>),
}

impl BootEnd {
    /// Returns the end of a boot whose session failed, after this stage was reached.
    pub(super) fn of_session(error: ControlError, reached: Option<Stage>, limit: Duration) -> Self {
        match error {
            ControlError::ReadTimeout | ControlError::WriteTimeout => {
                Self::TimedOut { limit, is_ready: reached >= Some(Stage::Ready) }
            }
            ControlError::Closed => Self::Died,
            other => Self::other(other),
        }
    }

    pub(super) fn other(error: impl Into<VmError>) -> Self {
        Self::Other(Box::new(error.into()))
    }
}

/// Observations and reports of a wait.
#[derive(Default)]
pub(super) struct Looks {
    next: Cell<Option<Instant>>,
    console_bytes: Cell<u64>,
    is_slowness_reported: Cell<bool>,
    kept: OnceCell<Vec<Timeline>>,
}

impl<'a> BootWatch<'a> {
    /// Creates a watch over a VM whose QEMU runs already, until it is ready again; limits count
    /// from now.
    pub(in crate::vm) fn of_running(
        vm: &'a str,
        files: &'a VmLayout,
        disk: &'a Path,
        boot: &BootRecord,
        context: &'a RuntimeContext,
        stopwatch: &'a Stopwatch,
    ) -> Self {
        Self {
            vm,
            files,
            disk,
            was_ready: true,
            accelerator: boot.accelerator.accelerator,
            cpus: boot.cpus,
            memory_mib: boot.memory_mib,
            started: Instant::now(),
            limit: None,
            context,
            stopwatch,
        }
    }
}

impl BootWatch<'_> {
    /// Returns the time limits of the boot.
    pub(super) fn limits(&self) -> Limits {
        Limits::new(self.accelerator, self.cpus, self.limit)
    }

    /// Checks for a guest that has given up or is paused, and reports a phase that takes unusually
    /// long.
    pub(super) fn look(
        &self,
        sockets: &SocketsLayout,
        looks: &Looks,
        reached: Option<Stage>,
    ) -> Result<(), BootEnd> {
        if looks.next.get().is_some_and(|next| Instant::now() < next) {
            return Ok(());
        }
        looks.next.set(Some(Instant::now() + LOOK_EVERY));
        if MachineStatus::glance(sockets) == Some(MachineStatus::DiskFull) {
            return Err(BootEnd::other(disk_full(self.vm, self.disk)));
        }
        let length = fs::metadata(self.files.console_log()).map_or(0, |metadata| metadata.len());
        let is_ready = reached >= Some(Stage::Ready);
        if looks.console_bytes.replace(length) != length && !is_ready && self.has_given_up() {
            return Err(BootEnd::Failed);
        }
        let (phase, elapsed) = self.phase();
        if !looks.is_slowness_reported.get() && elapsed >= least_patience(self.accelerator) {
            let kept = looks.kept.get_or_init(|| timelines(self.files));
            let usual_ms = usual_ms(kept, phase, StartKind::Boot, self.accelerator);
            if elapsed >= patience(self.accelerator, usual_ms.map(Duration::from_millis)) {
                looks.is_slowness_reported.set(true);
                self.report_slowness(phase, elapsed, usual_ms);
            }
        }
        Ok(())
    }

    fn has_given_up(&self) -> bool {
        let words = Words::read(&self.files.console_log(), &self.files.qemu_log());
        has_given_up(self.vm, self.memory_mib, self.accelerator, &words).is_some()
    }

    fn report_slowness(&self, phase: Phase, elapsed: Duration, usual_ms: Option<u64>) {
        if self.was_ready {
            let what =
                format!("the guest of VM `{}`, which was ready but is not responding", self.vm);
            self.context.reporter.report(&Event::Waiting { what });
            return;
        }
        let words = Words::read(&self.files.console_log(), &self.files.qemu_log());
        let trouble = Trouble::gather(&self.about(false, None), phase, elapsed, usual_ms);
        self.context.reporter.report(&Event::VmSlow {
            vm: self.vm.to_owned(),
            phase: phase.name().to_owned(),
            in_phase_ms: trouble.in_phase_ms,
            usual_ms,
            console: words.last_line(),
            cause: trouble.diagnosis.as_ref().map(|diagnosis| diagnosis.cause.clone()),
        });
    }

    fn phase(&self) -> (Phase, Duration) {
        self.stopwatch.current().unwrap_or((Phase::Kernel, self.started.elapsed()))
    }

    fn about(&self, has_ended: bool, signal: Option<i32>) -> About<'_> {
        let (vm, files, accelerator, memory_mib) =
            (self.vm, self.files, self.accelerator, self.memory_mib);
        About { vm, files, accelerator, memory_mib, has_ended, signal }
    }

    /// Returns the end as an error with all that is known. `signal` is the signal that ended QEMU,
    /// if any.
    pub(in crate::vm) fn explain(&self, end: BootEnd, signal: Option<i32>) -> VmError {
        let vm = self.vm.to_owned();
        let has_ended = matches!(end, BootEnd::Died);
        let trouble = || {
            let (phase, elapsed) = self.phase();
            let usual_ms =
                usual_ms(&timelines(self.files), phase, StartKind::Boot, self.accelerator);
            Box::new(Trouble::gather(&self.about(has_ended, signal), phase, elapsed, usual_ms))
        };
        match end {
            BootEnd::TimedOut { limit, is_ready: true } => {
                StartError::ServicesTimedOut { vm, limit_secs: limit.as_secs() }.into()
            }
            BootEnd::TimedOut { limit, is_ready: false } if self.was_ready => {
                AccessError::GuestSilent { vm, limit_secs: limit.as_secs() }.into()
            }
            BootEnd::TimedOut { limit, is_ready: false } => {
                StartError::BootTimedOut { vm, limit_secs: limit.as_secs(), trouble: trouble() }
                    .into()
            }
            BootEnd::Died => StartError::BootDied { vm, trouble: trouble() }.into(),
            BootEnd::Failed => StartError::BootFailed { vm, trouble: trouble() }.into(),
            BootEnd::Other(error) => *error,
        }
    }
}

/// Returns the reason why a guest with this output will never be ready, as far as the output shows.
pub(in crate::vm) fn has_given_up(
    vm: &str,
    memory_mib: u64,
    accelerator: Accelerator,
    words: &Words,
) -> Option<String> {
    let (console, qemu, host) = (words.console.as_str(), "", &HostFacts::default());
    let phase = Phase::Initramfs;
    let (has_ended, signal) = (false, None);
    let evidence =
        Evidence { vm, phase, console, qemu, has_ended, signal, accelerator, memory_mib, host };
    let found = diagnose(&evidence);
    found.filter(|diagnosis| diagnosis.is_final).map(|diagnosis| diagnosis.cause)
}
