//! The host as Castra sees it: the current boot, the clock, and random bytes.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the ID of the kernel's current boot, which changes with each restart (`random(4)`).
/// Returns `None` if the kernel has none, as on macOS.
pub fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Returns the time since the Unix epoch by the host's clock; zero if the clock is before that.
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Returns [`unix_time`] in whole milliseconds.
pub fn unix_time_ms() -> u64 {
    millis(unix_time())
}

/// Returns the time since `moment`, in milliseconds of Unix time; zero if that is in the future.
pub fn since_unix_ms(moment: u64) -> Duration {
    unix_time().saturating_sub(Duration::from_millis(moment))
}

/// Converts a duration to whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns random bytes from the system, for keys and seeds.
///
/// # Errors
/// Those of reading `/dev/urandom`, which is only ever missing in a broken chroot.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Signals that this process ignores, as one does that was started by `nohup` or in the background
/// of a script.
#[derive(Debug, Clone, Copy)]
pub struct IgnoredSignals(u64);

impl IgnoredSignals {
    /// Asks the kernel. Finds none where the kernel does not say so.
    pub fn of_process() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        Self(mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()).unwrap_or(0))
    }

    /// Returns `true` if the signal is one of them.
    pub fn contains(self, signal: i32) -> bool {
        (1..=64).contains(&signal) && self.0 >> (signal - 1) & 1 == 1
    }
}
