//! A process that waits for its program.
//!
//! A guest that comes to rest for a template starts one, and the first command of each VM runs in
//! it: its pipes, its session and all else that a process gets before its program are there. They
//! take an emulated CPU a fifth of the time until the first command's output.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::futex;
use tokio::task::JoinHandle;

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

/// Process that is ready but for its program.
pub(super) struct Spare {
    slot: Arc<Slot>,
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
    let (state, order) = (AtomicU32::new(EMPTY), OnceLock::new());
    let slot = Arc::new(Slot { state, order, user });
    let awaited = Arc::clone(&slot);
    let started = tokio::task::spawn_blocking(move || {
        let [stdin, stdout, stderr] = &theirs;
        let streams = Streams::Pipes([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
        spawn::spawn(&streams, &Orders::Awaited(&awaited))
    });
    let mut steps = 0..STEPS;
    while !slot.is_awaited() {
        if started.is_finished() || steps.next().is_none() {
            return Err(io::Error::other("a process that should wait does not"));
        }
        sleep(STEP);
    }
    *spare() = Some(Spare { slot, ours, started });
    Ok(())
}

fn spare() -> MutexGuard<'static, Option<Spare>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spare {
    /// Returns `true` until the first command has taken the process.
    pub(super) fn is_there() -> bool {
        spare().is_some()
    }

    /// Takes the process that waits, if it still does.
    pub(super) fn take() -> Option<Self> {
        spare().take().filter(|spare| !spare.started.is_finished())
    }

    /// Has the process execute its program.
    ///
    /// # Errors
    /// The program cannot be executed, or the process has ended.
    pub(super) async fn execute(self, order: Order) -> io::Result<Running> {
        self.slot.fill(order);
        let child = self.started.await.map_err(io::Error::other)??;
        Running::with_pipes(child, self.ours)
    }
}

/// Place of an order, on which a process waits.
pub(super) struct Slot {
    state: AtomicU32,
    order: OnceLock<Order>,
    user: Arc<User>,
}

/// States of a slot.
const EMPTY: u32 = 0;
const AWAITED: u32 = 1;
const FILLED: u32 = 2;
const TAKEN: u32 = 3;

impl Slot {
    fn is_awaited(&self) -> bool {
        self.state.load(Ordering::Acquire) == AWAITED
    }

    /// Returns `true` once the process has its order.
    pub(super) fn is_taken(&self) -> bool {
        self.state.load(Ordering::Acquire) == TAKEN
    }

    fn fill(&self, order: Order) {
        // Only the owner of the spare process fills its slot, once.
        let _ = self.order.set(order);
        self.state.store(FILLED, Ordering::Release);
        // Fails never: the address is valid.
        let _ = futex::wake(&self.state, futex::Flags::PRIVATE, 1);
    }

    /// Returns the user as whom a process waits.
    pub(super) fn user(&self) -> &User {
        &self.user
    }

    /// Waits for the order. Async-signal-safe. The process ends with the agent.
    pub(super) fn wait(&self) -> io::Result<&Order> {
        self.user.become_in_child()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Fails if it is filled already.
        let relaxed = Ordering::Relaxed;
        let _ = self.state.compare_exchange(EMPTY, AWAITED, Ordering::AcqRel, relaxed);
        while self.is_awaited() {
            // Fails if it is filled now, or by a signal.
            let _ = futex::wait(&self.state, futex::Flags::PRIVATE, AWAITED, None);
        }
        self.state.store(TAKEN, Ordering::Release);
        set_parent_process_death_signal(None)?;
        self.order.get().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
