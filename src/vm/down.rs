//! `down`: from the gentlest way to stop a VM to the surest.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use castra_wire::GuestMessage;
use serde_json::json;

use crate::context::RuntimeContext;
use crate::failpoint::{self, Point};
use crate::guest::ControlPort;
use crate::layout::{ProjectLayout, SocketsLayout};
use crate::qemu::{QemuPid, Qmp, running_qemu};
use crate::report::Event;

use super::PerVm;
use super::error::VmError;
use super::journal;
use super::leftovers::clean_up;
use super::record::{Progress, Record};
use super::resume::{discard, finish, put_back};
use super::state::{VmState, observe};
use super::suspend::take_back;
use super::up::{lock, stands_still};

/// How long a guest may take to shut down. Under TCG an Alpine needs some 3 s on an idle machine.
const GUEST_LIMIT: Duration = Duration::from_secs(60);
/// How long QEMU may take to end once it is told to.
const QEMU_LIMIT: Duration = Duration::from_secs(5);
/// How long the agent and QMP may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How often a wait looks at Ctrl-C.
const SLICE: Duration = Duration::from_millis(100);

/// How `down` is to behave.
#[derive(Debug, Clone, Copy)]
pub struct DownOptions {
    /// Do not ask the guest: end QEMU at once, as if the power went.
    pub force: bool,
    /// How long the guest may take.
    pub limit: Duration,
    /// What becomes of a VM that is suspended.
    pub suspended: IfSuspended,
}

/// What `down` does with a suspended VM. It does not run, but its memory is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfSuspended {
    /// It is an error: its memory is dropped only when that is said.
    Refuse,
    /// It stays as it is, and that is told.
    Leave,
    /// Its memory is dropped. Its disk stays, as of the moment it was suspended.
    Discard,
}

impl Default for DownOptions {
    fn default() -> Self {
        Self { force: false, limit: GUEST_LIMIT, suspended: IfSuspended::Refuse }
    }
}

/// Stops the VMs of these names side by side; all that have a record if there is no name.
///
/// # Errors
/// [`VmError::Unknown`] before anything is stopped. What becomes of each VM is told one by one.
pub fn down(
    names: &[String],
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: &DownOptions,
) -> Result<PerVm<VmState>, VmError> {
    let known = known(layout);
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(VmError::unknown(unknown, &known));
    }
    let names = if names.is_empty() { &known } else { names };
    Ok(journal::keep("down", layout, context, |context| {
        thread::scope(|scope| {
            let workers: Vec<_> = names
                .iter()
                .map(|vm| {
                    let stop_one = move || {
                        let was_ended = options.force && end_at_once(vm, layout, context)?;
                        let _lock = lock(vm, layout, context)?;
                        stop_or_find_stopped(vm, layout, context, options, was_ended)
                    };
                    (vm.clone(), scope.spawn(stop_one))
                })
                .collect();
            let join = |(vm, worker): (String, thread::ScopedJoinHandle<'_, _>)| {
                (vm, worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            };
            workers.into_iter().map(join).collect()
        })
    }))
}

/// Every VM there is anything of: a record, or a QEMU that runs without one.
fn known(layout: &ProjectLayout) -> Vec<String> {
    let entries = fs::read_dir(layout.vms()).into_iter().flatten().flatten();
    let is_there = |name: &String| {
        let files = layout.vm(name);
        files.record().exists() || running_qemu(&files.pidfile()).is_some()
    };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_there).collect();
    names.sort();
    names
}

/// Ends QEMU before the VM's lock is waited for: a boot that hangs holds that lock, and QEMU's end is what ends the boot.
/// Returns `true` if there was a QEMU.
fn end_at_once(vm: &str, layout: &ProjectLayout, context: &RuntimeContext) -> Result<bool, VmError> {
    let Some(qemu) = running_qemu(&layout.vm(vm).pidfile()) else { return Ok(false) };
    let record = Record::load(layout, vm).ok().flatten();
    let sockets = sockets_of(vm, record.as_ref(), layout, context);
    let stopping = Stopping { vm, context, qemu: &qemu, sockets: &sockets, has_agent: false };
    if qemu.is_frozen() {
        // The signal comes first, so that the guest does not run for a moment more.
        stopping.tell("SIGTERM");
        qemu.terminate()?;
        qemu.thaw()?;
        stopping.wait(QEMU_LIMIT)?;
    } else {
        stopping.cut_power()?;
    }
    Ok(true)
}

/// Returns the directory of the sockets that this VM was started with, or would be.
fn sockets_of(
    vm: &str,
    record: Option<&Record>,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> SocketsLayout {
    let boot = record.and_then(|record| record.boot.as_ref());
    boot.map_or_else(
        || layout.sockets(&context.runtime_root, vm),
        |boot| SocketsLayout::new(boot.sockets.clone()),
    )
}

/// Stops one VM, whose lock the caller holds. Hands back the state it was in.
pub(super) fn stop(
    vm: &str,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: &DownOptions,
) -> Result<VmState, VmError> {
    stop_or_find_stopped(vm, layout, context, options, false)
}

/// The same for a VM that ran until this command has ended it.
fn stop_or_find_stopped(
    vm: &str,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: &DownOptions,
    was_ended: bool,
) -> Result<VmState, VmError> {
    let files = layout.vm(vm);
    let mut record = match Record::load(layout, vm) {
        Ok(Some(record)) => record,
        unreadable => return stop_unrecorded(vm, layout, context, options, unreadable.err()),
    };
    let (mut before, mut qemu) = observe(&record, &files);
    if matches!(before, VmState::Suspended | VmState::Resuming) {
        return stop_suspended(put_back(record, layout)?, layout, context, options);
    }
    if before == VmState::Suspending {
        record = take_back(record, layout)?;
        if !options.force {
            // A guest that stands still cannot shut down.
            record = finish(record, layout, context)?;
        }
        (before, qemu) = observe(&record, &files);
    }
    let sockets = sockets_of(vm, Some(&record), layout, context);
    if let Some(qemu) = qemu {
        record.progress = Progress::Stopping;
        // A full disk must not keep a VM from being stopped.
        let _ = record.save(layout);
        failpoint::reach(Point::DownRecorded);
        let has_agent = record.boot.as_ref().is_none_or(|boot| boot.ssh_port.is_some());
        Stopping { vm, context, qemu: &qemu, sockets: &sockets, has_agent }.run(options)?;
        failpoint::reach(Point::DownEnded);
    }
    if record.progress != Progress::Stopped || before == VmState::Crashed {
        clean_up(&files, &sockets);
        failpoint::reach(Point::DownCleaned);
        record.progress = Progress::Stopped;
        record.boot = None;
        record.save(layout)?;
    }
    if was_ended && !before.is_alive() {
        before = VmState::Running;
    }
    context.reporter.report(&Event::VmStopped { vm: vm.to_owned(), was_running: before.is_alive() });
    Ok(before)
}

/// A suspended VM does not run; what happens to its memory was chosen.
fn stop_suspended(
    record: Record,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: &DownOptions,
) -> Result<VmState, VmError> {
    let vm = record.name.clone();
    match options.suspended {
        IfSuspended::Refuse => return Err(VmError::IsSuspended { vm }),
        IfSuspended::Leave => {
            let message = format!(
                "VM `{vm}` is suspended and stays so; castra down --discard-suspended {vm} drops its memory"
            );
            context.reporter.report(&Event::Warning { message });
        }
        IfSuspended::Discard => {
            discard(record, layout)?;
            context.reporter.report(&Event::VmStopped { vm, was_running: false });
        }
    }
    Ok(VmState::Suspended)
}

/// A VM whose record is gone, damaged or too new is stopped all the same: who lives is the kernel's answer.
fn stop_unrecorded(
    vm: &str,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: &DownOptions,
    unreadable: Option<VmError>,
) -> Result<VmState, VmError> {
    let files = layout.vm(vm);
    let Some(qemu) = running_qemu(&files.pidfile()) else {
        return unreadable.map_or(Ok(VmState::Stopped), Err);
    };
    let sockets = layout.sockets(&context.runtime_root, vm);
    Stopping { vm, context, qemu: &qemu, sockets: &sockets, has_agent: true }.run(options)?;
    clean_up(&files, &sockets);
    context.reporter.report(&Event::VmStopped { vm: vm.to_owned(), was_running: true });
    Ok(VmState::Running)
}

struct Stopping<'a> {
    vm: &'a str,
    context: &'a RuntimeContext,
    qemu: &'a QemuPid,
    sockets: &'a SocketsLayout,
    has_agent: bool,
}

impl Stopping<'_> {
    /// Each way in turn, until QEMU has ended.
    fn run(&self, options: &DownOptions) -> Result<(), VmError> {
        self.thaw()?;
        if !options.force && self.ask_guest()? && self.wait(options.limit)? {
            return Ok(());
        }
        self.cut_power()
    }

    /// Ends QEMU without asking the guest: by its own protocol, which closes the disk in order, then by signals.
    fn cut_power(&self) -> Result<(), VmError> {
        self.context.cancel.check()?;
        self.tell("quit");
        let quit = Qmp::connect(&self.sockets.qmp(), ANSWER_LIMIT).and_then(|mut qmp| qmp.quit());
        // A QEMU that is just ending closes its connection first.
        if self.wait(if quit.is_ok() { QEMU_LIMIT } else { SLICE })? {
            return Ok(());
        }
        self.context.cancel.check()?;
        self.tell("SIGTERM");
        self.qemu.terminate()?;
        if self.wait(QEMU_LIMIT)? {
            return Ok(());
        }
        self.tell("SIGKILL");
        self.qemu.kill()?;
        if self.wait(QEMU_LIMIT)? {
            return Ok(());
        }
        Err(VmError::Unkillable { vm: self.vm.to_owned(), pid: self.qemu.pid() })
    }

    /// A QEMU that somebody has stopped hears nothing: it is let go on, so that its guest can shut down.
    fn thaw(&self) -> Result<(), VmError> {
        if self.qemu.is_frozen() {
            self.tell("SIGCONT");
            self.qemu.thaw()?;
        }
        Ok(())
    }

    /// Asks for an orderly shutdown: the agent if there is one, else by the virtual power button.
    fn ask_guest(&self) -> Result<bool, VmError> {
        // A start that was killed half-way leaves such a machine.
        if stands_still(self.sockets) {
            return Ok(false);
        }
        self.tell("guest shutdown");
        let heard = self.has_agent && self.ask_agent();
        self.context.cancel.check()?;
        Ok(heard || self.press_power_button())
    }

    fn ask_agent(&self) -> bool {
        let deadline = Instant::now() + ANSWER_LIMIT;
        ControlPort::connect(&self.sockets.control(), deadline, &self.context.cancel)
            .and_then(|mut port| {
                port.attach()?;
                port.power_off()?;
                while port.next(deadline)? != GuestMessage::PoweringOff {}
                Ok(())
            })
            .is_ok()
    }

    fn press_power_button(&self) -> bool {
        Qmp::connect(&self.sockets.qmp(), ANSWER_LIMIT)
            .and_then(|mut qmp| qmp.execute("system_powerdown", json!({})))
            .is_ok()
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
            self.context.cancel.check()?;
        }
    }

    fn tell(&self, method: &str) {
        self.context
            .reporter
            .report(&Event::VmStopping { vm: self.vm.to_owned(), method: method.to_owned() });
    }
}
