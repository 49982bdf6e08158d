//! Decisions on retries.

use std::hash::{BuildHasher, Hasher as _, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use crate::cancel::Interrupted;
use crate::managed::job::Job;
use crate::managed::timeouts::Timeouts;

/// Bytes that make an attempt worthwhile: the count of failures starts again after it.
const WORTHWHILE_BYTES: u64 = 1024 * 1024;
/// Interval at which a wait checks for cancellation.
const TICK: Duration = Duration::from_millis(20);

/// Count of failed attempts.
pub(super) struct Retries<'a> {
    timeouts: &'a Timeouts,
    failures: u32,
}

impl<'a> Retries<'a> {
    pub(super) fn new(timeouts: &'a Timeouts) -> Self {
        Self { timeouts, failures: 0 }
    }

    /// Returns the time to wait before the next attempt, after one that failed having brought
    /// `gained_bytes`, or `None` when it is time to give up. `asked` is the server's own request.
    pub(super) fn next(&mut self, gained_bytes: u64, asked: Option<Duration>) -> Option<Duration> {
        // 1 and not 0: this attempt has failed, too, so the next one waits for the shortest time.
        self.failures = if gained_bytes >= WORTHWHILE_BYTES { 1 } else { self.failures + 1 };
        if self.failures >= self.timeouts.attempts {
            return None;
        }
        if let Some(asked) = asked {
            return (asked <= self.timeouts.longest_wait).then_some(asked);
        }
        let doubled = self.timeouts.back_off.saturating_mul(1 << (self.failures - 1).min(16));
        Some(jittered(doubled).min(self.timeouts.longest_wait))
    }
}

/// Varies a wait between half and one and a half, so that many clients of a server that was down do
/// not come back at once.
fn jittered(wait: Duration) -> Duration {
    // A hasher with fresh random keys is the standard library's source of randomness.
    let random = RandomState::new().build_hasher().finish() % 1000;
    wait.mul_f64(0.5 + f64::from(u32::try_from(random).unwrap_or(500)) / 1000.0)
}

/// Waits, but not after a cancellation.
pub(super) fn sleep(job: &Job, pause: Duration) -> Result<(), Interrupted> {
    let end = Instant::now() + pause;
    loop {
        job.check()?;
        match end.checked_duration_since(Instant::now()) {
            None | Some(Duration::ZERO) => return Ok(()),
            Some(left) => thread::sleep(left.min(TICK)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeouts() -> Timeouts {
        Timeouts { attempts: 4, back_off: Duration::from_secs(1), ..Timeouts::default() }
    }

    #[test]
    fn waits_grow_and_end() {
        let timeouts = timeouts();
        let mut retries = Retries::new(&timeouts);
        for doubled in [1.0, 2.0, 4.0] {
            let wait = retries.next(0, None).expect("another attempt").as_secs_f64();
            assert!((doubled * 0.5..=doubled * 1.5).contains(&wait), "{wait} for {doubled}");
        }
        assert_eq!(retries.next(0, None), None);
    }

    #[test]
    fn progress_starts_the_count_again() {
        let timeouts = timeouts();
        let mut retries = Retries::new(&timeouts);
        for _ in 0..20 {
            assert!(retries.next(WORTHWHILE_BYTES, None).is_some());
        }
    }

    #[test]
    fn the_server_is_heard_unless_it_asks_too_much() {
        let timeouts = timeouts();
        let asked = Duration::from_secs(7);
        assert_eq!(Retries::new(&timeouts).next(0, Some(asked)), Some(asked));
        assert_eq!(Retries::new(&timeouts).next(0, Some(timeouts.longest_wait * 2)), None);
    }
}
