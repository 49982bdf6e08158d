//! Timeouts and retry limits of downloads and of pip.

use std::time::Duration;

/// Timeouts and retry limits. The defaults suit people; tests use short ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Time until a connection is established, name resolution, proxy and TLS included.
    pub connect: Duration,
    /// Time between two bytes of an answer.
    pub stall: Duration,
    /// Lowest rate of a download, averaged over `pace`, in bytes per second. A slower one counts as
    /// a failure: the next address is tried, and the last one again. The bytes received are kept.
    pub slowest: u64,
    /// Time over which the rate of a download is averaged.
    pub pace: Duration,
    /// Attempts in a row that bring nothing new, the first one included.
    pub attempts: u32,
    /// Wait before the second attempt; doubled before each further one, and varied by half of it
    /// either way.
    pub back_off: Duration,
    /// Longest wait between two attempts. A server that asks for more (`Retry-After`) counts as
    /// unavailable.
    pub longest_wait: Duration,
    /// Time until each address of a default image has answered: the very first `castra up` waits
    /// for this.
    pub probe: Duration,
    /// Time for asking pip if it could fetch something.
    pub ask: Duration,
    /// Time for one run of pip, which downloads tens of megabytes.
    pub pip: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            // A quarter of a 33.6k modem's rate: slow lines are honest, and drips are not.
            slowest: 1024,
            pace: Duration::from_secs(30),
            attempts: 5,
            back_off: Duration::from_millis(500),
            longest_wait: Duration::from_secs(60),
            probe: Duration::from_millis(2500),
            ask: Duration::from_secs(20),
            pip: Duration::from_secs(30 * 60),
        }
    }
}
