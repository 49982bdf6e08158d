//! VMs that are ready before a client asks: restored, their shell run once, and paused.
//!
//! ```text
//!            make_ready ┌───────┐ take ┌─────────┐
//!  template ───────────►│ ready │─────►│ running │
//!                       └───┬───┘      └─────────┘
//!                           └── room is needed, or the server ends ──► (nothing is left)
//! ```
//!
//! They have no records: the next server removes those of one that was killed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use castra_engine::Vm;
use castra_engine::session::{GuestSession, NewProgram, ProgramEvent};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::limits::Admission;
use super::shell::find_shell;
use super::templates::USER;
use super::{SandboxError, Sandboxes, Shape, remove_vm};
use crate::random;

/// Most shapes of which VMs are kept ready: those that were wanted last.
const MAX_SHAPES: usize = 4;

/// Time between two that are made, for the commands of the sandbox that has just been taken.
const REST: Duration = Duration::from_millis(500);

/// Time after which one that could not be made is tried again, if nothing has changed.
const RETRY: Duration = Duration::from_secs(30);

/// VMs that are ready, or in tests anything.
pub(super) struct Pool<T = Ready> {
    /// Wanted number of each shape.
    size: usize,
    state: Mutex<State<T>>,
    /// Held while a VM is made, which has room but cannot be taken yet.
    making: AsyncMutex<()>,
    changed: Notify,
}

/// Room in which a sandbox may run.
pub(super) enum Room {
    /// A VM has it already.
    Ready(Ready),
    /// A VM is still to be made.
    Empty(Admission),
}

struct State<T> {
    /// The shape that was wanted last is the first.
    shapes: Vec<(Shape, Vec<T>)>,
    is_closed: bool,
}

/// A VM that is ready.
pub(super) struct Ready {
    pub(super) vm: Vm,
    /// Session that was opened before the VM was paused.
    pub(super) session: Arc<GuestSession>,
    /// Shell of the guest.
    pub(super) shell: &'static str,
    pub(super) admission: Admission,
}

impl Ready {
    /// Removes the VM, and then gives its room to another. Blocks.
    fn remove(self) {
        remove_vm(&self.vm);
    }
}

impl<T> Pool<T> {
    /// Returns a pool that wants so many VMs of this shape, and later of others that are taken.
    pub(super) fn new(size: usize, shape: Shape) -> Self {
        let state = State { shapes: vec![(shape, Vec::new())], is_closed: false };
        Self {
            size,
            state: Mutex::new(state),
            making: AsyncMutex::default(),
            changed: Notify::new(),
        }
    }

    /// Takes a VM of this shape, if one is ready. More of them will be made in any case.
    fn take(&self, shape: &Shape) -> Option<T> {
        let mut state = self.lock();
        let known = state.shapes.iter().position(|(known, _)| known == shape);
        let mut wanted = known.map_or((shape.clone(), Vec::new()), |at| state.shapes.remove(at));
        let taken = wanted.1.pop();
        state.shapes.insert(0, wanted);
        drop(state);
        self.changed.notify_one();
        taken
    }

    /// Returns a shape of which a VM is missing.
    fn missing(&self) -> Option<Shape> {
        let state = self.lock();
        let shapes = state.shapes.iter().take(MAX_SHAPES).filter(|_| !state.is_closed);
        let mut missing = shapes.filter(|(_, ready)| ready.len() < self.size);
        missing.next().map(|(shape, _)| shape.clone())
    }

    /// Puts in a VM that has become ready, or returns it if it is no longer wanted.
    #[must_use]
    fn put(&self, shape: &Shape, ready: T) -> Option<T> {
        let mut state = self.lock();
        let is_closed = state.is_closed;
        let known = state.shapes.iter_mut().find(|(known, _)| known == shape);
        match known.filter(|_| !is_closed) {
            Some((_, of_shape)) => of_shape.push(ready),
            None => return Some(ready),
        }
        None
    }

    /// Takes out a VM of the shape that was wanted longest ago.
    fn evict(&self) -> Option<T> {
        self.lock().shapes.iter_mut().rev().find_map(|(_, ready)| ready.pop())
    }

    /// Takes out a VM of a shape that is no longer kept ready.
    fn outdated(&self) -> Option<T> {
        let mut state = self.lock();
        let outdated = state.shapes.iter_mut().skip(MAX_SHAPES).find_map(|(_, ready)| ready.pop());
        if outdated.is_none() {
            state.shapes.truncate(MAX_SHAPES);
        }
        outdated
    }

    /// Makes it wish for no more.
    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Looks again: room was given back.
    pub(super) fn look(&self) {
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sandboxes {
    /// Keeps VMs ready until the pool is closed, one after another.
    pub(crate) async fn fill_pool(self: Arc<Self>) {
        loop {
            while let Some(ready) = self.pool.outdated() {
                self.remove_ready(ready).await;
            }
            let Some(shape) = self.pool.missing() else {
                if self.pool.lock().is_closed {
                    return;
                }
                self.pool.changed.notified().await;
                sleep(REST).await;
                continue;
            };
            if let Err(error) = self.add_ready(&shape).await {
                if !matches!(error, SandboxError::Full(_)) {
                    tracing::warn!("no sandbox could be made in advance: {error}");
                }
                let _ = timeout(RETRY, self.pool.changed.notified()).await;
                sleep(REST).await;
            }
        }
    }

    /// Returns room for a sandbox of this shape: with a VM, if one is ready.
    ///
    /// # Errors
    /// [`SandboxError::Full`].
    pub(super) async fn room(&self, shape: &Shape) -> Result<Room, SandboxError> {
        if self.pool.size == 0 {
            return self.admit(shape.memory_mib).await.map(Room::Empty);
        }
        if let Some(ready) = self.pool.take(shape) {
            return Ok(Room::Ready(ready));
        }
        if let Ok(admission) = self.admissions.admit(shape.memory_mib) {
            return Ok(Room::Empty(admission));
        }
        drop(self.pool.making.lock().await);
        match self.pool.take(shape) {
            Some(ready) => Ok(Room::Ready(ready)),
            None => self.admit(shape.memory_mib).await.map(Room::Empty),
        }
    }

    /// Admits a sandbox with this memory. VMs that are only ready, or are being made, give it their
    /// room.
    ///
    /// # Errors
    /// [`SandboxError::Full`].
    pub(super) async fn admit(&self, memory_mib: u64) -> Result<Admission, SandboxError> {
        loop {
            if let Ok(admission) = self.admissions.admit(memory_mib) {
                return Ok(admission);
            }
            drop(self.pool.making.lock().await);
            match self.pool.evict() {
                Some(ready) => self.remove_ready(ready).await,
                None => return self.admissions.admit(memory_mib),
            }
        }
    }

    /// Removes all VMs that are ready, and those that are being made, and makes no more.
    pub(crate) fn close_pool(&self) {
        self.pool.close();
        while let Some(ready) = self.pool.evict() {
            ready.remove();
        }
    }

    /// Makes a VM and puts it into the pool.
    async fn add_ready(self: &Arc<Self>, shape: &Shape) -> Result<(), SandboxError> {
        let _making = self.pool.making.lock().await;
        let ready = self.make_ready(shape).await?;
        if let Some(unwanted) = self.pool.put(shape, ready) {
            self.remove_ready(unwanted).await;
        }
        Ok(())
    }

    async fn make_ready(self: &Arc<Self>, shape: &Shape) -> Result<Ready, SandboxError> {
        let admission = self.admissions.admit(shape.memory_mib)?;
        let vm = self.vm(&random::name()?, shape)?;
        let (this, starting) = (Arc::clone(self), vm.clone());
        let prepared = async {
            let started = spawn_blocking(move || this.first_start(&starting)).await;
            started.map_err(|_| SandboxError::Ending)??;
            prepare(&vm).await
        };
        match prepared.await {
            Ok((session, shell)) => Ok(Ready { vm, session, shell, admission }),
            Err(error) => {
                let _ = spawn_blocking(move || remove_vm(&vm)).await;
                Err(error)
            }
        }
    }

    async fn remove_ready(&self, ready: Ready) {
        let _ = spawn_blocking(move || ready.remove()).await;
    }
}

/// Has a VM do once what the first command needs, and pauses it.
async fn prepare(vm: &Vm) -> Result<(Arc<GuestSession>, &'static str), SandboxError> {
    let session = Arc::new(vm.session().await?);
    let shell = find_shell(&session).await;
    let arguments = [shell, "-l", "-c", ":"].map(Into::into).to_vec();
    let new = NewProgram { user: USER.to_owned(), arguments, ..NewProgram::default() };
    let mut program = session.start(new).await?;
    while !matches!(program.next().await?, ProgramEvent::Ended(_)) {}
    let pausing = vm.clone();
    spawn_blocking(move || pausing.pause()).await.map_err(|_| SandboxError::Ending)??;
    Ok((session, shell))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(memory_mib: u64) -> Shape {
        Shape { image: None, cpus: 1, memory_mib, disk_mib: 1024, is_isolated: false }
    }

    #[test]
    fn shapes_that_clients_want_are_kept_ready() {
        let pool: Pool<&str> = Pool::new(2, shape(0));
        assert_eq!(pool.missing(), Some(shape(0)));
        assert_eq!(pool.put(&shape(0), "first"), None);
        assert_eq!(pool.put(&shape(0), "second"), None);
        assert_eq!(pool.missing(), None);
        assert_eq!(pool.take(&shape(1)), None);
        assert_eq!(pool.missing(), Some(shape(1)), "it was wanted last");
        assert_eq!(pool.take(&shape(0)), Some("second"));
        assert_eq!(pool.missing(), Some(shape(0)));
        assert_eq!(pool.put(&shape(2), "other"), Some("other"), "no client wants it");
    }

    #[test]
    fn what_was_wanted_longest_ago_makes_room() {
        let pool: Pool<u64> = Pool::new(1, shape(0));
        for memory_mib in 0..=4 {
            pool.take(&shape(memory_mib));
            assert_eq!(pool.put(&shape(memory_mib), memory_mib), None);
        }
        assert_eq!(pool.outdated(), Some(0), "there are four shapes at most");
        assert_eq!(pool.outdated(), None);
        let evicted: Vec<_> = std::iter::from_fn(|| pool.evict()).collect();
        assert_eq!(evicted, [1, 2, 3, 4]);
    }

    #[test]
    fn a_closed_pool_takes_in_nothing() {
        let pool: Pool<()> = Pool::new(1, shape(0));
        pool.close();
        assert_eq!(pool.missing(), None);
        assert_eq!(pool.put(&shape(0), ()), Some(()));
    }
}
