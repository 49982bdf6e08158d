//! Limits on waits: every wait for QEMU or a guest takes one, so that none is unlimited and a first
//! signal ends each; and connections that are made at once or not at all.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::cancel::{Cancel, Interrupted};

/// Interval at which a wait checks for an interruption.
const GLANCE: Duration = Duration::from_millis(50);
/// Time limit of an answer after an interruption, in order to clean up.
const PARTING_LIMIT: Duration = Duration::from_millis(500);

/// Time limit for each answer. An interruption ends the wait, too.
#[derive(Debug, Clone)]
pub struct WaitLimit {
    limit: Duration,
    cancel: Cancel,
}

impl WaitLimit {
    /// Returns a limit of this length.
    pub fn new(limit: Duration, cancel: &Cancel) -> Self {
        Self { limit, cancel: cancel.clone() }
    }

    /// Returns a limit for clean-up that continues even after an interruption, which shortens it.
    pub fn to_leave_in_order(limit: Duration, cancel: &Cancel) -> Self {
        if cancel.is_cancelled() {
            return Self { limit: limit.min(PARTING_LIMIT), cancel: Cancel::new() };
        }
        Self::new(limit, cancel)
    }

    /// Returns the length.
    pub fn length(&self) -> Duration {
        self.limit
    }

    /// Starts a wait.
    pub fn begin(&self) -> Wait {
        Wait { end: Instant::now() + self.limit, limit: self.clone() }
    }
}

/// A wait that has started.
#[derive(Debug)]
pub struct Wait {
    end: Instant,
    limit: WaitLimit,
}

/// Reason why a wait ended without success.
#[derive(Debug)]
pub enum WaitEnd {
    /// The limit has passed.
    Over(Duration),
    /// The user interrupted it.
    Interrupted(Interrupted),
}

impl Wait {
    /// Returns the longest sleep until the next check.
    ///
    /// # Errors
    /// [`WaitEnd`] once the limit has passed or the user has interrupted the wait.
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

/// Connects to a socket without waiting: if another client is being served, a blocking `connect`
/// may never return.
pub(crate) fn connect_at_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    check_listener(&socket)?;
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// Refuses a socket on which another user listens: castra passes keys and open files to the
/// listener. Sockets in /tmp can be other users' once castra's own are gone.
#[cfg(target_os = "linux")]
pub(crate) fn check_listener(socket: &impl AsFd) -> io::Result<()> {
    let owner = rustix::net::sockopt::socket_peercred(socket)?.uid;
    if owner.is_root() || owner == rustix::process::geteuid() {
        return Ok(());
    }
    Err(crate::trusted::Distrust::Owner { owner: owner.as_raw() }.into())
}

/// A stand-in: elsewhere only the directories are checked.
#[cfg(not(target_os = "linux"))]
pub(crate) fn check_listener(_socket: &impl AsFd) -> io::Result<()> {
    Ok(())
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

    #[cfg(target_os = "linux")]
    #[test]
    fn a_socket_that_another_user_listens_on_is_not_talked_to() {
        use rustix::process::Uid;
        use std::os::unix::net::UnixListener;

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("own.sock");
        let _own = UnixListener::bind(&path).expect("listens");
        assert!(connect_at_once(&path).is_ok());
        if !rustix::process::geteuid().is_root() {
            return castra_test_support::skip("only root can act as another user");
        }
        let path = directory.path().join("foreign.sock");
        let (socket, address) = (path.clone(), SocketAddrUnix::new(&path).expect("an address"));
        let foreign = std::thread::spawn(move || {
            let kind = (AddressFamily::UNIX, SocketType::STREAM);
            let listener = rustix::net::socket(kind.0, kind.1, None).expect("a socket");
            rustix::net::bind(&listener, &address).expect("bound");
            // The user who calls `listen` counts. Changed in this thread only.
            rustix::thread::set_thread_res_uid(None, Some(Uid::from_raw(12_345)), None)
                .expect("another user");
            rustix::net::listen(&listener, 1).expect("listens");
            listener
        });
        let _foreign = foreign.join().expect("joined");
        let refused = connect_at_once(&socket).expect_err("refused");
        assert_eq!(refused.to_string(), "it belongs to another user (uid 12345)");
    }
}
