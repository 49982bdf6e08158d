//! Stopwatch that takes the times of a start, and reports each phase as it ends.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant};

use castra_wire::{Stage, StageReached};

use crate::host::{millis, unix_time_ms};
use crate::report::{Event, Reporter};

use super::{Phase, PhaseSpan, Timeline};

/// Least time between two boots of one QEMU, in milliseconds: no guest reboots faster.
const REBOOT_MS: u64 = 1_000;

/// Least time of the accelerator's phase, in milliseconds: if the choice is read from a file, that
/// is part of the next phase.
const REPORTED_FROM_MS: u64 = 10;

/// Stopwatch of one start, used by the one thread that conducts it.
pub(in crate::vm) struct Stopwatch {
    vm: String,
    zero: Instant,
    started_unix_ms: u64,
    reporter: Arc<dyn Reporter>,
    phases: RefCell<Vec<PhaseSpan>>,
    qemu_unix_ms: Cell<u64>,
    /// Time at which the guest's clock showed zero, in milliseconds since the start, once known.
    guest_zero_ms: Cell<Option<i128>>,
    /// Set if the guest's reports are about a later boot, which the guest began by itself.
    is_of_another_boot: Cell<bool>,
    /// Uptime at which the services were up, of a guest that still waited for its keys.
    early_services_ms: Cell<Option<u64>>,
    /// Set if the guest gets keys, and so has a phase in which it waits for them.
    is_personalised: bool,
}

impl Stopwatch {
    /// Creates a stopwatch that starts now.
    pub(in crate::vm) fn new(vm: &str, reporter: &Arc<dyn Reporter>) -> Self {
        Self {
            vm: vm.to_owned(),
            zero: Instant::now(),
            started_unix_ms: unix_time_ms(),
            reporter: Arc::clone(reporter),
            phases: RefCell::default(),
            qemu_unix_ms: Cell::new(0),
            guest_zero_ms: Cell::new(None),
            is_of_another_boot: Cell::new(false),
            early_services_ms: Cell::new(None),
            is_personalised: true,
        }
    }

    /// Creates a stopwatch for a start that began earlier. Without a saved timeline, it takes no
    /// times.
    pub(in crate::vm) fn continuing(
        vm: &str,
        kept: Option<&Timeline>,
        reporter: &Arc<dyn Reporter>,
    ) -> Self {
        let mut watch = Self::new(vm, reporter);
        let Some(timeline) = kept else { return watch };
        let ago = watch.started_unix_ms.saturating_sub(timeline.started_unix_ms);
        // A machine that was started after the VM has no such instant; nothing would be right then.
        if let Some(zero) = watch.zero.checked_sub(Duration::from_millis(ago)) {
            watch.zero = zero;
        }
        watch.started_unix_ms = timeline.started_unix_ms;
        watch.phases = RefCell::new(timeline.phases.clone());
        watch.qemu_unix_ms.set(timeline.qemu_unix_ms);
        watch
    }

    /// Creates a stopwatch for the boot of a template: only the guest's reports are known, and no
    /// command ever runs in it.
    pub(in crate::vm) fn of_template(vm: &str, reporter: &Arc<dyn Reporter>) -> Self {
        let watch = Self { is_personalised: false, ..Self::new(vm, reporter) };
        watch.phases.borrow_mut().push(PhaseSpan {
            phase: Phase::Kernel,
            start_ms: 0,
            end_ms: None,
        });
        watch
    }

    /// Begins a phase, and ends the one before.
    pub(in crate::vm) fn begin(&self, phase: Phase) {
        self.begin_at(phase, Instant::now());
    }

    /// Begins a phase at a moment that has just passed.
    pub(in crate::vm) fn begin_at(&self, phase: Phase, at: Instant) {
        let start_ms = self.end_ms(millis(at.saturating_duration_since(self.zero)), Some(phase));
        self.phases.borrow_mut().push(PhaseSpan { phase, start_ms, end_ms: None });
    }

    /// Ends the last phase.
    pub(in crate::vm) fn end(&self) {
        self.end_ms(millis(self.zero.elapsed()), None);
    }

    /// Ends the phase in which the start has failed, without a report, since the error reports it.
    pub(in crate::vm) fn stop(&self) {
        let now = millis(self.zero.elapsed());
        if let Some(span) = self.phases.borrow_mut().last_mut().filter(|span| span.end_ms.is_none())
        {
            span.end_ms = Some(now.max(span.start_ms));
        }
    }

    /// Turns everything since QEMU's start into a failed attempt, before another one.
    pub(in crate::vm) fn restart(&self) {
        self.guest_zero_ms.set(None);
        let mut phases = self.phases.borrow_mut();
        let Some(first) = phases.iter().position(|span| span.phase >= Phase::Attempt) else {
            return;
        };
        let start_ms = phases[first].start_ms;
        phases.truncate(first);
        phases.push(PhaseSpan { phase: Phase::Attempt, start_ms, end_ms: None });
    }

    /// Sets the time at which QEMU was started, as in the VM's record.
    pub(in crate::vm) fn set_qemu_start(&self, unix_ms: u64) {
        self.qemu_unix_ms.set(unix_ms);
    }

    /// Returns the current phase, and the time since it began.
    pub(in crate::vm) fn current(&self) -> Option<(Phase, Duration)> {
        let phases = self.phases.borrow();
        let span = phases.last().filter(|span| span.end_ms.is_none())?;
        let since = millis(self.zero.elapsed()).saturating_sub(span.start_ms);
        Some((span.phase, Duration::from_millis(since)))
    }

    /// Records that the guest's clock shows this uptime now or did so just before: the earliest
    /// resulting zero is right.
    pub(in crate::vm) fn on_clock(&self, uptime_ms: u64) {
        let zero = i128::from(millis(self.zero.elapsed())) - i128::from(uptime_ms);
        let zero = self.guest_zero_ms.get().map_or(zero, |known| known.min(zero));
        self.guest_zero_ms.set(Some(zero));
    }

    /// Records that the guest has reached a stage, now or earlier.
    pub(in crate::vm) fn on_stage(&self, reached: StageReached) {
        let phase = match reached.stage {
            Stage::Initramfs => Phase::Kernel,
            Stage::Root => Phase::Root,
            Stage::Ready => Phase::Agent,
            Stage::Services => Phase::Services,
        };
        self.on_end(phase, reached.uptime_ms);
    }

    /// Records that a phase of the guest ended when its clock showed this uptime.
    pub(in crate::vm) fn on_end(&self, phase: Phase, uptime_ms: u64) {
        let Some(zero) = self.guest_zero_ms.get() else { return };
        // A guest may report anything, but nothing has happened later than now.
        let now = i128::from(millis(self.zero.elapsed()));
        let at_ms = u64::try_from((zero + i128::from(uptime_ms)).min(now)).unwrap_or(0);
        let known = self
            .phases
            .borrow()
            .iter()
            .find(|span| span.phase == phase)
            .and_then(|span| span.end_ms);
        if let Some(known) = known {
            if phase == Phase::Kernel && known.abs_diff(at_ms) > REBOOT_MS {
                self.is_of_another_boot.set(true);
            }
            return;
        }
        if self.is_of_another_boot.get() {
            return;
        }
        if phase == Phase::Services && self.is_personalised && !self.has_ended(Phase::Agent) {
            return self.early_services_ms.set(Some(uptime_ms));
        }
        // A phase whose end was not seen has ended by then, too.
        while let Some((current, _)) = self.current().filter(|(current, _)| *current <= phase) {
            let next = match current.next() {
                Some(Phase::Agent) if !self.is_personalised => Some(Phase::Services),
                next => next,
            };
            let end_ms = self.end_ms(at_ms, next);
            if let Some(next) = next {
                self.phases.borrow_mut().push(PhaseSpan {
                    phase: next,
                    start_ms: end_ms,
                    end_ms: None,
                });
            }
        }
        if let Some(uptime_ms) = self.early_services_ms.take() {
            self.on_end(Phase::Services, uptime_ms);
        }
    }

    fn has_ended(&self, phase: Phase) -> bool {
        self.phases.borrow().iter().any(|span| span.phase == phase && span.end_ms.is_some())
    }

    /// Ends the last phase if needed, and reports it. Returns the time at which the next one
    /// begins, never before the last began.
    fn end_ms(&self, at_ms: u64, next: Option<Phase>) -> u64 {
        let mut phases = self.phases.borrow_mut();
        let Some(span) = phases.last_mut().filter(|span| span.end_ms.is_none()) else {
            return at_ms;
        };
        let end_ms = at_ms.max(span.start_ms);
        span.end_ms = Some(end_ms);
        let (phase, took_ms) = (span.phase, end_ms - span.start_ms);
        if phase == Phase::Accelerator && took_ms < REPORTED_FROM_MS {
            let start_ms = span.start_ms;
            phases.pop();
            return start_ms;
        }
        drop(phases);
        let next = next.map(|phase| phase.name().to_owned());
        let (vm, phase) = (self.vm.clone(), phase.name().to_owned());
        self.reporter.report(&Event::VmPhase { vm, phase, took_ms, at_ms: end_ms, next });
        end_ms
    }

    /// Returns the times so far, together with the other facts in `about`.
    pub(in crate::vm) fn timeline(&self, about: Timeline) -> Timeline {
        Timeline {
            started_unix_ms: self.started_unix_ms,
            qemu_unix_ms: self.qemu_unix_ms.get(),
            phases: self.phases.borrow().clone(),
            ..about
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::report::Silent;
    use crate::vm::timeline::tests::boot;

    use super::*;

    fn watch() -> Stopwatch {
        let reporter: Arc<dyn Reporter> = Arc::new(Silent);
        long_ago(Stopwatch::new("web", &reporter))
    }

    /// Returns the stopwatch as if it had started long enough ago for all times in the tests.
    fn long_ago(watch: Stopwatch) -> Stopwatch {
        Stopwatch { zero: watch.zero - Duration::from_secs(100), ..watch }
    }

    fn spans(watch: &Stopwatch) -> Vec<(Phase, u64, Option<u64>)> {
        watch.phases.borrow().iter().map(|span| (span.phase, span.start_ms, span.end_ms)).collect()
    }

    #[test]
    fn the_guests_times_are_put_into_the_hosts() {
        let watch = watch();
        let at = |ms| watch.zero + Duration::from_millis(ms);
        watch.begin_at(Phase::Qemu, at(10));
        watch.begin_at(Phase::Kernel, at(100));
        watch.guest_zero_ms.set(Some(300));
        // Received all at once, as by a host that comes late; the mounting of the root was not
        // seen.
        for (stage, uptime_ms) in
            [(Stage::Initramfs, 1_000), (Stage::Root, 1_500), (Stage::Ready, 1_900)]
        {
            watch.on_stage(StageReached { stage, uptime_ms });
        }
        let expected = [
            (Phase::Qemu, 10, Some(100)),
            (Phase::Kernel, 100, Some(1_300)),
            (Phase::Initramfs, 1_300, Some(1_800)),
            (Phase::Root, 1_800, Some(1_800)),
            (Phase::Agent, 1_800, Some(2_200)),
            (Phase::Services, 2_200, None),
        ];
        assert_eq!(spans(&watch), expected);
        watch.on_stage(StageReached { stage: Stage::Services, uptime_ms: 4_000 });
        assert_eq!(spans(&watch).last(), Some(&(Phase::Services, 2_200, Some(4_300))));
    }

    #[test]
    fn a_guest_that_lies_ends_nothing_in_the_future() {
        let watch = watch();
        watch.begin_at(Phase::Kernel, watch.zero);
        watch.guest_zero_ms.set(Some(300));
        watch.on_stage(StageReached { stage: Stage::Initramfs, uptime_ms: u64::MAX });
        let end = spans(&watch)[0].2.expect("has ended");
        assert!((100_000..=millis(watch.zero.elapsed())).contains(&end), "{end}");
    }

    #[test]
    fn a_guest_that_rebooted_says_nothing_of_the_first_boot() {
        let kept = boot(
            unix_time_ms(),
            &[(Phase::Qemu, 100), (Phase::Kernel, 2_000), (Phase::Agent, 3_000)],
        );
        let reporter: Arc<dyn Reporter> = Arc::new(Silent);
        let watch = long_ago(Stopwatch::continuing("web", Some(&kept), &reporter));
        watch.phases.borrow_mut().push(PhaseSpan {
            phase: Phase::Services,
            start_ms: 3_000,
            end_ms: None,
        });
        let same = long_ago(Stopwatch::continuing("web", Some(&kept), &reporter));
        same.phases.replace(watch.phases.borrow().clone());
        for (watch, zero) in [(&watch, 60_000), (&same, 900)] {
            watch.guest_zero_ms.set(Some(zero));
            watch.on_stage(StageReached { stage: Stage::Initramfs, uptime_ms: 1_100 });
            watch.on_stage(StageReached { stage: Stage::Services, uptime_ms: 5_000 });
        }
        assert_eq!(spans(&watch).last(), Some(&(Phase::Services, 3_000, None)));
        assert_eq!(spans(&same).last(), Some(&(Phase::Services, 3_000, Some(5_900))));
    }

    #[test]
    fn a_template_waits_for_no_keys() {
        let reporter: Arc<dyn Reporter> = Arc::new(Silent);
        let watch = long_ago(Stopwatch::of_template("web", &reporter));
        watch.guest_zero_ms.set(Some(0));
        for (stage, uptime_ms) in [(Stage::Initramfs, 10), (Stage::Root, 20), (Stage::Services, 90)]
        {
            watch.on_stage(StageReached { stage, uptime_ms });
        }
        assert_eq!(
            spans(&watch)[2..],
            [(Phase::Root, 20, Some(20)), (Phase::Services, 20, Some(90))]
        );
    }

    #[test]
    fn the_earliest_guess_of_the_guests_beginning_stays() {
        let watch = watch();
        watch.on_clock(0);
        let first = watch.guest_zero_ms.get();
        watch.on_clock(5_000);
        assert!(watch.guest_zero_ms.get() < first);
        let second = watch.guest_zero_ms.get();
        watch.on_clock(1);
        assert_eq!(watch.guest_zero_ms.get(), second);
    }

    #[test]
    fn attempts_in_vain_become_one_phase() {
        let watch = watch();
        let at = |ms| watch.zero + Duration::from_millis(ms);
        for (phase, ms) in [(Phase::Image, 0), (Phase::Qemu, 10), (Phase::Load, 20)] {
            watch.begin_at(phase, at(ms));
        }
        watch.restart();
        watch.begin_at(Phase::Qemu, at(50));
        watch.restart();
        watch.begin_at(Phase::Qemu, at(90));
        let expected =
            [(Phase::Image, 0, Some(10)), (Phase::Attempt, 10, Some(90)), (Phase::Qemu, 90, None)];
        assert_eq!(spans(&watch), expected);
    }
}
