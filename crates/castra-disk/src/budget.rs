//! Limit of reads, bytes and time for one question about a disk.
//!
//! A hostile filesystem can send a parser in circles. All bytes come through here, so every loop
//! that reads has an end, even in a parser that does not look for loops.

use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::source::{Shared, Source};

/// Limits of one question: finding a system, reading a file, or listing a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of reads.
    pub reads: u64,
    /// Maximum number of bytes read.
    pub bytes: u64,
    /// Maximum duration.
    pub time: Duration,
    /// Maximum size of a kernel and its initramfs together, in bytes. Both are kept in memory.
    pub kernel_bytes: u64,
}

impl Default for Limits {
    /// Permits several times what the largest kernel and initramfs need.
    fn default() -> Self {
        Self {
            reads: 4_000_000,
            bytes: 4 << 30,
            time: Duration::from_secs(30),
            kernel_bytes: 1 << 30,
        }
    }
}

/// Source whose reads are counted.
pub(crate) struct Metered {
    source: Box<dyn Source>,
    limits: Limits,
    spent: Mutex<Spent>,
}

struct Spent {
    reads: u64,
    bytes: u64,
    since: Instant,
    /// Limit that was exceeded.
    exceeded: Option<Exceeded>,
}

/// A limit that was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// Number of reads.
    Reads,
    /// Number of bytes.
    Bytes,
    /// Duration.
    Time,
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Reads => "reads",
            Self::Bytes => "bytes",
            Self::Time => "time",
        };
        write!(f, "more {what} than any sound disk needs")
    }
}

impl Spent {
    fn nothing() -> Self {
        Self { reads: 0, bytes: 0, since: Instant::now(), exceeded: None }
    }
}

impl Metered {
    pub(crate) fn new(source: Box<dyn Source>, limits: Limits) -> Self {
        Self { source, limits, spent: Mutex::new(Spent::nothing()) }
    }

    /// Forgets what was spent: the next question begins.
    pub(crate) fn renew(&self) {
        *self.spent() = Spent::nothing();
    }

    /// Returns the limit that was exceeded since then: from there on, nothing is read.
    pub(crate) fn exceeded(&self) -> Option<Exceeded> {
        self.spent().exceeded
    }

    /// Returns the maximum size of a kernel and its initramfs together.
    pub(crate) fn kernel_bytes(&self) -> u64 {
        self.limits.kernel_bytes
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accounts for a read before it happens.
    fn spend(&self, bytes: usize) -> io::Result<()> {
        let mut spent = self.spent();
        spent.reads += 1;
        spent.bytes = spent.bytes.saturating_add(bytes as u64);
        let exceeded = if spent.reads > self.limits.reads {
            Exceeded::Reads
        } else if spent.bytes > self.limits.bytes {
            Exceeded::Bytes
        } else if spent.since.elapsed() > self.limits.time {
            Exceeded::Time
        } else {
            return Ok(());
        };
        spent.exceeded = Some(exceeded);
        Err(io::Error::other(exceeded.to_string()))
    }
}

impl Source for Metered {
    fn length(&self) -> u64 {
        self.source.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.spend(buffer.len())?;
        self.source.read_at(offset, buffer)
    }
}

impl Source for Shared {
    fn length(&self) -> u64 {
        self.as_ref().length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_ref().read_at(offset, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_ends_reading_until_the_next_question() {
        let time = Duration::from_secs(60);
        let ample = Limits { reads: 9, bytes: 900, time, ..Limits::default() };
        let tight = [
            Limits { reads: 1, ..ample },
            Limits { bytes: 15, ..ample },
            Limits { time: Duration::ZERO, ..ample },
        ];
        for limits in tight {
            let metered = Metered::new(Box::new(vec![0; 100]), limits);
            let read = || metered.read_at(0, &mut [0; 10]);
            let failed = [read(), read()].into_iter().any(|read| read.is_err());
            assert!(failed, "{limits:?}");
        }
        let metered = Metered::new(Box::new(vec![0; 100]), Limits { reads: 1, ..ample });
        metered.read_at(0, &mut []).expect("the first read");
        metered.read_at(0, &mut []).expect_err("an empty read counts");
        metered.renew();
        metered.read_at(0, &mut []).expect("the next question");
    }
}
