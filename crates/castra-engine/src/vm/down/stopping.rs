//! Ways to end a VM's QEMU, from the gentlest to the surest.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use castra_wire::GuestMessage;
use serde_json::json;

use crate::guest::ssh::{SshError, capture};
use crate::guest::{ControlError, ControlPort};
use crate::layout::SocketsLayout;
use crate::qemu::{MachineStatus, QemuPid, Qmp, QmpError, is_agent_there};
use crate::report::Event;
use crate::vm::access::ssh_target;
use crate::vm::error::{AccessError, Attempt, StopError, VmError};
use crate::vm::monitor::continue_paused;
use crate::vm::project::ProjectRef;
use crate::vm::record::{BootRecord, Progress, Record, StartKind};
use crate::wait::WaitLimit;

use super::DownOptions;

/// Time for QEMU to end after a request.
const QEMU_LIMIT: Duration = Duration::from_secs(5);
/// Time for the agent and QMP to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Time after which a guest that was asked by its power button alone, and has done nothing since,
/// has not noticed it.
const QUIET_LIMIT: Duration = Duration::from_secs(10);
/// Interval between checks of a guest that shuts down.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Script that shuts down any Linux, as the agent does on request: by systemd, or by the service
/// manager and then by the kernel (`u` remounts everything read-only, `o` powers off), since an
/// init that believes to be in a container skips that.
const POWER_OFF: &str = "\
    if [ -d /run/systemd/system ]; then exec systemctl poweroff; fi
    if command -v openrc; then openrc shutdown; else poweroff && exit; fi
    sync; echo u >/proc/sysrq-trigger; sleep 1; echo o >/proc/sysrq-trigger";
/// Most output in bytes, more than any of these commands prints.
const MOST_OUTPUT_BYTES: usize = 64 << 10;
/// Interval at which a wait checks for Ctrl-C.
const SLICE: Duration = Duration::from_millis(100);

/// Way in which a VM was stopped.
#[derive(Debug, Clone, Copy)]
pub(in crate::vm) enum End {
    /// The guest shut down, or there was nothing to lose, or a power cut was requested.
    Orderly,
    /// A power cut by this method, after its guest was asked and had this time.
    PowerCut { limit_secs: Option<u64>, method: &'static str },
    /// A power cut by this method of a guest that did not react to anything.
    Unresponsive { method: &'static str },
    /// A power cut by this method of a guest without an agent, which ignores its power button.
    ButtonIgnored { method: &'static str },
}

/// Way in which a guest was asked to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// By the agent, which has agreed.
    Reliably,
    /// By the power button of a guest without an agent.
    ByButton,
    /// By the power button, since the agent did not answer.
    ByButtonAlone,
    /// QEMU did not press the button.
    Not,
}

/// Reaction of a guest to its power button.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    /// Shut down.
    Ended,
    /// Activity, without an end in time.
    Late,
    /// No activity.
    None,
}

impl End {
    /// Returns an error for a power cut that was not requested, although the VM has stopped.
    pub(in crate::vm) fn judge(self, vm: &str) -> Result<(), VmError> {
        match self {
            Self::Orderly => Ok(()),
            Self::PowerCut { limit_secs, method } => {
                Err(StopError::PowerCut { vm: vm.to_owned(), limit_secs, method }.into())
            }
            Self::Unresponsive { method } => {
                Err(StopError::Unresponsive { vm: vm.to_owned(), method }.into())
            }
            Self::ButtonIgnored { method } => {
                Err(StopError::ButtonIgnored { vm: vm.to_owned(), method }.into())
            }
        }
    }
}

/// A VM whose QEMU is to end.
pub(in crate::vm) struct Stopping<'a> {
    vm: &'a str,
    /// The record; `None` if it cannot be read, in which case the kernel's knowledge decides.
    record: Option<&'a Record>,
    qemu: &'a QemuPid,
    sockets: SocketsLayout,
    disk: PathBuf,
    project: ProjectRef<'a>,
}

impl<'a> Stopping<'a> {
    pub(in crate::vm) fn new(
        vm: &'a str,
        record: Option<&'a Record>,
        qemu: &'a QemuPid,
        project: ProjectRef<'a>,
    ) -> Self {
        let sockets = sockets_of(vm, record, project);
        let disk = record.map_or_else(
            || project.layout.overlay(vm),
            |record| record.overlay_path(project.layout),
        );
        Self { vm, record, qemu, sockets, disk, project }
    }
}

/// Returns the sockets that this VM was started with, or would be.
pub(in crate::vm) fn sockets_of(
    vm: &str,
    record: Option<&Record>,
    project: ProjectRef<'_>,
) -> SocketsLayout {
    let boot = record.and_then(|record| record.boot.as_ref());
    boot.map_or_else(|| project.sockets(vm), |boot| boot.socket_paths())
}

impl Stopping<'_> {
    /// Prepares the guest for being asked: continues a stopped QEMU process, and a paused machine.
    ///
    /// # Errors
    /// Returns [`VmError::State`] while the disk is full, or [`AccessError::SocketsGone`]: the
    /// guest has not been asked, and nothing is lost.
    pub(in crate::vm) fn prepare(&self, options: &DownOptions) -> Result<(), VmError> {
        self.thaw()?;
        if options.force || self.is_to_be_dropped() {
            return Ok(());
        }
        if self.sockets.are_gone() && self.ssh_port().is_none() {
            return Err(self.unreachable().into());
        }
        continue_paused(self.vm, &self.disk, &self.sockets, self.project.context)
    }

    fn unreachable(&self) -> AccessError {
        AccessError::sockets_gone(self.vm, Attempt::Stop, &self.sockets)
    }

    fn ssh_port(&self) -> Option<u16> {
        self.record?.boot.as_ref()?.ssh_port
    }

    /// Returns `true` unless the VM is known to have booted without an agent.
    pub(in crate::vm) fn has_agent(&self) -> bool {
        let boot = self.record.and_then(|record| record.boot.as_ref());
        boot.is_none_or(BootRecord::has_agent)
    }

    /// Returns `true` for a machine that a castra loaded from a template and, killed, never let
    /// run, as far as its record says.
    fn never_ran(&self) -> bool {
        let is_loaded =
            |boot: &BootRecord| boot.start == StartKind::Template && boot.ready_ms.is_none();
        self.record.is_some_and(|record| {
            record.progress != Progress::Running && record.boot.as_ref().is_some_and(is_loaded)
        })
    }

    /// Returns `true` if the machine never ran, so that ending it loses nothing.
    pub(in crate::vm) fn is_to_be_dropped(&self) -> bool {
        let status = || MachineStatus::ask(&self.sockets, self.project.cancel());
        self.never_ran() && status() == Some(MachineStatus::Paused)
    }

    /// Tries each way in turn, until QEMU has ended.
    pub(in crate::vm) fn run(&self, options: &DownOptions) -> Result<End, VmError> {
        if options.force || self.is_to_be_dropped() {
            self.end_qemu()?;
            return Ok(End::Orderly);
        }
        let asked = self.ask_guest()?;
        let deadline = Instant::now() + options.limit;
        let mut reaction = match asked {
            Asked::Reliably if self.wait_for_guest(options.limit)? => Reaction::Ended,
            Asked::Reliably | Asked::Not => Reaction::Late,
            Asked::ByButton | Asked::ByButtonAlone => {
                self.wait_while_guest_reacts(options.limit)?
            }
        };
        if asked == Asked::ByButton && reaction == Reaction::None && self.ask_own_server() {
            let left = deadline.saturating_duration_since(Instant::now());
            let has_ended = self.wait_for_guest(left)?;
            reaction = if has_ended { Reaction::Ended } else { Reaction::Late };
        }
        if reaction == Reaction::Ended || !self.is_alive() {
            return Ok(End::Orderly);
        }
        let method = self.end_qemu()?;
        let limit_secs = (asked != Asked::Not).then_some(options.limit.as_secs());
        Ok(match (asked, reaction) {
            (Asked::ByButtonAlone, _) => End::Unresponsive { method },
            (Asked::ByButton, Reaction::None) => End::ButtonIgnored { method },
            _ => End::PowerCut { limit_secs, method },
        })
    }

    /// Ends QEMU without asking its guest: by QMP, which closes the disk cleanly, then by signals.
    /// Returns the method that succeeded.
    pub(in crate::vm) fn end_qemu(&self) -> Result<&'static str, VmError> {
        self.project.cancel().check()?;
        self.report("QMP quit");
        let quit = self.qmp().and_then(|mut qmp| qmp.quit());
        // A QEMU that is just ending closes its connection first.
        if self.wait(if quit.is_ok() { QEMU_LIMIT } else { SLICE })? {
            return Ok("QMP quit");
        }
        self.project.cancel().check()?;
        self.report("SIGTERM");
        self.qemu.terminate()?;
        if self.wait(QEMU_LIMIT)? {
            return Ok("SIGTERM");
        }
        self.report("SIGKILL");
        self.qemu.kill()?;
        if self.wait(QEMU_LIMIT)? {
            return Ok("SIGKILL");
        }
        Err(StopError::Unkillable { vm: self.vm.to_owned(), pid: self.qemu.pid() }.into())
    }

    /// Continues a QEMU process that is stopped (SIGSTOP), so that its guest can shut down.
    fn thaw(&self) -> Result<(), VmError> {
        if self.qemu.is_frozen() {
            self.report("SIGCONT");
            self.qemu.thaw()?;
        }
        Ok(())
    }

    /// Asks for an orderly shutdown: through the agent if there is one, else by the virtual power
    /// button.
    fn ask_guest(&self) -> Result<Asked, VmError> {
        self.report("guest shutdown");
        let has_agent = self.has_agent();
        if has_agent && self.ask_agent() {
            return Ok(Asked::Reliably);
        }
        self.project.cancel().check()?;
        if self.sockets.are_gone() && self.is_alive() {
            return Err(self.unreachable().into());
        }
        if has_agent && self.is_alive() {
            self.report("power button, since castra's agent does not answer");
        }
        Ok(match (self.press_power_button(), has_agent) {
            (false, _) => Asked::Not,
            (true, false) => Asked::ByButton,
            (true, true) => Asked::ByButtonAlone,
        })
    }

    fn is_alive(&self) -> bool {
        !self.qemu.wait(Duration::ZERO)
    }

    /// Waits for the guest to shut down. If its final writes find no room, continues it once there
    /// is some.
    pub(in crate::vm) fn wait_for_guest(&self, limit: Duration) -> Result<bool, VmError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.wait(left.min(LOOK_EVERY))? {
                return Ok(true);
            }
            if MachineStatus::glance(&self.sockets) == Some(MachineStatus::DiskFull) {
                continue_paused(self.vm, &self.disk, &self.sockets, self.project.context)?;
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// Waits for a guest to shut down that may not have noticed the power button, until it has
    /// written nothing to console and disk for [`QUIET_LIMIT`].
    fn wait_while_guest_reacts(&self, limit: Duration) -> Result<Reaction, VmError> {
        let deadline = Instant::now() + limit;
        let (mut written, mut since) = (self.last_written(), Instant::now());
        while Instant::now() < deadline.min(since + QUIET_LIMIT) {
            if self.wait_for_guest(LOOK_EVERY.min(limit))? {
                return Ok(Reaction::Ended);
            }
            let now_written = self.last_written();
            if now_written != written {
                (written, since) = (now_written, Instant::now());
            }
        }
        let is_quiet = Instant::now() >= since + QUIET_LIMIT;
        Ok(if is_quiet { Reaction::None } else { Reaction::Late })
    }

    /// Asks a guest that ignores its power button over its own SSH server, if that has let castra
    /// in before.
    fn ask_own_server(&self) -> bool {
        let boot = self.record.and_then(|record| record.boot.as_ref());
        let is_let_in = boot.is_some_and(|boot| boot.native.is_some() && boot.ready_ms.is_some());
        if is_let_in {
            self.report("SSH, since its guest does not react to the power button");
        }
        is_let_in && self.ask_over_ssh()
    }

    /// Returns the times at which the guest has last written to its console and its disk.
    fn last_written(&self) -> [Option<SystemTime>; 2] {
        let console = self.project.files(self.vm).console_log();
        [&console, &self.disk].map(|file| fs::metadata(file).and_then(|file| file.modified()).ok())
    }

    /// Asks the agent to shut down the guest: over the control port, or over SSH if that port's
    /// socket is gone.
    pub(in crate::vm) fn ask_agent(&self) -> bool {
        match self.sockets.are_gone() {
            true => self.ask_over_ssh(),
            false => self.ask_over_control_port(),
        }
    }

    fn ask_over_ssh(&self) -> bool {
        let Some(target) =
            self.record.and_then(|record| ssh_target(record, "root", self.project.layout).ok())
        else {
            return false;
        };
        let argv = ["sh", "-c", POWER_OFF].map(OsString::from).to_vec();
        match capture(self.project.cancel(), &target, argv, MOST_OUTPUT_BYTES) {
            Ok(captured) => captured.exit.code() == 0,
            // The guest may be faster than the answer.
            Err(error) => matches!(error, SshError::Lost),
        }
    }

    fn ask_over_control_port(&self) -> bool {
        let deadline = Instant::now() + ANSWER_LIMIT;
        ControlPort::connect(&self.sockets.control(), deadline, self.project.cancel())
            .and_then(|mut port| {
                port.attach()?;
                port.power_off()?;
                loop {
                    match port.next(deadline.min(Instant::now() + LOOK_EVERY)) {
                        Ok(GuestMessage::PoweringOff) => return Ok(()),
                        Err(ControlError::ReadTimeout)
                            if Instant::now() < deadline && self.may_answer() => {}
                        answer => drop(answer?),
                    }
                }
            })
            .is_ok()
    }

    /// Returns `false` if QEMU says that no agent runs.
    fn may_answer(&self) -> bool {
        is_agent_there(&self.sockets) != Some(false)
    }

    fn press_power_button(&self) -> bool {
        let pressed = self.qmp().and_then(|mut qmp| qmp.execute("system_powerdown", json!({})));
        // A guest may be faster than QEMU's answer.
        matches!(pressed, Ok(_) | Err(QmpError::Closed))
    }

    fn qmp(&self) -> Result<Qmp, QmpError> {
        Qmp::connect(&self.sockets.qmp(), WaitLimit::new(ANSWER_LIMIT, self.project.cancel()))
    }

    /// Waits for QEMU to end after a request.
    pub(in crate::vm) fn wait_for_qemu(&self) -> Result<bool, VmError> {
        self.wait(QEMU_LIMIT)
    }

    fn wait(&self, limit: Duration) -> Result<bool, VmError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.qemu.wait(left.min(SLICE)) {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
            self.project.cancel().check()?;
        }
    }

    pub(in crate::vm) fn report(&self, method: &str) {
        self.project
            .report(&Event::VmStopping { vm: self.vm.to_owned(), method: method.to_owned() });
    }
}
