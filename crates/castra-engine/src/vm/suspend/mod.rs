//! Suspending VMs: memory and devices are saved beside the disk, and QEMU ends.
//!
//! The guest writes everything out first, so that its disk is good even if the memory is discarded
//! later. Then the machine is paused until QEMU has ended. A castra that is killed meanwhile leaves
//! a paused QEMU, and the next operation continues it (`cancel_suspend`): the saved state counts
//! once the record says so and QEMU is gone.

mod clone;
mod resume;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use castra_wire::{AgentTask, GuestMessage};
use serde_json::json;

use crate::context::RuntimeContext;
use crate::failpoint::{self, Point};
use crate::files::{self, Stamp};
use crate::guest::ssh::{SshError, capture};
use crate::guest::{ControlError, ControlPort};
use crate::host::unix_time_ms;
use crate::layout::ProjectLayout;
use crate::qemu::{
    MachineStatus, is_agent_there, running_qemu, runs_elsewhere, save_all_memory, save_state,
};
use crate::report::Event;
use crate::trusted;
use crate::wait::WaitLimit;

use super::access::ssh_target;
use super::accompany;
use super::disk::data;
use super::error::{
    AccessError, Attempt, FileAction, StateError, StopError, SuspendError, VmError, VmIoError,
};
use super::journal;
use super::live_ports;
use super::lock::lock;
use super::monitor::{
    clean_up_run, connect, continue_recorded, disk_full, ensure_not_stopped, to_leave_in_order,
    unanswered,
};
use super::parallel::{PerVm, side_by_side};
use super::project::ProjectRef;
use super::record::{
    BootRecord, DiskStamp, Progress, Record, RecordedMachine, SuspendRecord, VmState, observe,
    recorded_vm,
};
use super::start::{UpOptions, attach, cancel_resume, cancel_suspend, continue_vm};

pub use clone::{check_clone, clone};
pub(super) use resume::resume;

/// Time for the guest to write everything out.
const SYNC_LIMIT: Duration = Duration::from_secs(60);
/// Interval between checks of a guest that writes everything out.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most output of a command in the guest, in bytes.
const MOST_OUTPUT_BYTES: usize = 4 << 10;
/// Time for QEMU to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Time for saving, whatever the size …
const SAVE_LIMIT: Duration = Duration::from_secs(60);
/// … and one more second per so many MiB: a slow disk writes faster than that.
const SLOW_MIB_PER_SEC: u64 = 20;
/// Time for QEMU to end after a request.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Suspends the named VMs in parallel, or all that run if `names` is empty. Returns their states
/// before.
///
/// # Errors
/// Returns [`super::RecordError::Unknown`] or [`super::RecordError::NoneYet`] before anything is
/// done. Each VM has an outcome of its own.
pub fn suspend(names: &[String], project: ProjectRef<'_>) -> Result<PerVm<VmState>, VmError> {
    for name in names {
        recorded_vm(Some(name), project.layout)?;
    }
    let running = || {
        Record::names(project.layout)
            .into_iter()
            .filter(|name| is_alive(name, project.layout))
            .collect()
    };
    let names: Vec<String> = if names.is_empty() { running() } else { names.to_vec() };
    Ok(journal::record("suspend", project, |project| {
        side_by_side(&names, String::as_str, |vm| suspend_one(vm, project))
    }))
}

fn is_alive(vm: &str, layout: &ProjectLayout) -> bool {
    // A VM whose record cannot be read is included, and fails with the reason.
    let pidfile = layout.vm(vm).pidfile();
    running_qemu(&pidfile).is_some() || runs_elsewhere(&pidfile)
}

fn suspend_one(vm: &str, project: ProjectRef<'_>) -> Result<VmState, VmError> {
    let _span = tracing::debug_span!("suspend", %vm).entered();
    let _lock = lock(vm, project)?;
    let record = recorded_vm(Some(vm), project.layout)?;
    let state = observe(&record, &project.files(vm)).0;
    let record = match state {
        VmState::Running | VmState::DiskFull => {
            continue_recorded(&record, project)?;
            record
        }
        VmState::Starting => attach(record, project, UpOptions::default())?.record,
        VmState::Suspending => continue_vm(cancel_suspend(record, project)?, project)?,
        VmState::Resuming | VmState::Suspended => {
            cancel_resume(record, project)?;
            project.report(&Event::VmSuspended { vm: vm.to_owned(), bytes: None });
            return Ok(VmState::Suspended);
        }
        VmState::Elsewhere => return Err(StateError::Elsewhere { vm: vm.to_owned() }.into()),
        VmState::Stopped | VmState::Stopping | VmState::Crashed | VmState::Copied => {
            return Err(StateError::NotRunning { vm: vm.to_owned(), state }.into());
        }
    };
    suspend_running(record, project)?;
    Ok(state)
}

fn suspend_running(mut record: Record, project: ProjectRef<'_>) -> Result<(), VmError> {
    let vm = record.name.clone();
    let boot =
        record.boot.clone().filter(|boot| matches!(&boot.machine, Some(RecordedMachine::Known(_))));
    let mut boot = boot.ok_or_else(|| SuspendError::NotSuspendable { vm: vm.clone() })?;
    ensure_not_stopped(&vm, running_qemu(&project.files(&vm).pidfile()).as_ref())?;
    let sockets = boot.socket_paths();
    if sockets.are_gone() {
        return Err(AccessError::sockets_gone(&vm, Attempt::Suspend, &sockets).into());
    }
    // Before anything is begun: a QEMU that does not answer cannot save anything, and need not be
    // disturbed.
    drop(connect(&vm, &boot, project.cancel())?);
    project.report(&Event::VmSuspending { vm: vm.clone() });
    if let Err(reason) = sync(&record, &boot, project)? {
        let message = format!(
            "VM `{vm}` could not sync its disk ({reason}); unwritten data is kept in the saved \
            memory"
        );
        project.report(&Event::Warning { message });
    }
    live_ports::remember(&mut boot);
    // Until QEMU has ended or, after a failure, the guest continues.
    let drained = accompany::drain(&vm, &boot, project.context);
    record.progress = Progress::Suspending;
    record.save(project.layout)?;
    let mut saved = match save(&record, &boot, project).and_then(|saved| {
        record.progress = Progress::Suspended;
        record.suspended = Some(saved.clone());
        record.save(project.layout)?;
        Ok(saved)
    }) {
        Ok(saved) => saved,
        Err(error) => {
            free(&project.files(&vm).unfinished_machine_state());
            // The VM continues. If that fails too, the next command will find it and try again.
            let _ = cancel_suspend(record, project).and_then(|record| continue_vm(record, project));
            return Err(error);
        }
    };
    failpoint::reach(Point::SuspendRecorded);
    end_qemu(&vm, &boot, project)?;
    drop(drained);
    // QEMU has released the disk when memory is saved. Should one write all the same when it ends,
    // that counts.
    let disk = disk_stamp(&record, project.layout)?;
    // Hashing takes a while, and the VM is suspended without it: only a copy could not be resumed
    // then.
    let disk_sha256 = files::sha256(&record.overlay_path(project.layout), project.cancel()).ok();
    saved.data_disks = data::saved(&record.data_disks, &project.files(&vm))?;
    data::hash(&mut saved.data_disks, &project.files(&vm), project.cancel());
    if disk != saved.disk || disk_sha256.is_some() || !saved.data_disks.is_empty() {
        (saved.disk, saved.disk_sha256) = (disk, disk_sha256);
        record.suspended = Some(saved.clone());
        record.save(project.layout)?;
    }
    project.report(&Event::VmSuspended { vm, bytes: Some(saved.stamp.size_bytes) });
    Ok(())
}

/// Removes an unfinished file, and frees its space at once, although QEMU may have it open for a
/// moment: it may be what fills the disk and keeps the record from being written.
fn free(unfinished: &Path) {
    let _ = files::part_from_other_names(unfinished);
    let _ = trusted::open_with(OpenOptions::new().write(true), unfinished)
        .and_then(|file| file.set_len(0));
    let _ = fs::remove_file(unfinished);
}

/// Has the guest write everything to its disk: by its agent, or over an SSH server of its own. The
/// inner error is the reason why it could not be asked.
fn sync(
    record: &Record,
    boot: &BootRecord,
    project: ProjectRef<'_>,
) -> Result<Result<(), String>, VmError> {
    if boot.has_agent() {
        let disk = record.overlay_path(project.layout);
        return sync_guest(&record.name, &disk, boot, project.context);
    }
    if !record.runs_commands() {
        return Ok(Err("it has no Castra agent".into()));
    }
    let target = ssh_target(record, "root", project.layout)?;
    match capture(project.cancel(), &target, vec!["sync".into()], MOST_OUTPUT_BYTES) {
        Err(SshError::Interrupted) => {
            project.cancel().check()?;
            Ok(Err("interrupted".into()))
        }
        Err(error) => Ok(Err(error.to_string())),
        Ok(synced) if synced.exit.is_success() => Ok(Ok(())),
        Ok(_) => Ok(Err("`sync` failed in it".into())),
    }
}

/// Asks the agent to write everything to the guest's disk. The inner error is the reason why it
/// could not be asked.
fn sync_guest(
    vm: &str,
    disk: &Path,
    boot: &BootRecord,
    context: &RuntimeContext,
) -> Result<Result<(), String>, VmError> {
    let deadline = Instant::now() + SYNC_LIMIT;
    let sockets = boot.socket_paths();
    let is_full = || MachineStatus::glance(&sockets) == Some(MachineStatus::DiskFull);
    let connected =
        ControlPort::connect(&sockets.control(), Instant::now() + ANSWER_LIMIT, &context.cancel);
    let mut answer_deadline = Some(Instant::now() + ANSWER_LIMIT);
    let synced = connected.and_then(|mut port| {
        port.attach()?;
        port.sync()?;
        loop {
            match port.next(deadline.min(Instant::now() + LOOK_EVERY)) {
                Ok(GuestMessage::Synced) => return Ok(Ok(())),
                // An agent of an earlier castra.
                Ok(GuestMessage::Failed { task: AgentTask::Protocol, reason }) => {
                    return Ok(Err(reason));
                }
                Ok(_) => answer_deadline = None,
                Err(error @ ControlError::ReadTimeout)
                    if answer_deadline.is_some_and(|deadline| Instant::now() > deadline)
                        || is_agent_there(&sockets) == Some(false) =>
                {
                    return Err(error);
                }
                Err(ControlError::ReadTimeout) if is_full() => return Ok(Err(String::new())),
                Err(ControlError::ReadTimeout) if Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    });
    match synced {
        // The data being written out is what found no room.
        _ if is_full() => Err(disk_full(vm, disk)),
        Err(error @ ControlError::Interrupted(_)) => Err(error.into()),
        Err(error) => Ok(Err(error.to_string())),
        Ok(result) => Ok(result),
    }
}

/// Pauses the machine and saves it: temporary name, fsync, rename, fsync of the directory.
fn save(
    record: &Record,
    boot: &BootRecord,
    project: ProjectRef<'_>,
) -> Result<SuspendRecord, VmError> {
    let (vm, files) = (record.name.as_str(), project.files(&record.name));
    let (new, published) = (files.unfinished_machine_state(), files.machine_state());
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| VmIoError::File { action: FileAction::Write, path, source }
    };
    let silent = |error| unanswered(vm, error);
    let mut qmp = connect(vm, boot, project.cancel())?;
    qmp.execute("stop", json!({})).map_err(silent)?;
    failpoint::reach(Point::SuspendStopped);
    save_all_memory(&mut qmp);
    // Overwrites what an earlier castra left unfinished.
    files::part_from_other_names(&new).map_err(failed(&new))?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = trusted::open_with(&mut options, &new).map_err(failed(&new))?;
    file.set_len(0).map_err(failed(&new))?;
    let limit = SAVE_LIMIT + Duration::from_secs(boot.memory_mib / SLOW_MIB_PER_SEC);
    save_state(vm, &mut qmp, &file, &WaitLimit::new(limit, project.cancel()))?;
    file.sync_all().map_err(failed(&new))?;
    let sha256 = files::sha256(&new, project.cancel())?;
    failpoint::reach(Point::SuspendSaved);
    let stamp = Stamp::of(&file.metadata().map_err(failed(&new))?);
    fs::rename(&new, &published).map_err(failed(&published))?;
    File::open(files.directory())
        .and_then(|directory| directory.sync_all())
        .map_err(failed(&published))?;
    failpoint::reach(Point::SuspendPublished);
    let (at_unix_ms, disk) = (unix_time_ms(), disk_stamp(record, project.layout)?);
    Ok(SuspendRecord {
        at_unix_ms,
        boot: boot.clone(),
        sha256,
        stamp,
        disk,
        disk_sha256: None,
        data_disks: data::saved(&record.data_disks, &files)?,
        next_disk: None,
    })
}

fn disk_stamp(record: &Record, layout: &ProjectLayout) -> Result<DiskStamp, VmIoError> {
    let path = record.overlay_path(layout);
    DiskStamp::of(&path).map_err(|source| VmIoError::File {
        action: FileAction::LookAt,
        path,
        source,
    })
}

/// Ends QEMU, which has nothing to lose since everything is saved.
fn end_qemu(vm: &str, boot: &BootRecord, project: ProjectRef<'_>) -> Result<(), VmError> {
    let files = project.files(vm);
    if let Some(qemu) = running_qemu(&files.pidfile()) {
        let quit = to_leave_in_order(vm, boot, project.cancel()).map(|mut qmp| qmp.quit());
        if !matches!(quit, Ok(Ok(()))) || !qemu.wait(END_LIMIT) {
            qemu.kill()?;
            if !qemu.wait(END_LIMIT) {
                return Err(StopError::Unkillable { vm: vm.to_owned(), pid: qemu.pid() }.into());
            }
        }
    }
    clean_up_run(&files, &boot.socket_paths());
    Ok(())
}
