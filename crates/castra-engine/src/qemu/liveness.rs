//! Determines whether a QEMU lives, and signals it without hitting another process.
//!
//! QEMU holds a POSIX lock on its pid file as long as it lives, and the kernel reports the holder's
//! pid. So neither a stale file nor a reused pid can be mistaken for a running QEMU.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Flock, FlockType, Pid, Signal};

use super::error::QemuError;

/// Interval of checks on a dying process where there are no process descriptors.
const POLL: Duration = Duration::from_millis(5);

/// A QEMU that lives, or lived a moment ago.
#[derive(Debug)]
pub struct QemuPid {
    pid: Pid,
    pidfile: OwnedFd,
    handle: platform::Handle,
}

/// Returns the QEMU that holds the lock on this pid file. Never blocks.
pub fn running_qemu(pidfile: &Path) -> Option<QemuPid> {
    qemu_of(open(pidfile)?)
}

/// Returns the QEMU that holds the lock on this open pid file, which may have been deleted. Never
/// blocks.
pub(super) fn qemu_of(pidfile: OwnedFd) -> Option<QemuPid> {
    let Holder::Process(pid) = holder(&pidfile) else { return None };
    let handle = platform::Handle::open(pid)?;
    // The lock is checked again: only if it is still held does the handle refer to its holder.
    (holder(&pidfile) == Holder::Process(pid)).then_some(QemuPid { pid, pidfile, handle })
}

impl QemuPid {
    /// Returns the process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Asks the process to end.
    ///
    /// # Errors
    /// [`QemuError::Signal`]; a process that is gone already is no error.
    pub fn terminate(&self) -> Result<(), QemuError> {
        self.signal(Signal::TERM)
    }

    /// Ends the process.
    ///
    /// # Errors
    /// As for [`Self::terminate`].
    pub fn kill(&self) -> Result<(), QemuError> {
        self.signal(Signal::KILL)
    }

    /// Returns `true` if the process is stopped (SIGSTOP): it lives, but does nothing and answers
    /// nothing.
    pub fn is_frozen(&self) -> bool {
        platform::stat(self.pid).is_some_and(|stat| stat.is_stopped)
    }

    /// Returns `true` if the process is about to end: its connections close and its memory is freed
    /// before it is gone, which takes a second on a busy machine. Only Linux shows it.
    pub fn is_ending(&self) -> bool {
        platform::stat(self.pid).is_some_and(|stat| stat.is_ending)
    }

    /// Resumes a stopped process (SIGCONT).
    ///
    /// # Errors
    /// As for [`Self::terminate`].
    pub fn thaw(&self) -> Result<(), QemuError> {
        self.signal(Signal::CONT)
    }

    /// Returns the age of the process, unaffected by changes of the machine's clock. Returns `None`
    /// if the kernel does not report it.
    pub fn age(&self) -> Option<Duration> {
        platform::stat(self.pid).map(|stat| stat.age)
    }

    /// Waits until the process has ended, for `limit` at most. Returns `true` if it has.
    pub fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            // A zombie (QEMU is a child of this very process) holds no lock any more.
            if holder(&self.pidfile) != Holder::Process(self.pid) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.handle.wait(left);
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), QemuError> {
        // A descriptor refers to this process for ever; a pid only while the process holds the
        // lock.
        if self.handle.is_number() && holder(&self.pidfile) != Holder::Process(self.pid) {
            return Ok(());
        }
        match self.handle.signal(self.pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => {
                Err(QemuError::Signal { pid: self.pid(), source: io::Error::from(errno) })
            }
        }
    }
}

/// Returns the process that holds the lock on a file, if that is a lock as QEMU's. Never blocks.
pub fn lock_holder(path: &Path) -> Option<i32> {
    match holder(&open(path)?) {
        Holder::Process(pid) => Some(pid.as_raw_nonzero().get()),
        Holder::None | Holder::Unseen => None,
    }
}

/// Returns `true` if a process that cannot be seen from here holds the lock on this pid file: one
/// of another pid namespace, such as that of a container on this machine. That QEMU lives, though
/// it has no pid here. Never blocks.
pub fn runs_elsewhere(pidfile: &Path) -> bool {
    open(pidfile).is_some_and(|pidfile| holder(pidfile) == Holder::Unseen)
}

/// Holder of the lock on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    None,
    Process(Pid),
    /// A process without a pid in this namespace.
    Unseen,
}

fn open(pidfile: &Path) -> Option<OwnedFd> {
    crate::trusted::open(pidfile).ok().map(OwnedFd::from)
}

fn holder(pidfile: impl AsFd) -> Holder {
    let whole_file = Flock::from(FlockType::WriteLock);
    match rustix::process::fcntl_getlk(pidfile, &whole_file).ok().flatten() {
        Some(lock) => lock.pid.map_or(Holder::Unseen, Holder::Process),
        None => Holder::None,
    }
}

/// Status of a process, as reported by the kernel.
struct Stat {
    is_stopped: bool,
    is_ending: bool,
    age: Duration,
}

#[cfg(target_os = "linux")]
mod platform {
    use std::fs;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec};
    use rustix::io::Errno;
    use rustix::process::{Pid, PidfdFlags, Signal};
    use rustix::time::{ClockId, clock_gettime};

    /// Ticks per second in the kernel's process status: `USER_HZ`, 100 wherever Castra runs.
    const TICKS_PER_SEC: u64 = 100;

    /// Flag of a process that is about to end: `PF_EXITING` of the kernel's `sched.h`.
    const EXITING: u64 = 0x4;

    /// Parses `/proc/<pid>/stat`, documented in `proc_pid_stat(5)`.
    pub(super) fn stat(pid: Pid) -> Option<super::Stat> {
        let text = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        // The second field is the program's name, which may contain any character.
        let mut fields = text.rsplit_once(')')?.1.split_whitespace();
        let is_stopped = matches!(fields.next()?, "T" | "t");
        let flags: u64 = fields.nth(5)?.parse().ok()?;
        let start_ticks: u64 = fields.nth(12)?.parse().ok()?;
        let now = clock_gettime(ClockId::Boottime);
        let now = Duration::new(u64::try_from(now.tv_sec).ok()?, u32::try_from(now.tv_nsec).ok()?);
        let age = now.saturating_sub(Duration::from_millis(start_ticks * 1000 / TICKS_PER_SEC));
        Some(super::Stat { is_stopped, is_ending: flags & EXITING != 0, age })
    }

    /// A process descriptor, which refers to this process and to no later one with its pid. `None`
    /// if the kernel, or a filter of system calls, has none.
    #[derive(Debug)]
    pub(super) struct Handle(Option<OwnedFd>);

    impl Handle {
        pub(super) fn open(pid: Pid) -> Option<Self> {
            match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
                Ok(descriptor) => Some(Self(Some(descriptor))),
                Err(Errno::NOSYS | Errno::PERM) => Some(Self(None)),
                Err(_) => None,
            }
        }

        pub(super) fn is_number(&self) -> bool {
            self.0.is_none()
        }

        pub(super) fn signal(&self, pid: Pid, signal: Signal) -> rustix::io::Result<()> {
            match &self.0 {
                Some(descriptor) => rustix::process::pidfd_send_signal(descriptor, signal),
                None => rustix::process::kill_process(pid, signal),
            }
        }

        /// Waits until the process ends or the time is over.
        pub(super) fn wait(&self, limit: Duration) {
            let Some(descriptor) = &self.0 else {
                return std::thread::sleep(limit.min(super::POLL));
            };
            let limit =
                Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
            let mut fds = [PollFd::new(descriptor, PollFlags::IN)];
            // Interrupted or not, the caller looks again.
            if rustix::event::poll(&mut fds, Some(&limit)).is_ok_and(|ready| ready > 0) {
                std::thread::sleep(super::POLL);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod platform {
    use std::time::Duration;

    use rustix::process::{Pid, Signal};

    pub(super) fn stat(_pid: Pid) -> Option<super::Stat> {
        None
    }

    /// A stand-in where there are no process descriptors: the pid file's lock, checked just before,
    /// must suffice.
    #[derive(Debug)]
    pub(super) struct Handle;

    impl Handle {
        pub(super) fn open(_pid: Pid) -> Option<Self> {
            Some(Self)
        }

        pub(super) fn is_number(&self) -> bool {
            true
        }

        pub(super) fn signal(&self, pid: Pid, signal: Signal) -> rustix::io::Result<()> {
            rustix::process::kill_process(pid, signal)
        }

        pub(super) fn wait(&self, limit: Duration) {
            std::thread::sleep(limit.min(super::POLL));
        }
    }
}
