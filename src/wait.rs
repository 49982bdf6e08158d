//! Limits on waits. What waits for QEMU or a guest takes one of these, so that no wait is without a limit, and a first
//! signal ends each; and a connection that is there at once or not at all.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::cancel::{Cancel, Interrupted};

/// Interval at which a wait looks for an interruption.
const GLANCE: Duration = Duration::from_millis(50);
/// Limit of an answer that is waited for after an interruption, to leave things in order.
const PARTING_LIMIT: Duration = Duration::from_millis(500);

/// Limit of the wait for each answer. An interruption ends it, too.
#[derive(Debug, Clone)]
pub struct WaitLimit {
    limit: Duration,
    cancel: Cancel,
}

impl WaitLimit {
    /// A limit of this length.
    pub fn new(limit: Duration, cancel: &Cancel) -> Self {
        Self { limit, cancel: cancel.clone() }
    }

    /// A limit for what must be left in order even after an interruption, which shortens it then.
    pub fn to_leave_in_order(limit: Duration, cancel: &Cancel) -> Self {
        if cancel.is_cancelled() {
            return Self { limit: limit.min(PARTING_LIMIT), cancel: Cancel::new() };
        }
        Self::new(limit, cancel)
    }

    /// The length.
    pub fn length(&self) -> Duration {
        self.limit
    }

    /// Begins a wait.
    pub fn begin(&self) -> Wait {
        Wait { end: Instant::now() + self.limit, limit: self.clone() }
    }
}

/// A wait that has begun.
#[derive(Debug)]
pub struct Wait {
    end: Instant,
    limit: WaitLimit,
}

/// Why a wait ended without what it was for.
#[derive(Debug)]
pub enum WaitEnd {
    /// The limit has passed.
    Over(Duration),
    /// The user interrupted it.
    Interrupted(Interrupted),
}

impl Wait {
    /// Returns how long to sleep at most until the next look.
    ///
    /// # Errors
    /// [`WaitEnd`] once the limit has passed or an interruption came.
    pub fn slice(&self) -> Result<Duration, WaitEnd> {
        self.limit.cancel.check().map_err(WaitEnd::Interrupted)?;
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(WaitEnd::Over(self.limit.limit)) } else { Ok(left.min(GLANCE)) }
    }

    /// Sleeps for `pause`, or until the wait ends.
    ///
    /// # Errors
    /// As for [`Self::slice`].
    pub fn sleep(&self, pause: Duration) -> Result<(), WaitEnd> {
        std::thread::sleep(self.slice()?.min(pause));
        Ok(())
    }
}

/// Connects to a socket without waiting: where another client is being served, a blocking `connect` may never return.
pub(crate) fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_its_limit_or_an_interruption() {
        let cancel = Cancel::new();
        let wait = WaitLimit::new(Duration::from_secs(3600), &cancel).begin();
        assert!(wait.slice().is_ok_and(|slice| slice <= GLANCE));
        cancel.cancel();
        assert!(matches!(wait.slice(), Err(WaitEnd::Interrupted(_))));
        let over = WaitLimit::new(Duration::ZERO, &Cancel::new()).begin();
        assert!(matches!(over.slice(), Err(WaitEnd::Over(Duration::ZERO))));
    }

    #[test]
    fn what_must_be_left_in_order_is_tried_briefly_after_an_interruption() {
        let (cancel, limit) = (Cancel::new(), Duration::from_secs(10));
        assert_eq!(WaitLimit::to_leave_in_order(limit, &cancel).length(), limit);
        cancel.cancel();
        let parting = WaitLimit::to_leave_in_order(limit, &cancel);
        assert_eq!(parting.length(), PARTING_LIMIT);
        assert!(parting.begin().slice().is_ok());
    }
}
