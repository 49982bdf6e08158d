//! Keeps the clock right. A VM that was paused, or whose host slept, resumes with the time at which
//! it stopped.
//!
//! The machine's real-time clock does not stop: QEMU's always shows the host's clock (`-rtc
//! clock=host`, its default), without any running castra. It shows whole seconds, and its seconds
//! begin when QEMU started, not when the host's do; so the difference between the two is measured
//! once, after the host has set the clock. From then on the guest's clock is compared with it every
//! few seconds, just before and just after it is due to turn over, which reveals small differences,
//! too.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::adjust::{SLEW_NS_PER_SEC, boot_ns, is_kept_by_a_service, slew, step, wall_ns};
use crate::agent::FIRST_COMMAND;
use crate::kernel_fs::KernelFs;

/// File with the real-time clock's time, in seconds since the Unix epoch
/// (`Documentation/ABI/testing/rtc-cdev`).
const RTC: &str = "class/rtc/rtc0/since_epoch";

/// Time between two comparisons, and between two looks for the real-time clock until its driver is
/// loaded.
const EVERY: Duration = Duration::from_secs(4);

/// Differences below this are ignored: an emulated CPU on a busy machine needs as long to read a
/// clock twice.
const TOLERANCE_NS: i64 = 100_000_000;

/// Precision of a measurement, interval of its readings, and its time limit.
const PRECISION_NS: i64 = 50_000_000;
const READ_EVERY: Duration = Duration::from_millis(20);
const MEASURE_LIMIT: Duration = Duration::from_secs(3);

/// A clock that is behind by more is stepped: a step forward does no harm.
const STEP_FORWARD_NS: i64 = 500_000_000;
/// A clock that is ahead by more is stepped: programs stumble over time that goes backwards.
const STEP_BACK_NS: i64 = 2_000_000_000;

/// Shortest pause that is corrected when the guest has a time service.
const PAUSE_NS: i64 = 2_000_000_000;

/// Largest plausible lateness of a measurement. A busy guest takes seconds to receive the host's
/// message and then sets its clock too late, and a VM may be paused while the real-time clock's lag
/// is measured.
const LATENESS_NS: i64 = 1800 * SECOND_NS;

const SECOND_NS: i64 = 1_000_000_000;

/// Returns the wall clock, nanoseconds since the Unix epoch.
pub(crate) fn unix_ns() -> u64 {
    u64::try_from(wall_ns()).unwrap_or_default()
}

/// Returns the difference between the wall clock and the time since the kernel started. Changes
/// when the wall clock is set, but not while the VM is paused.
pub(crate) fn since_boot_ns() -> i64 {
    wall_ns() - boot_ns()
}

/// Keeps the clock right forever. Whenever the host has set it, `set` receives what
/// [`since_boot_ns`] was then.
pub(crate) async fn keep(kernel_fs: Arc<KernelFs>, mut set: watch::Receiver<i64>) {
    let mut keeper = Keeper::new(kernel_fs);
    loop {
        let set_ns = tokio::select! {
            () = sleep(EVERY) => None,
            Ok(()) = set.changed() => Some(*set.borrow_and_update()),
        };
        // A real-time clock that cannot be read now may appear later.
        let _ = match set_ns {
            Some(set_ns) => {
                sleep(FIRST_COMMAND).await;
                keeper.calibrate(set_ns).await
            }
            None => keeper.check().await,
        };
    }
}

struct Keeper {
    kernel_fs: Arc<KernelFs>,
    /// Difference between the host's clock and the real-time clock, which is behind.
    rtc_lag_ns: i64,
    /// Difference between the host's clock and the time since boot at the last comparison; it grows
    /// by the length of a pause.
    host_since_boot_ns: Option<i64>,
    /// Time that a slew corrects, and the moment at which it is done.
    slew_end: Option<(i64, Instant)>,
}

/// Bounds on a difference between two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    low_ns: i64,
    high_ns: i64,
}

/// Correction of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Correction {
    Nothing,
    Slew(i64),
    Step(i64),
}

impl Keeper {
    fn new(kernel_fs: Arc<KernelFs>) -> Self {
        Self { kernel_fs, rtc_lag_ns: 0, host_since_boot_ns: None, slew_end: None }
    }

    /// Measures the real-time clock's lag against the clock as the host has set it.
    async fn calibrate(&mut self, set_ns: i64) -> io::Result<()> {
        (self.rtc_lag_ns, self.host_since_boot_ns, self.slew_end) = (0, None, None);
        let ahead_ns = self.measure().await?.middle_ns();
        // The clock may have been set by something else meanwhile.
        let moved_ns = since_boot_ns() - set_ns;
        self.rtc_lag_ns = likely_lag_ns(-ahead_ns - moved_ns);
        self.correct(ahead_ns + self.rtc_lag_ns)
    }

    /// Compares the clocks, and corrects the guest's.
    async fn check(&mut self) -> io::Result<()> {
        let tolerance_ns = self.tolerance_ns();
        match self.glance().await? {
            Some(bounds) if bounds.allow(tolerance_ns) => {
                self.host_since_boot_ns = Some(wall_ns() + bounds.middle_ns() - boot_ns());
                Ok(())
            }
            _ => {
                let difference_ns = self.measure().await?.middle_ns();
                self.correct(difference_ns)
            }
        }
    }

    fn correct(&mut self, difference_ns: i64) -> io::Result<()> {
        let host_since_boot_ns = wall_ns() + difference_ns - boot_ns();
        let before_ns = self.host_since_boot_ns.replace(host_since_boot_ns);
        let paused_ns = before_ns.map_or(0, |before_ns| host_since_boot_ns - before_ns);
        match correction(difference_ns, paused_ns, is_kept_by_a_service()) {
            Correction::Nothing => Ok(()),
            Correction::Step(by_ns) => {
                self.slew_end = None;
                step(by_ns)
            }
            Correction::Slew(by_ns) => {
                let length =
                    Duration::from_secs(by_ns.unsigned_abs() / SLEW_NS_PER_SEC.unsigned_abs());
                self.slew_end = Some((by_ns, Instant::now() + length));
                slew(by_ns)
            }
        }
    }

    /// Returns the difference that needs no measurement: one that is being slewed, or that of a
    /// time service.
    fn tolerance_ns(&mut self) -> i64 {
        if is_kept_by_a_service() {
            return STEP_FORWARD_NS;
        }
        self.slew_end = self.slew_end.filter(|(_, end)| Instant::now() < *end);
        TOLERANCE_NS + self.slew_end.map_or(0, |(by_ns, _)| by_ns.abs())
    }

    /// Compares the clocks just before and just after the real-time clock is due to turn over;
    /// returns `None` if the two readings contradict each other.
    async fn glance(&self) -> io::Result<Option<Bounds>> {
        let into_second_ns = (wall_ns() - self.rtc_lag_ns).rem_euclid(SECOND_NS);
        let left_ns = (SECOND_NS - TOLERANCE_NS - into_second_ns).rem_euclid(SECOND_NS);
        sleep(Duration::from_nanos(left_ns.unsigned_abs())).await;
        let before = self.read()?;
        sleep(Duration::from_nanos(2 * TOLERANCE_NS.unsigned_abs())).await;
        Ok(before.and(self.read()?))
    }

    /// Compares the clocks until the difference is known precisely: within a second, since the
    /// real-time clock turns over once a second.
    async fn measure(&self) -> io::Result<Bounds> {
        let started = Instant::now();
        let mut bounds = self.read()?;
        while bounds.high_ns - bounds.low_ns > PRECISION_NS && started.elapsed() < MEASURE_LIMIT {
            sleep(READ_EVERY).await;
            let latest = self.read()?;
            // The clock has jumped meanwhile: only readings since then count.
            bounds = bounds.and(latest).unwrap_or(latest);
        }
        Ok(bounds)
    }

    /// Returns by how much the host's clock is ahead of this one, from a single reading.
    fn read(&self) -> io::Result<Bounds> {
        let before_ns = wall_ns();
        let seconds = self.kernel_fs.sys.read(RTC)?.parse::<i64>().map_err(io::Error::other)?;
        let host_ns = seconds.saturating_mul(SECOND_NS).saturating_add(self.rtc_lag_ns);
        Ok(Bounds { low_ns: host_ns - wall_ns(), high_ns: host_ns + SECOND_NS - before_ns })
    }
}

impl Bounds {
    /// Returns the intersection of both bounds, or `None` if they are disjoint.
    fn and(self, other: Self) -> Option<Self> {
        let both = Self {
            low_ns: self.low_ns.max(other.low_ns),
            high_ns: self.high_ns.min(other.high_ns),
        };
        (both.low_ns <= both.high_ns).then_some(both)
    }

    /// Returns `true` if the difference may be within the tolerance.
    fn allow(self, tolerance_ns: i64) -> bool {
        self.low_ns <= tolerance_ns && self.high_ns >= -tolerance_ns
    }

    fn middle_ns(self) -> i64 {
        self.low_ns + (self.high_ns - self.low_ns) / 2
    }
}

/// Returns the real-time clock's likely lag, given a measurement against a clock that was set too
/// late rather than too early. QEMU's lag is below a second, since the real-time clock is started
/// with the host's whole seconds; anything far from that is a real-time clock that was set
/// otherwise.
fn likely_lag_ns(measured_ns: i64) -> i64 {
    if (-LATENESS_NS..0).contains(&measured_ns) { 0 } else { measured_ns }
}

/// Decides how to correct the guest's clock, which the host's is ahead of by `difference_ns`,
/// `paused_ns` of that at once. A time service in the guest keeps its clock itself, except after a
/// pause, which it does not notice.
fn correction(difference_ns: i64, paused_ns: i64, is_kept_by_a_service: bool) -> Correction {
    if is_kept_by_a_service {
        return if paused_ns >= PAUSE_NS {
            Correction::Step(paused_ns)
        } else {
            Correction::Nothing
        };
    }
    if difference_ns >= STEP_FORWARD_NS || difference_ns <= -STEP_BACK_NS {
        Correction::Step(difference_ns)
    } else if difference_ns.abs() < TOLERANCE_NS {
        Correction::Nothing
    } else {
        Correction::Slew(difference_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    #[test]
    fn what_is_far_off_is_stepped_and_what_is_near_is_slewed() {
        let free = |difference_ms| correction(difference_ms * MS, 0, false);
        assert_eq!(free(40_000), Correction::Step(40_000 * MS));
        assert_eq!(free(500), Correction::Step(500 * MS));
        assert_eq!(free(499), Correction::Slew(499 * MS));
        assert_eq!(free(100), Correction::Slew(100 * MS));
        assert_eq!(free(99), Correction::Nothing);
        assert_eq!(free(0), Correction::Nothing);
        assert_eq!(free(-99), Correction::Nothing);
        assert_eq!(free(-1999), Correction::Slew(-1999 * MS));
        assert_eq!(free(-2000), Correction::Step(-2000 * MS));
    }

    #[test]
    fn a_time_service_is_not_fought_and_hears_of_a_pause() {
        assert_eq!(correction(40_000 * MS, 0, true), Correction::Nothing);
        assert_eq!(correction(-40_000 * MS, -500 * MS, true), Correction::Nothing);
        assert_eq!(correction(45_000 * MS, 40_000 * MS, true), Correction::Step(40_000 * MS));
    }

    #[test]
    fn readings_narrow_each_other() {
        let bounds = |low_ms, high_ms| Bounds { low_ns: low_ms * MS, high_ns: high_ms * MS };
        // Just before the turn it had not turned over, and just after it had: the clocks agree.
        let both = bounds(-900, 100).and(bounds(-100, 900)).expect("agree");
        assert_eq!(both, bounds(-100, 100));
        assert!(both.allow(0));
        // It turned over too early, or has not turned over yet: small differences show.
        assert!(!bounds(100, 1100).and(bounds(-100, 900)).expect("agree").allow(50 * MS));
        assert!(!bounds(-900, 100).and(bounds(-1100, -100)).expect("agree").allow(50 * MS));
        // The clock has jumped in between.
        assert_eq!(bounds(-900, 100).and(bounds(14_000, 15_000)), None);
    }

    #[test]
    fn the_lag_of_a_late_setting_is_bounded() {
        assert_eq!(likely_lag_ns(300 * MS), 300 * MS);
        assert_eq!(likely_lag_ns(-700 * MS), 0);
        // The VM was paused while it was measured.
        assert_eq!(likely_lag_ns(-5400 * MS), 0);
        // A real-time clock in another zone, or of another year.
        for other in [-3_600_000 * MS, 3_600_000 * MS, 200_000_000_000 * MS] {
            assert_eq!(likely_lag_ns(other), other);
        }
    }
}
