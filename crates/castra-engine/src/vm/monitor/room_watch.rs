//! Watch over a throwaway VM: a full disk on this machine pauses it, and it continues once there is
//! room.
//!
//! Other VMs are continued by the next command; this one only has the command that it runs.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;

use crate::cancel::Cancel;
use crate::qemu::{AgentAbsence, MachineStatus, Qmp};
use crate::report::{Event, Reporter};
use crate::vm::full_disk::FullDisk;
use crate::wait::WaitLimit;

/// Interval between checks of the machine.
const INTERVAL: Duration = Duration::from_secs(1);
/// Interval between checks while it is paused.
const PAUSED_INTERVAL: Duration = Duration::from_millis(200);

/// Time for each answer of QEMU's.
const QMP_LIMIT: Duration = Duration::from_secs(5);

/// A thread that continues a paused machine, until this is dropped.
pub(in crate::vm) struct RoomWatch {
    is_full: Arc<AtomicBool>,
    /// Channel whose end stops the thread; dropped first.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl RoomWatch {
    /// Starts the thread on a connection of its own to QMP, which keeps working once the socket is
    /// removed. The thread opens the session, since the VM's command need not wait for that. `disk`
    /// may be gone by then, but its directory must exist.
    pub(in crate::vm) fn start(
        qmp: UnixStream,
        disk: PathBuf,
        reporter: Arc<dyn Reporter>,
    ) -> Self {
        Self::start_for(qmp, disk, reporter, None)
    }

    /// Starts the thread for a machine that has nothing to lose but what runs in it by the agent.
    /// QEMU is ended once the agent is missing for good: nothing else would end the wait for it.
    pub(in crate::vm) fn start_with_agent(
        qmp: UnixStream,
        disk: PathBuf,
        reporter: Arc<dyn Reporter>,
    ) -> Self {
        Self::start_for(qmp, disk, reporter, Some(AgentAbsence::default()))
    }

    fn start_for(
        qmp: UnixStream,
        disk: PathBuf,
        reporter: Arc<dyn Reporter>,
        absence: Option<AgentAbsence>,
    ) -> Self {
        let is_full = Arc::new(AtomicBool::new(false));
        let (end, is_over) = channel();
        let flag = is_full.clone();
        let watch = move || {
            // A command that is interrupted ends the VM, and so this session.
            let limit = WaitLimit::new(QMP_LIMIT, &Cancel::default());
            if let Ok(qmp) = Qmp::greet(qmp, limit) {
                Watched { qmp, disk, reporter, is_full: flag, absence }.run(&is_over);
            }
        };
        let thread = thread::Builder::new().name("room-watch".to_owned());
        // Without a thread, a full disk is reported as a lost connection.
        let thread = thread.spawn(watch).ok();
        Self { is_full, end: Some(end), thread }
    }

    /// Returns `true` while the machine is paused for lack of space.
    pub(in crate::vm) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }
}

impl Drop for RoomWatch {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been printed.
            let _ = thread.join();
        }
    }
}

struct Watched {
    qmp: Qmp,
    disk: PathBuf,
    reporter: Arc<dyn Reporter>,
    is_full: Arc<AtomicBool>,
    /// Absence of the agent, without which the machine is ended.
    absence: Option<AgentAbsence>,
}

impl Watched {
    fn run(mut self, is_over: &std::sync::mpsc::Receiver<()>) {
        loop {
            let interval =
                if self.is_full.load(Ordering::Relaxed) { PAUSED_INTERVAL } else { INTERVAL };
            let is_last = is_over.recv_timeout(interval) != Err(RecvTimeoutError::Timeout);
            if self.look().is_none() || is_last {
                return;
            }
        }
    }

    /// Reports changes, and continues a paused machine. Returns `None` once QEMU no longer answers.
    fn look(&mut self) -> Option<()> {
        let is_full = MachineStatus::of(&mut self.qmp)? == MachineStatus::DiskFull;
        if self.is_full.swap(is_full, Ordering::Relaxed) != is_full {
            self.report(is_full);
        }
        if let Some(absence) = &mut self.absence
            && !is_full
            && absence.is_lasting(&mut self.qmp)
        {
            let _ = self.qmp.quit();
            return None;
        }
        // The write is repeated, and pauses the machine again if it finds no room.
        if is_full { self.qmp.execute("cont", json!({})).ok().map(drop) } else { Some(()) }
    }

    fn report(&self, is_full: bool) {
        let message = match is_full {
            true => {
                format!(
                    "the VM is paused: {}; it will continue once there is room",
                    FullDisk::of(&self.disk)
                )
            }
            false => "there is room again; the VM continues".to_owned(),
        };
        self.reporter.report(&Event::Warning { message });
    }
}
