//! Stopping VMs, in the ways of [`stopping`].

mod stopping;

use std::fs;
use std::time::Duration;

use crate::failpoint::{self, Point};
use crate::layout::ProjectLayout;
use crate::qemu::running_qemu;
use crate::report::Event;

use super::error::{AccessError, StopError, VmError};
use super::journal;
use super::lock::lock;
use super::monitor::clean_up;
use super::parallel::{PerVm, side_by_side};
use super::project::ProjectRef;
use super::record::{Progress, Record, RecordError, VmState, copy_of, observe, sentence_of_copy};
use super::start::{cancel_resume, cancel_suspend, continue_vm, discard};
use stopping::{Stopping, sockets_of};

/// Time for a guest to shut down. Under TCG an Alpine needs some 3 s on an idle machine.
const GUEST_LIMIT: Duration = Duration::from_secs(60);
/// Time for a guest that may not have received an earlier castra's request.
const UNCERTAIN_LIMIT: Duration = Duration::from_secs(5);

/// Options of `down`.
#[derive(Debug, Clone, Copy)]
pub struct DownOptions {
    /// End QEMU at once without asking the guest, like a power cut.
    pub force: bool,
    /// Time for the guest to shut down.
    pub limit: Duration,
    /// Treatment of a suspended VM.
    pub suspended: IfSuspended,
}

/// Treatment of a suspended VM by `down`. It does not run, but its memory is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfSuspended {
    /// Fail: its memory is dropped only on explicit request.
    Refuse,
    /// Leave it as it is, with a warning.
    Leave,
    /// Drop its memory. Its disk stays, as of the suspend.
    Discard,
}

impl Default for DownOptions {
    fn default() -> Self {
        Self { force: false, limit: GUEST_LIMIT, suspended: IfSuspended::Refuse }
    }
}

/// Stops the named VMs in parallel, or all that have a record if `names` is empty.
///
/// # Errors
/// Returns [`RecordError::Unknown`] before anything is stopped. Each VM has an outcome of its own.
pub fn down(
    names: &[String],
    project: ProjectRef<'_>,
    options: &DownOptions,
) -> Result<PerVm<VmState>, VmError> {
    let known = known(project.layout);
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(RecordError::unknown(unknown, &known).into());
    }
    let names = if names.is_empty() { &known } else { names };
    Ok(journal::record("down", project, |project| {
        side_by_side(names, String::as_str, |vm| {
            let _span = tracing::debug_span!("down", %vm).entered();
            let was_ended = options.force && end_at_once(vm, project)?;
            let _lock = lock(vm, project)?;
            stop_or_find_stopped(vm, project, options, was_ended)
        })
    }))
}

/// Returns every VM with a record, or with a QEMU that runs without one.
fn known(layout: &ProjectLayout) -> Vec<String> {
    let entries = fs::read_dir(layout.vms()).into_iter().flatten().flatten();
    let is_there = |name: &String| {
        Record::is_there(layout, name) || running_qemu(&layout.vm(name).pidfile()).is_some()
    };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_there).collect();
    names.sort();
    names
}

/// Ends QEMU before waiting for the VM's lock: a boot that hangs holds that lock, and the end of
/// QEMU ends the boot. Returns `true` if there was a QEMU.
fn end_at_once(vm: &str, project: ProjectRef<'_>) -> Result<bool, VmError> {
    let Some(qemu) = running_qemu(&project.files(vm).pidfile()) else { return Ok(false) };
    let record = Record::load(project.layout, vm).ok().flatten();
    let stopping = Stopping::new(vm, record.as_ref(), &qemu, project);
    if qemu.is_frozen() {
        // The signal comes first, so that the guest does not run for another moment.
        stopping.report("SIGTERM");
        qemu.terminate()?;
        qemu.thaw()?;
        stopping.wait_for_qemu()?;
    } else {
        stopping.end_qemu()?;
    }
    Ok(true)
}

/// Stops one VM, whose lock the caller holds. `was_ended` is set if this command has ended its QEMU
/// already. Returns the VM's state before.
fn stop_or_find_stopped(
    vm: &str,
    project: ProjectRef<'_>,
    options: &DownOptions,
    was_ended: bool,
) -> Result<VmState, VmError> {
    let files = project.files(vm);
    let mut record = match Record::load(project.layout, vm) {
        Ok(Some(record)) => record,
        unreadable => return stop_unrecorded(vm, project, options, unreadable.err()),
    };
    let (mut before, mut qemu) = observe(&record, &files);
    if matches!(before, VmState::Suspended | VmState::Resuming) {
        return stop_suspended(cancel_resume(record, project)?, project, options);
    }
    if before == VmState::Copied {
        return Ok(leave_copied(&record, project));
    }
    if before == VmState::Suspending {
        record = cancel_suspend(record, project)?;
        if !options.force {
            // A paused guest cannot shut down.
            record = continue_vm(record, project)?;
        }
        (before, qemu) = observe(&record, &files);
    }
    let sockets = sockets_of(vm, Some(&record), project);
    let mut end = None;
    if let Some(qemu) = qemu {
        let stopping = Stopping::new(vm, Some(&record), &qemu, project);
        stopping.prepare(options)?;
        // A full disk must not keep a VM from being stopped.
        let mut stopped = record.clone();
        stopped.progress = Progress::Stopping;
        let _ = stopped.save(project.layout);
        failpoint::reach(Point::DownRecorded);
        end = match stopping.run(options) {
            Err(error @ VmError::Access(AccessError::SocketsGone { .. })) => {
                // The guest was not asked, and the VM keeps running.
                record.save(project.layout)?;
                return Err(error);
            }
            end => Some(end?),
        };
        record.progress = Progress::Stopping;
        failpoint::reach(Point::DownEnded);
    }
    if record.progress != Progress::Stopped || before == VmState::Crashed {
        clean_up(&files, &sockets);
        failpoint::reach(Point::DownCleaned);
        record.progress = Progress::Stopped;
        record.boot = None;
        record.save(project.layout)?;
    }
    if was_ended && !before.is_alive() {
        before = VmState::Running;
    }
    project.report(&Event::VmStopped { vm: vm.to_owned(), was_running: before.is_alive() });
    end.map_or(Ok(()), |end| end.judge(vm))?;
    Ok(before)
}

/// Leaves a VM of the project of which this one is a copy alone. The record still says that its
/// disk was copied while it ran.
fn leave_copied(record: &Record, project: ProjectRef<'_>) -> VmState {
    if let Some(original) = copy_of(record, project.layout) {
        let message = sentence_of_copy(&record.name, &original);
        project.report(&Event::Warning { message });
    }
    project.report(&Event::VmStopped { vm: record.name.clone(), was_running: false });
    VmState::Copied
}

/// Treats a suspended VM as the options say; it does not run.
fn stop_suspended(
    record: Record,
    project: ProjectRef<'_>,
    options: &DownOptions,
) -> Result<VmState, VmError> {
    let vm = record.name.clone();
    match options.suspended {
        IfSuspended::Refuse => return Err(StopError::IsSuspended { vm }.into()),
        IfSuspended::Leave => {
            let message = format!(
                "VM `{vm}` stays suspended; `castra down --discard-suspended {vm}` drops its memory"
            );
            project.report(&Event::Warning { message });
        }
        IfSuspended::Discard => {
            discard(record, project)?;
        }
    }
    Ok(VmState::Suspended)
}

/// Stops a VM whose record is gone, damaged or too new, by what the kernel knows of its QEMU.
fn stop_unrecorded(
    vm: &str,
    project: ProjectRef<'_>,
    options: &DownOptions,
    unreadable: Option<RecordError>,
) -> Result<VmState, VmError> {
    let files = project.files(vm);
    let Some(qemu) = running_qemu(&files.pidfile()) else {
        return unreadable.map_or(Ok(VmState::Stopped), |error| Err(error.into()));
    };
    let sockets = project.sockets(vm);
    let stopping = Stopping::new(vm, None, &qemu, project);
    stopping.prepare(options)?;
    let end = stopping.run(options)?;
    clean_up(&files, &sockets);
    project.report(&Event::VmStopped { vm: vm.to_owned(), was_running: true });
    end.judge(vm)?;
    Ok(VmState::Running)
}

/// Finishes a stop that an earlier castra began. A guest that is shutting down is waited for. The
/// power of one that does not is not cut, since nothing asks for that now: it runs on. Returns the
/// record, which says `Running` or `Stopped`. The caller holds the VM's lock.
///
/// # Errors
/// Returns [`VmError::State`], [`VmError::Record`] or [`VmError::Interrupted`].
pub(super) fn await_stop(mut record: Record, project: ProjectRef<'_>) -> Result<Record, VmError> {
    let (vm, files) = (record.name.clone(), project.files(&record.name));
    let sockets = sockets_of(&vm, Some(&record), project);
    if let Some(qemu) = running_qemu(&files.pidfile()) {
        let stopping = Stopping::new(&vm, Some(&record), &qemu, project);
        stopping.prepare(&DownOptions::default())?;
        if stopping.is_to_be_dropped() {
            stopping.end_qemu()?;
        } else {
            stopping.report("guest shutdown");
            // An agent that answers shuts down for certain; a power button may have been pressed in
            // vain.
            let limit = if stopping.has_agent() && stopping.ask_agent() {
                GUEST_LIMIT
            } else {
                UNCERTAIN_LIMIT
            };
            if !stopping.wait_for_guest(limit)? {
                record.progress = Progress::Running;
                record.save(project.layout)?;
                let message = format!(
                    "VM `{vm}` was asked to shut down earlier but did not; it keeps running"
                );
                project.report(&Event::Warning { message });
                return Ok(record);
            }
        }
    }
    clean_up(&files, &sockets);
    record.progress = Progress::Stopped;
    record.boot = None;
    record.save(project.layout)?;
    project.report(&Event::VmStopped { vm, was_running: true });
    Ok(record)
}
