//! Watch over a machine that has only what runs in it: a throwaway VM, or the machine of a step.
//!
//! A full disk on this machine pauses it, and it continues once there is room. Other VMs are
//! continued by the next command. One whose agent is gone or whose kernel has panicked is ended:
//! nothing else would end the wait for what runs in it.

use std::fs;
use std::mem;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::json;

use crate::cancel::Cancel;
use crate::qemu::{AgentAbsence, MachineStatus, Qmp, end_of_log};
use crate::report::{Event, Reporter};
use crate::sanitize::sanitize_log;
use crate::vm::full_disk::FullDisk;
use crate::wait::WaitLimit;

/// Interval between checks of the machine.
const INTERVAL: Duration = Duration::from_secs(1);
/// Interval between checks while it is paused.
const PAUSED_INTERVAL: Duration = Duration::from_millis(200);

/// Time for each answer of QEMU's.
const QMP_LIMIT: Duration = Duration::from_secs(5);

/// Texts with which Linux begins the report of a panic, and ends it: it halts or reboots
/// (`kernel/panic.c`).
const PANIC: &str = "Kernel panic - not syncing: ";
const ENDS_OF_PANIC: [&str; 2] = ["---[ end Kernel panic", "Rebooting in "];

/// A thread that continues a paused machine, until this is dropped.
pub(in crate::vm) struct RoomWatch {
    is_full: Arc<AtomicBool>,
    panic: Arc<OnceLock<String>>,
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

    /// Starts the thread, as [`Self::start`] does, for a machine with this log of its console.
    pub(in crate::vm) fn start_with_console(
        qmp: UnixStream,
        disk: PathBuf,
        reporter: Arc<dyn Reporter>,
        console: PathBuf,
    ) -> Self {
        Self::start_for(qmp, disk, reporter, Some(ConsoleWatch { log: console, length: 0 }))
    }

    fn start_for(
        qmp: UnixStream,
        disk: PathBuf,
        reporter: Arc<dyn Reporter>,
        console: Option<ConsoleWatch>,
    ) -> Self {
        let (is_full, panic) = (Arc::new(AtomicBool::new(false)), Arc::new(OnceLock::new()));
        let (end, is_over) = channel();
        let (flag, heard) = (is_full.clone(), panic.clone());
        let watch = move || {
            // A command that is interrupted ends the VM, and so this session.
            let limit = WaitLimit::new(QMP_LIMIT, &Cancel::default());
            if let Ok(qmp) = Qmp::greet(qmp, limit) {
                let absence = AgentAbsence::default();
                let (is_full, panic) = (flag, heard);
                Watched { qmp, disk, reporter, is_full, absence, console, panic }.run(&is_over);
            }
        };
        let thread = thread::Builder::new().name("room-watch".to_owned());
        // Without a thread, a full disk is reported as a lost connection.
        let thread = thread.spawn(watch).ok();
        Self { is_full, panic, end: Some(end), thread }
    }

    /// Returns the last words of a kernel that has panicked.
    pub(in crate::vm) fn panic(&self) -> Option<&str> {
        self.panic.get().map(String::as_str)
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
    absence: AgentAbsence,
    console: Option<ConsoleWatch>,
    panic: Arc<OnceLock<String>>,
}

/// Watch over the log of a console.
struct ConsoleWatch {
    log: PathBuf,
    /// Length at the last look, in bytes.
    length: u64,
}

impl ConsoleWatch {
    /// Returns the last words of a kernel that has panicked since the last look.
    fn look(&mut self) -> Option<String> {
        let length = fs::metadata(&self.log).map_or(0, |metadata| metadata.len());
        if mem::replace(&mut self.length, length) == length {
            return None;
        }
        panic_in(&sanitize_log(&end_of_log(&self.log)))
    }
}

/// Returns the reason of a panic that a console reports in full.
fn panic_in(console: &str) -> Option<String> {
    let reason = console.split_once(PANIC)?.1;
    ENDS_OF_PANIC.iter().any(|end| reason.contains(end)).then_some(())?;
    Some(reason.lines().next().unwrap_or_default().trim_end().to_owned())
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
        if let Some(panic) = self.console.as_mut().and_then(ConsoleWatch::look) {
            let _ = self.panic.set(panic);
            let _ = self.qmp.quit();
            return None;
        }
        if !is_full && self.absence.is_lasting(&mut self.qmp) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_over_once_the_kernel_halts_or_reboots() {
        let begun = "[ 27.9] Kernel panic - not syncing: Fatal exception\r\n[ 27.9] CPU: 0";
        assert_eq!(panic_in(begun), None);
        for end in [
            "[ 28.0] ---[ end Kernel panic - not syncing: Fatal exception ]---",
            "[ 28.0] Rebooting in 120 seconds..",
        ] {
            let panic = panic_in(&format!("{begun}\n{end}"));
            assert_eq!(panic.as_deref(), Some("Fatal exception"));
        }
        assert_eq!(panic_in("Rebooting in 5 seconds.."), None);
    }
}
