//! Throwaway VM for one command: it starts from a warm template, leaves no file behind once
//! commands can run, and ends with this process, in whatever way that ends.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::process::{WaitOptions, waitpid};

use crate::files::Lock;
use crate::guest::ssh::Target;
use crate::guest::{HeldPorts, Streams, VmKeys};
use crate::hex::hex;
use crate::host::random_bytes;
use crate::qemu::{QemuPid, remove_sockets, running_qemu, runs_elsewhere};
use crate::trusted;
use crate::wait::connect_at_once;

use super::disk::temporary_name;
use super::error::{AccessError, StateError, ThrowawayError, VmError, VmIoError};
use super::live_ports;
use super::lock::{VmLock, lock};
use super::monitor::{RoomWatch, clean_up, disk_full};
use super::plan::VmPlan;
use super::project::ProjectRef;
use super::record::BootRecord;
use super::start::{UpOptions, bring_up};

/// Prefix of throwaway VMs' names, followed by random digits.
const PREFIX: &str = "run-";

/// Stream ports of a throwaway VM that its castra uses: for commands and copies at the same time.
const HELD_PORTS: usize = 4;

/// Time for a VM to end whose castra was killed.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A VM that runs for one command. Dropping it ends the VM.
pub struct Throwaway {
    /// Address and keys to log in.
    pub target: Target,
    vm: String,
    disk: PathBuf,
    room: Option<RoomWatch>,
    qemu: QemuPid,
    /// Channel whose end stops the thread that announces forwards.
    _ports: Option<Sender<()>>,
    /// Lock that is held as long as the VM's files may exist.
    _lock: VmLock,
}

/// Returns a name that no other throwaway VM has.
///
/// # Errors
/// Returns [`VmIoError::Random`].
pub fn throwaway_name() -> Result<String, VmError> {
    let random: [u8; 6] = random_bytes().map_err(VmIoError::Random)?;
    let digits = hex(&random);
    Ok(format!("{PREFIX}{digits}"))
}

/// Starts a VM and waits until commands can run in it. The calling thread must live as long as the
/// VM shall.
///
/// # Errors
/// Returns errors of `up`, after which nothing is left.
pub fn start_throwaway(
    plan: &VmPlan,
    user: &str,
    project: ProjectRef<'_>,
    options: UpOptions,
) -> Result<Throwaway, VmError> {
    sweep(project);
    let vm = &plan.definition.name;
    let _span = tracing::debug_span!("run", %vm).entered();
    let lock = lock(vm, project)?;
    let started = bring_up(plan, None, project, options).and_then(|record| {
        let files = project.files(vm);
        let boot = record.boot.as_ref().filter(|boot| boot.has_agent());
        let port = boot.and_then(|boot| boot.ssh_port);
        let port = port.ok_or_else(|| AccessError::NoAgent { vm: vm.clone() })?;
        // Taken before their sockets are removed. Without them, SSH is the way in.
        let streams = record.boot.as_ref().and_then(BootRecord::stream_ports);
        let held = streams.and_then(|ports| HeldPorts::hold(&ports, HELD_PORTS).ok());
        let keys = VmKeys::load_or_create(&files)?;
        let target = Target {
            streams: held.map(Streams::Held),
            mounts: boot.map(|boot| boot.mounts.clone()).unwrap_or_default(),
            ..keys.target((Ipv4Addr::LOCALHOST, port).into(), user)
        };
        let gone = || StateError::NotRunning { vm: vm.clone(), state: super::VmState::Crashed };
        let qemu = running_qemu(&files.pidfile()).ok_or_else(gone)?;
        let ports = boot.and_then(|boot| live_ports::watch(vm, boot, project.context));
        Ok((target, qemu, ports))
    });
    // Connects before its socket is removed.
    let qmp = connect_at_once(&project.sockets(vm).qmp());
    for log in [project.files(vm).console_log(), project.files(vm).qemu_log()] {
        project.context.log_watch.watch_file(&log);
    }
    // QEMU has open what it needs, so the files can be removed whether it runs or not.
    remove_files(vm, project);
    let (target, qemu, ports) = started.map_err(ThrowawayError::new)?;
    let disk = project.layout.overlay(vm);
    // If QEMU does not answer there, the command will notice.
    let room =
        qmp.ok().map(|qmp| RoomWatch::start(qmp, disk.clone(), project.context.reporter.clone()));
    Ok(Throwaway { target, vm: vm.clone(), disk, room, qemu, _ports: ports, _lock: lock })
}

impl Throwaway {
    /// Finds the reason why the guest no longer answers.
    ///
    /// # Errors
    /// Returns [`VmError::Throwaway`] with [`StateError::DiskFull`].
    pub fn explain_silence(&self) -> Result<(), VmError> {
        match &self.room {
            Some(room) if room.is_full() => {
                Err(ThrowawayError::new(disk_full(&self.vm, &self.disk)).into())
            }
            _ => Ok(()),
        }
    }

    /// Ends the VM like a power cut; nothing of it is kept anyway. Pending operations on its guest
    /// fail.
    pub fn end(&self) {
        // A VM that has ended by itself need not be ended.
        let _ = self.qemu.kill();
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        // The watch takes its last look at a machine that still runs.
        self.room = None;
        self.end();
        // QEMU is a child of this process: once it is waited for, it is gone.
        let pid = rustix::process::Pid::from_raw(self.qemu.pid());
        let _ = waitpid(pid, WaitOptions::empty());
    }
}

fn remove_files(vm: &str, project: ProjectRef<'_>) {
    let files = project.files(vm);
    let sockets = project.sockets(vm);
    remove_sockets(&sockets);
    clean_up(&files, &sockets);
    let unfinished = temporary_name(&project.layout.overlay(vm));
    for file in files.logs().into_iter().chain([project.layout.overlay(vm), unfinished]) {
        // A file that cannot be removed now is swept by a later run.
        let _ = fs::remove_file(file);
    }
    let _ = fs::remove_dir_all(files.directory());
}

/// Removes the remains of runs that were killed while they started. A run that is still starting
/// holds its VM's lock.
fn sweep(project: ProjectRef<'_>) {
    let entries = fs::read_dir(project.layout.vms()).into_iter().flatten().flatten();
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let files = project.files(&name);
        let Ok(file) = trusted::open(&files.lock()) else { continue };
        let Ok(Some(_lock)) = Lock::try_hold(file, &files.lock()) else { continue };
        if !name.starts_with(PREFIX) || runs_elsewhere(&files.pidfile()) {
            continue;
        }
        // Its castra is gone, so the kernel is either ending it already or cannot do that.
        if let Some(qemu) = running_qemu(&files.pidfile()) {
            let _ = qemu.kill();
            qemu.wait(END_LIMIT);
        }
        remove_files(&name, project);
    }
}
