//! Keeping the clock. A VM that was paused, or whose host slept, continues with the time at which it stopped.
//!
//! The machine's real-time clock does not stop: QEMU's shows the host's clock at any time (`-rtc clock=host`, its default),
//! without any castra that runs. It shows whole seconds, and its seconds begin when QEMU started, not when the host's do; so the
//! difference between the two is measured once, after the host has set the clock. From then on the guest's clock is compared
//! with it every few seconds: just before and just after it is to turn over, which shows a small difference, too.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::adjust::{SLEW_NS_PER_SEC, boot_ns, is_kept_by_a_service, slew, step, wall_ns};
use crate::trees::Trees;

/// Time of the real-time clock, in seconds since the Unix epoch (`Documentation/ABI/testing/rtc-cdev`).
const RTC: &str = "class/rtc/rtc0/since_epoch";

/// Time between two comparisons; also how often the real-time clock is looked for until its driver is there.
const EVERY: Duration = Duration::from_secs(4);

/// A difference below this is none: an emulated CPU on a busy machine needs as long to read a clock twice.
const TOLERANCE_NS: i64 = 100_000_000;

/// Precision of a measurement, how often the clock is read for one, and how long at most.
const PRECISION_NS: i64 = 50_000_000;
const READ_EVERY: Duration = Duration::from_millis(20);
const MEASURE_LIMIT: Duration = Duration::from_secs(3);

/// A clock that is behind by more is stepped: a step forward does no harm.
const STEP_FORWARD_NS: i64 = 500_000_000;
/// A clock that is ahead by more is stepped: programs stumble over time that goes backwards.
const STEP_BACK_NS: i64 = 2_000_000_000;

/// With a time service in the guest, only a pause of this length is made good.
const PAUSE_NS: i64 = 2_000_000_000;

/// The host's words take seconds to be heard by a busy guest, which then sets its clock too late; and a VM may be paused while
/// the real-time clock's lag is measured.
const LATENESS_NS: i64 = 1800 * SECOND_NS;

const SECOND_NS: i64 = 1_000_000_000;

/// Returns the wall clock, nanoseconds since the Unix epoch.
pub(crate) fn unix_ns() -> u64 {
    u64::try_from(wall_ns()).unwrap_or_default()
}

/// Keeps the clock right for ever. `set` changes whenever the host has set it.
pub(crate) async fn keep(trees: Arc<Trees>, mut set: watch::Receiver<()>) {
    let mut keeper = Keeper::new(trees);
    loop {
        let set = tokio::select! {
            () = sleep(EVERY) => false,
            Ok(()) = set.changed() => true,
        };
        // A real-time clock that cannot be read now may be there later.
        let _ = if set { keeper.calibrate().await } else { keeper.check().await };
    }
}

struct Keeper {
    trees: Arc<Trees>,
    /// Lead of the host's clock over the real-time clock.
    rtc_lag_ns: i64,
    /// Lead of the host's clock over the time since boot, at the last comparison: more than that is a pause.
    host_since_boot_ns: Option<i64>,
    /// Time that a slew makes good, and the moment by which it has.
    slew_end: Option<(i64, Instant)>,
}

/// Bounds on a difference between two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    low_ns: i64,
    high_ns: i64,
}

/// Remedy for a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Correction {
    Nothing,
    Slew(i64),
    Step(i64),
}

impl Keeper {
    fn new(trees: Arc<Trees>) -> Self {
        Self { trees, rtc_lag_ns: 0, host_since_boot_ns: None, slew_end: None }
    }

    /// Learns the real-time clock's lag from the clock that the host has just set.
    async fn calibrate(&mut self) -> io::Result<()> {
        (self.rtc_lag_ns, self.host_since_boot_ns, self.slew_end) = (0, None, None);
        let set_since_boot_ns = wall_ns() - boot_ns();
        let ahead_ns = self.measure().await?.middle_ns();
        // The clock may have been set otherwise meanwhile.
        let moved_ns = wall_ns() - boot_ns() - set_since_boot_ns;
        self.rtc_lag_ns = likely_lag_ns(-ahead_ns - moved_ns);
        self.correct(ahead_ns + self.rtc_lag_ns)
    }

    /// Compares the clocks, and corrects this one.
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
                let length = Duration::from_secs(by_ns.unsigned_abs() / SLEW_NS_PER_SEC.unsigned_abs());
                self.slew_end = Some((by_ns, Instant::now() + length));
                slew(by_ns)
            }
        }
    }

    /// Returns the difference that needs no measurement: one that is being slewed, or that of a time service.
    fn tolerance_ns(&mut self) -> i64 {
        if is_kept_by_a_service() {
            return STEP_FORWARD_NS;
        }
        self.slew_end = self.slew_end.filter(|(_, end)| Instant::now() < *end);
        TOLERANCE_NS + self.slew_end.map_or(0, |(by_ns, _)| by_ns.abs())
    }

    /// Compares just before and just after the real-time clock is to turn over; nothing if the two contradict each other.
    async fn glance(&self) -> io::Result<Option<Bounds>> {
        let into_second_ns = (wall_ns() - self.rtc_lag_ns).rem_euclid(SECOND_NS);
        let left_ns = (SECOND_NS - TOLERANCE_NS - into_second_ns).rem_euclid(SECOND_NS);
        sleep(Duration::from_nanos(left_ns.unsigned_abs())).await;
        let before = self.read()?;
        sleep(Duration::from_nanos(2 * TOLERANCE_NS.unsigned_abs())).await;
        Ok(before.and(self.read()?))
    }

    /// Compares until the difference is known well: within a second, since that is when the real-time clock turns over.
    async fn measure(&self) -> io::Result<Bounds> {
        let started = Instant::now();
        let mut bounds = self.read()?;
        while bounds.high_ns - bounds.low_ns > PRECISION_NS && started.elapsed() < MEASURE_LIMIT {
            sleep(READ_EVERY).await;
            let latest = self.read()?;
            // The clock has jumped meanwhile: only what was read since counts.
            bounds = bounds.and(latest).unwrap_or(latest);
        }
        Ok(bounds)
    }

    /// Returns what the host's clock is ahead of this one by a single look.
    fn read(&self) -> io::Result<Bounds> {
        let before_ns = wall_ns();
        let seconds = self.trees.sys.read(RTC)?.parse::<i64>().map_err(io::Error::other)?;
        let host_ns = seconds.saturating_mul(SECOND_NS).saturating_add(self.rtc_lag_ns);
        Ok(Bounds { low_ns: host_ns - wall_ns(), high_ns: host_ns + SECOND_NS - before_ns })
    }
}

impl Bounds {
    /// Returns what both allow.
    fn and(self, other: Self) -> Option<Self> {
        let both = Self { low_ns: self.low_ns.max(other.low_ns), high_ns: self.high_ns.min(other.high_ns) };
        (both.low_ns <= both.high_ns).then_some(both)
    }

    /// Returns `true` if the difference may be this small.
    fn allow(self, tolerance_ns: i64) -> bool {
        self.low_ns <= tolerance_ns && self.high_ns >= -tolerance_ns
    }

    fn middle_ns(self) -> i64 {
        self.low_ns + (self.high_ns - self.low_ns) / 2
    }
}

/// Returns the real-time clock's lag, given what was measured against a clock that was set too late rather than too early.
/// QEMU's is below a second, since it is started with the host's whole seconds; anything far from that is a real-time clock that
/// was set otherwise.
fn likely_lag_ns(measured_ns: i64) -> i64 {
    if (-LATENESS_NS..0).contains(&measured_ns) { 0 } else { measured_ns }
}

/// Decides what to do about a clock that the host's is ahead of by `difference_ns`, of which `paused_ns` came about at once.
/// The clock of a guest with a time service of its own is that service's, but for a pause, of which it knows nothing.
fn correction(difference_ns: i64, paused_ns: i64, is_kept_by_a_service: bool) -> Correction {
    if is_kept_by_a_service {
        return if paused_ns >= PAUSE_NS { Correction::Step(paused_ns) } else { Correction::Nothing };
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
        // Just before the second it was not over, and just after it was: the clocks agree.
        let both = bounds(-900, 100).and(bounds(-100, 900)).expect("agree");
        assert_eq!(both, bounds(-100, 100));
        assert!(both.allow(0));
        // It was over too early, or is not yet over: small differences show.
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
