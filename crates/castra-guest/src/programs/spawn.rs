//! Starts processes as `posix_spawn(3)` does: the child shares the agent's memory, and the agent's
//! thread waits, until the child executes its program. A fork would copy page tables that the
//! child then throws away, which costs an emulated CPU more than the rest.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus};

use super::order::Order;
use super::spare::Slot;
use crate::process::be_ordinary;

/// Stack of a child until it executes its program, in bytes. It needs a few hundred in a release
/// build.
const STACK_BYTES: usize = 64 * 1024;

/// Standard streams of a new process.
pub(super) enum Streams<'a> {
    /// Stdin, stdout and stderr.
    Pipes([BorrowedFd<'a>; 3]),
    /// Terminal that becomes the process's controlling one.
    Terminal(BorrowedFd<'a>),
}

/// Order of a new process.
pub(super) enum Orders<'a> {
    Given(&'a Order),
    /// The process waits for it.
    Awaited(&'a Slot),
}

/// Process that was started. Reaped when dropped, if it has ended.
pub(super) struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

/// End of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Exit with this status.
    Status(u32),
    /// Death by this signal.
    Signal { number: i32, has_dumped_core: bool },
}

impl Child {
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns a descriptor that is readable once the process has ended.
    pub(super) fn pidfd(&self) -> io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// Returns the end of the process, if it has ended, and leaves it to be reaped.
    pub(super) fn end(&self) -> io::Result<Option<Ended>> {
        self.wait(WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)
    }

    /// Ends the process.
    pub(super) fn kill(&self) {
        // Fails if it has ended by itself.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = self.wait(WaitIdOptions::EXITED);
    }

    fn wait(&self, options: WaitIdOptions) -> io::Result<Option<Ended>> {
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)?;
        Ok(status.map(|status| Ended::from(&status)))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // One that still runs stays, as a child of the agent's.
        let _ = self.wait(WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

impl From<&WaitIdStatus> for Ended {
    fn from(status: &WaitIdStatus) -> Self {
        if let Some(number) = status.terminating_signal() {
            return Self::Signal { number, has_dumped_core: status.dumped() };
        }
        let code = status.exit_status().and_then(|code| u32::try_from(code).ok());
        Self::Status(code.unwrap_or(u32::MAX))
    }
}

/// Starts a process in a session of its own, and returns once it has executed its program.
///
/// # Errors
/// The program cannot be executed, or the kernel has no room for a process.
#[expect(unsafe_code, reason = "no library starts a process without a fork")]
pub(super) fn spawn(streams: &Streams<'_>, orders: &Orders<'_>) -> io::Result<Child> {
    let plan = Plan { streams, orders, errno: AtomicI32::new(0) };
    // Of the alignment that the ABI wants.
    let mut stack = Vec::<u128>::with_capacity(STACK_BYTES / size_of::<u128>());
    let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let signals = BlockedSignals::block();
    // SAFETY: the stack, the plan and all that it refers to outlive the child's use of them, since
    // this thread continues only after the child has executed its program or ended. The child
    // makes system calls, and neither allocates nor locks. No handler of the agent's can run in
    // it: signals are blocked until it has none.
    let pid = unsafe {
        libc::clone(
            child,
            top.cast(),
            flags,
            ptr::from_ref(&plan).cast_mut().cast::<c_void>(),
            &raw mut pidfd,
        )
    };
    let cloned = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    drop(signals);
    let pid = Pid::from_raw(cloned?).ok_or(io::ErrorKind::Other)?;
    // SAFETY: the kernel has opened this descriptor for us.
    let child = Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } };
    let failed = |error| {
        let _ = child.wait(WaitIdOptions::EXITED);
        Err(error)
    };
    match (plan.errno.load(Ordering::Relaxed), orders) {
        (0, Orders::Awaited(slot)) if !slot.is_taken() => {
            failed(io::Error::other("the process was killed before it had a program"))
        }
        (0, _) => Ok(child),
        (errno, _) => failed(io::Error::from_raw_os_error(errno)),
    }
}

/// All that a child needs, made before it exists.
struct Plan<'a> {
    streams: &'a Streams<'a>,
    orders: &'a Orders<'a>,
    /// The child's error.
    errno: AtomicI32,
}

#[expect(unsafe_code, reason = "the argument of a callback of clone(2)")]
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes a plan, which outlives this call.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    let error = plan.run();
    plan.errno.store(error.raw_os_error().unwrap_or(libc::EINVAL), Ordering::Relaxed);
    127
}

/// Closes all descriptors but the standard streams. They would be closed when the program is
/// executed, which may take for ever; until then, the ends of other programs' pipes would be open.
#[expect(unsafe_code, reason = "no library has this system call")]
fn close_others() -> io::Result<()> {
    // SAFETY: the descriptors are this process's copies, and it uses none of them any more.
    match unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Plan<'_> {
    /// Executes the program in the calling process. Returns the reason if that fails.
    fn run(&self) -> io::Error {
        let closed = match self.prepare() {
            Ok(closed) => closed,
            Err(error) => return error,
        };
        match self.orders {
            // A kernel that cannot close them now (before 5.9) does so with the execution.
            Orders::Given(order) => match order.become_user() {
                Ok(()) => order.execute(),
                Err(error) => error,
            },
            Orders::Awaited(slot) => match closed.and_then(|()| slot.wait()) {
                Ok(order) => order.execute(),
                Err(error) => error,
            },
        }
    }

    /// Makes the process ready for its program. Returns the result of closing the agent's
    /// descriptors.
    fn prepare(&self) -> io::Result<io::Result<()>> {
        rustix::process::setsid()?;
        let [stdin, stdout, stderr] = match *self.streams {
            Streams::Pipes(pipes) => pipes,
            Streams::Terminal(line) => {
                rustix::process::ioctl_tiocsctty(line)?;
                [line; 3]
            }
        };
        rustix::stdio::dup2_stdin(stdin)?;
        rustix::stdio::dup2_stdout(stdout)?;
        rustix::stdio::dup2_stderr(stderr)?;
        let closed = close_others();
        // While this process still may: the agent is exempt from the OOM killer, programs of its
        // users are not. A program that could not be made killable runs all the same.
        let _ = be_ordinary();
        Ok(closed)
    }
}

/// Signals of this thread, blocked until this is dropped.
struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    #[expect(unsafe_code, reason = "no library blocks signals")]
    fn block() -> Self {
        // SAFETY: a set of signals is plain numbers, which the calls fill.
        let before = unsafe {
            let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            before
        };
        Self { before }
    }
}

impl Drop for BlockedSignals {
    #[expect(unsafe_code, reason = "no library unblocks signals")]
    fn drop(&mut self) {
        // SAFETY: the set was filled by the kernel.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io::Read as _;

    use super::*;
    use crate::programs::order::CHANGED_SIGNALS;
    use crate::programs::program::{Environment, Invocation};
    use crate::users::tests::own_user;

    /// Runs a program of this user's, and returns its end and its stdout.
    fn run(file: &str, arguments: &[&str]) -> io::Result<(Ended, String)> {
        let user = own_user("/bin/sh");
        let environment = Environment::from([("NAME".into(), "a value".into())]);
        let arguments = arguments.iter().map(|word| OsStr::new(word).into()).collect();
        let files = vec![file.into()];
        let order =
            Order::new(&Invocation { files, arguments, environment: &environment }, &user, None)?;
        let null = File::open("/dev/null")?;
        let (mut output, input) = io::pipe()?;
        let streams = Streams::Pipes([null.as_fd(), input.as_fd(), null.as_fd()]);
        let child = spawn(&streams, &Orders::Given(&order))?;
        drop(input);
        let mut text = String::new();
        output.read_to_string(&mut text)?;
        let ended = child.wait(WaitIdOptions::EXITED)?.expect("has ended");
        Ok((ended, text))
    }

    #[test]
    fn a_program_has_its_arguments_and_variables_and_nothing_else() {
        let script = "echo \"$0 $1 $NAME $PWD\"; exit 7";
        let (ended, text) = run("/bin/sh", &["own", "-c", script, "zero", "one"]).expect("runs");
        assert_eq!((ended, text.as_str()), (Ended::Status(7), "zero one a value /\n"));
    }

    #[test]
    fn signals_have_their_defaults() {
        let (_, status) = run("/bin/cat", &["cat", "/proc/self/status"]).expect("runs");
        // Those that the agent changes; a test's parent may ignore others.
        let ours = CHANGED_SIGNALS.iter().fold(0, |set, signal| set | 1_u64 << (signal - 1));
        for mask in ["SigBlk:", "SigIgn:", "SigCgt:"] {
            let set = status.lines().find_map(|line| line.strip_prefix(mask)).expect("is there");
            let set = u64::from_str_radix(set.trim(), 16).expect("a set");
            assert_eq!(set & ours, 0, "{mask} {set:x}");
        }
        let (ended, _) = run("/bin/sh", &["sh", "-c", "kill -PIPE $$"]).expect("runs");
        assert_eq!(ended, Ended::Signal { number: libc::SIGPIPE, has_dumped_core: false });
    }

    #[test]
    fn a_failure_is_the_kernels() {
        for (file, errno) in
            [("/nonexistent", libc::ENOENT), ("/etc/passwd", libc::EACCES), ("/", libc::EACCES)]
        {
            let error = run(file, &[file]).expect_err(file);
            assert_eq!(error.raw_os_error(), Some(errno), "{file}: {error}");
        }
        let long = "x".repeat(1024 * 1024);
        let error = run("/bin/true", &["true", &long]).expect_err("too long");
        assert_eq!(error.raw_os_error(), Some(libc::E2BIG), "{error}");
    }

    #[test]
    fn many_start_at_once() {
        std::thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || {
                    for _ in 0..20 {
                        let script = format!("echo {number}");
                        let (ended, text) = run("/bin/sh", &["sh", "-c", &script]).expect("runs");
                        assert_eq!((ended, text), (Ended::Status(0), format!("{number}\n")));
                    }
                });
            }
        });
    }
}
