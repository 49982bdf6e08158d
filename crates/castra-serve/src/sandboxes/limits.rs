//! Limits of all sandboxes together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::SandboxError;

/// Limits of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of sandboxes that run.
    pub sandboxes: usize,
    /// Maximum memory of all sandboxes that run, in MiB.
    pub memory_mib: u64,
}

/// Room that the running sandboxes take.
#[derive(Debug, Default)]
struct Taken {
    sandboxes: usize,
    memory_mib: u64,
}

/// Keeper of the limits.
pub(super) struct Admissions {
    limits: Limits,
    taken: Arc<Mutex<Taken>>,
}

/// Permission for one sandbox to run. Dropping it gives the room to another.
pub(super) struct Admission {
    taken: Arc<Mutex<Taken>>,
    memory_mib: u64,
}

impl Admissions {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, taken: Arc::default() }
    }

    /// Admits a sandbox with this memory, if there is room.
    ///
    /// # Errors
    /// [`SandboxError::Full`].
    pub(super) fn admit(&self, memory_mib: u64) -> Result<Admission, SandboxError> {
        let limits = self.limits;
        let mut taken = self.lock();
        if taken.sandboxes >= limits.sandboxes {
            return Err(SandboxError::Full(format!(
                "{} sandboxes run, and --max-vms allows no more",
                taken.sandboxes
            )));
        }
        if taken.memory_mib.saturating_add(memory_mib) > limits.memory_mib {
            return Err(SandboxError::Full(format!(
                "the sandboxes that run have {} MiB of memory, and --memory-budget allows {} MiB: \
                no room for {memory_mib} MiB more",
                taken.memory_mib, limits.memory_mib
            )));
        }
        Ok(self.count(&mut taken, memory_mib))
    }

    /// Counts a sandbox that runs already.
    pub(super) fn take(&self, memory_mib: u64) -> Admission {
        self.count(&mut self.lock(), memory_mib)
    }

    fn count(&self, taken: &mut Taken, memory_mib: u64) -> Admission {
        taken.sandboxes += 1;
        taken.memory_mib += memory_mib;
        Admission { taken: Arc::clone(&self.taken), memory_mib }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.sandboxes -= 1;
        taken.memory_mib -= self.memory_mib;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_given_once_and_comes_back() {
        let admissions = Admissions::new(Limits { sandboxes: 2, memory_mib: 1000 });
        let first = admissions.admit(600).expect("room");
        assert!(matches!(admissions.admit(600), Err(SandboxError::Full(_))));
        let second = admissions.admit(400).expect("room");
        assert!(matches!(admissions.admit(0), Err(SandboxError::Full(_))));
        drop(first);
        assert!(admissions.admit(600).is_ok());
        drop(second);
    }

    #[test]
    fn the_last_room_goes_to_one() {
        let admissions = Admissions::new(Limits { sandboxes: 7, memory_mib: 1000 });
        let admitted: Vec<_> = std::thread::scope(|scope| {
            let ask = || (0..100).filter_map(|_| admissions.admit(1).ok()).collect::<Vec<_>>();
            let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            asking.into_iter().flat_map(|asked| asked.join().expect("no panic")).collect()
        });
        assert_eq!(admitted.len(), 7);
    }
}
