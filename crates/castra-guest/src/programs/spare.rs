//! A process that waits for its program.
//!
//! A guest that comes to rest for a template starts one, and the first command of each VM runs in
//! it: its pipes, its session and all else that a process gets before its program are there. They
//! take an emulated CPU a fifth of the time until the first command's output. It is given up if no
//! command comes soon: the agent's thread that waits for it counts as load.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
};
use rustix::thread::futex;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::exec::Running;
use super::order::Order;
use super::pipes::Pipes;
use super::spawn::{self, Child, Orders, Streams};
use crate::users::User;

/// Process that waits, if there is one.
static SPARE: Mutex<Option<Spare>> = Mutex::new(None);

/// Time that a process has to begin its wait, in steps.
const STEPS: u32 = 500;
const STEP: Duration = Duration::from_millis(10);

/// Time that a process has to take its order: one that was stopped never does.
const TAKING: Duration = Duration::from_secs(2);

/// Time for the first command to come. The wait of `vfork(2)` is uninterruptible, and one for ever
/// would show as a load average of 1.
const FIRST_COMMAND: Duration = Duration::from_secs(30);

/// Process that is ready but for its program.
pub(super) struct Spare {
    waiting: Waiting,
    ours: Pipes,
    /// Result of the thread that waits until the process executes its program.
    started: JoinHandle<io::Result<Child>>,
}

/// Starts a process that waits for its program, most likely one of `user`'s, and returns once it
/// waits. Needs a tokio runtime, and blocks.
///
/// # Errors
/// The kernel has no room for a process, or is too old (before 5.9).
pub(crate) fn prepare(user: Arc<User>) -> io::Result<()> {
    let (ours, theirs) = Pipes::make()?;
    let slot = Arc::new(Slot::of(user));
    let awaited = Arc::clone(&slot);
    let started = tokio::task::spawn_blocking(move || {
        let [stdin, stdout, stderr] = &theirs;
        let streams = Streams::Pipes([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
        spawn::spawn(&streams, &Orders::Awaited(&awaited))
    });
    match waiting_process(&slot, &started) {
        Ok(process) => {
            *spare() = Some(Spare { waiting: Waiting { slot, process }, ours, started });
            Ok(())
        }
        Err(error) => {
            // One that is only slow must not wait for ever.
            slot.withdraw();
            Err(error)
        }
    }
}

/// Returns the process once it waits on its slot.
fn waiting_process<T>(slot: &Slot, started: &JoinHandle<T>) -> io::Result<OwnedFd> {
    let mut steps = 0..STEPS;
    while !slot.is(AWAITED) {
        if started.is_finished() || steps.next().is_none() {
            return Err(io::Error::other("a process that should wait does not"));
        }
        thread::sleep(STEP);
    }
    // Of our child, which is not reaped before its program has been executed.
    let pid = Pid::from_raw(slot.pid.load(Ordering::Acquire)).ok_or(io::ErrorKind::NotFound)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Ends the process if no command has taken it in time.
pub(crate) async fn give_up() {
    sleep(FIRST_COMMAND).await;
    drop(Spare::take());
}

fn spare() -> MutexGuard<'static, Option<Spare>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spare {
    /// Returns `true` until a command has taken the process, if that is this user's.
    pub(super) fn is_of(user: &User) -> bool {
        spare().as_ref().is_some_and(|spare| *spare.waiting.slot.user == *user)
    }

    /// Takes the process that waits, if it still does.
    pub(super) fn take() -> Option<Self> {
        spare().take().filter(|spare| !spare.started.is_finished())
    }

    /// Has the process execute its program, which is one of its user's.
    ///
    /// # Errors
    /// The program cannot be executed, or the process has ended or was stopped.
    pub(super) async fn execute(self, order: Order) -> io::Result<Running> {
        let Self { waiting, ours, mut started } = self;
        waiting.slot.fill(order);
        let child = match timeout(TAKING, &mut started).await {
            Ok(started) => started,
            // Its directory or its file is on a file system that does not answer. Another process
            // would run the program a second time.
            Err(_elapsed) if waiting.slot.is_taken() => started.await,
            Err(_elapsed) => {
                drop(waiting);
                // One that is frozen (`freezer` of control groups) does not even end.
                timeout(TAKING, started).await.map_err(io::Error::other)?
            }
        };
        Running::with_pipes(child.map_err(io::Error::other)??, ours)
    }
}

/// Process that waits on its slot. Ended when dropped, unless it has its order.
struct Waiting {
    slot: Arc<Slot>,
    process: OwnedFd,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.slot.withdraw() {
            // Fails if it has ended.
            let _ = pidfd_send_signal(&self.process, Signal::KILL);
        }
    }
}

/// Place of an order, on which a process waits.
pub(super) struct Slot {
    state: AtomicU32,
    order: OnceLock<Order>,
    /// User as whom the process waits.
    user: Arc<User>,
    /// The process, once it waits.
    pid: AtomicI32,
}

/// States of a slot.
const EMPTY: u32 = 0;
const AWAITED: u32 = 1;
const FILLED: u32 = 2;
const TAKEN: u32 = 3;
const WITHDRAWN: u32 = 4;

impl Slot {
    fn of(user: Arc<User>) -> Self {
        let (state, pid) = (AtomicU32::new(EMPTY), AtomicI32::new(0));
        Self { state, order: OnceLock::new(), user, pid }
    }

    fn is(&self, state: u32) -> bool {
        self.state.load(Ordering::Acquire) == state
    }

    /// Changes the state. Returns `false` if it was another.
    fn change(&self, from: u32, to: u32) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Returns `true` once the process has its order.
    pub(super) fn is_taken(&self) -> bool {
        self.is(TAKEN)
    }

    fn fill(&self, order: Order) {
        // Only the owner of the spare process fills its slot, once.
        let _ = self.order.set(order);
        self.state.store(FILLED, Ordering::Release);
        self.wake();
    }

    /// Returns `true` if the process will not take an order any more, and ends.
    fn withdraw(&self) -> bool {
        let is_withdrawn =
            [EMPTY, AWAITED, FILLED].iter().any(|from| self.change(*from, WITHDRAWN));
        self.wake();
        is_withdrawn
    }

    fn wake(&self) {
        // Fails never: the address is valid.
        let _ = futex::wake(&self.state, futex::Flags::PRIVATE, 1);
    }

    /// Waits for the order. Async-signal-safe. The process ends with the agent.
    ///
    /// # Errors
    /// The order was withdrawn, or a signal is pending, which was not for the program.
    pub(super) fn wait(&self) -> io::Result<&Order> {
        self.user.become_in_child()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        self.pid.store(getpid().as_raw_nonzero().get(), Ordering::Release);
        // Fails if it is filled already.
        self.change(EMPTY, AWAITED);
        while self.is(AWAITED) {
            // Fails if it is filled now, or by a signal.
            let _ = futex::wait(&self.state, futex::Flags::PRIVATE, AWAITED, None);
        }
        if is_signal_pending() || !self.change(FILLED, TAKEN) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        set_parent_process_death_signal(None)?;
        self.order.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Returns `true` if a signal waits until it is not blocked any more.
#[expect(unsafe_code, reason = "no library has this system call")]
fn is_signal_pending() -> bool {
    // SAFETY: a set of signals is plain numbers, which the call fills, and then only read.
    unsafe {
        let mut pending: libc::sigset_t = std::mem::zeroed();
        libc::sigpending(&raw mut pending);
        (1..=libc::SIGRTMAX()).any(|signal| libc::sigismember(&raw const pending, signal) == 1)
    }
}
