//! State of the computer that is not there: running or paused, and its end.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fcntl_lock, futimens,
};

use crate::arguments::Arguments;
use crate::behaviour::Behaviour;

/// Beginning of a saved state.
const STATE: &str = "state of a fake QEMU, generation ";
/// What follows the generation: the ports of the virtio-serial bus.
const PORTS: &str = ", serial ports ";

pub(crate) struct Machine {
    pub(crate) arguments: Arguments,
    pub(crate) behaviour: Behaviour,
    disk: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_running: bool,
    is_awaiting_state: bool,
    /// Set if it was paused because a write found no space.
    is_out_of_room: bool,
    /// Generation of the disk that memory from a saved state belongs to.
    belongs_to: Option<u64>,
    /// Set for a template's devices, whose memory is in a file and whose disk is a new one.
    leaves_memory_out: bool,
    is_saved: Option<bool>,
    end: Option<&'static str>,
}

impl Machine {
    pub(crate) fn new(arguments: Arguments, behaviour: Behaviour, disk: File) -> Self {
        let state = State { is_awaiting_state: arguments.is_incoming, ..State::default() };
        let is_incoming = arguments.is_incoming;
        let machine =
            Self { arguments, behaviour, disk, state: Mutex::new(state), changed: Condvar::new() };
        if !is_incoming {
            machine.cont();
        }
        machine
    }

    /// Returns the status for `query-status`, and `true` if the machine runs.
    pub(crate) fn status(&self) -> (&'static str, bool) {
        self.write();
        let state = self.lock();
        if state.is_out_of_room {
            return ("io-error", false);
        }
        match (state.is_awaiting_state, state.is_running) {
            (true, _) => ("inmigrate", false),
            (_, true) => ("running", true),
            (_, false) => ("paused", false),
        }
    }

    /// Makes the guest write, which pauses the machine if there is no space, as in QEMU.
    pub(crate) fn write(&self) {
        let mut state = self.lock();
        if state.is_running && self.behaviour.has("disk-full") {
            state.is_running = false;
            state.is_out_of_room = true;
        }
    }

    /// Continues the machine. From then on its disk is another one, and no memory saved before fits
    /// it.
    pub(crate) fn cont(&self) {
        let mut state = self.lock();
        if let Some(memory) = state.belongs_to.take()
            && !state.leaves_memory_out
            && memory != self.behaviour.generation()
        {
            self.behaviour.note("mismatched");
        }
        if !state.is_running {
            self.behaviour.next_generation();
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW as _ };
            let same = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ };
            // As a guest that writes.
            let _ = futimens(&self.disk, &Timestamps { last_access: same, last_modification: now });
        }
        state.is_running = true;
        state.is_out_of_room = false;
        self.changed.notify_all();
    }

    pub(crate) fn stop(&self) {
        self.lock().is_running = false;
    }

    pub(crate) fn leave_memory_out(&self, leave_it: bool) {
        self.lock().leaves_memory_out = leave_it;
    }

    /// Writes the state into this file.
    pub(crate) fn save(&self, file: OwnedFd) {
        let ports = self.arguments.serial_ports.len();
        let text = format!("{STATE}{}{PORTS}{ports}\n", self.behaviour.generation());
        let is_saved = !self.behaviour.has("save-fails")
            && File::from(file).write_all(text.as_bytes()).is_ok();
        self.lock().is_saved = Some(is_saved);
    }

    /// Returns `true` if saving has succeeded; `None` if there was none.
    pub(crate) fn is_saved(&self) -> Option<bool> {
        self.lock().is_saved
    }

    /// Loads the state from this file. An invalid one ends the machine, as in QEMU, and so does the
    /// state of a machine with other ports on its virtio-serial bus.
    pub(crate) fn load(&self, file: OwnedFd) {
        let mut text = String::new();
        let read = File::from(file).read_to_string(&mut text);
        let state = text.strip_prefix(STATE).and_then(|rest| {
            let (generation, ports) = rest.trim().split_once(PORTS)?;
            Some((generation.parse().ok()?, ports.parse().ok()?))
        });
        let has_ports = |ports: usize| ports == self.arguments.serial_ports.len();
        let loaded = state.filter(|(_, ports)| read.is_ok() && has_ports(*ports));
        match loaded.map(|(generation, _)| generation) {
            Some(generation) => {
                let mut state = self.lock();
                if !state.leaves_memory_out {
                    self.behaviour.inherit_generation(generation);
                }
                state.belongs_to = Some(generation);
                state.is_awaiting_state = false;
            }
            None => self.end("unable to load its state"),
        }
    }

    /// Waits until the machine runs: a paused guest neither receives nor sends.
    pub(crate) fn until_running(&self) {
        let state = self.lock();
        drop(self.changed.wait_while(state, |state| !state.is_running));
    }

    /// Releases the disk for another QEMU.
    pub(crate) fn close_disk(&self) {
        let _ = fcntl_lock(&self.disk, FlockOperation::Unlock);
    }

    pub(crate) fn end(&self, how: &'static str) {
        self.lock().end = Some(how);
        self.changed.notify_all();
    }

    /// Waits for the end.
    pub(crate) fn until_end(&self) -> &'static str {
        let state = self.changed.wait_while(self.lock(), |state| state.end.is_none());
        state.unwrap_or_else(PoisonError::into_inner).end.unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
