//! States of VMs, from records and locks and from the immediate answers of their QEMUs. Never
//! blocks.

use rustix::fs::OFlags;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, ScopedJoinHandle};

use super::agent::{self, AgentFault};
use crate::config::PortForward;
use crate::guest::{CloudInitState, LiveState, Mount, MountState, NetworkFault, NetworkReport};
use crate::host::{millis, unix_time_ms};
use crate::layout::{ProjectLayout, VmLayout};
use crate::qemu::{AcceleratorChoice, DiskName, MachineStatus, QemuPid};
use crate::vm::accompany::{self, Observed, ObservedPort};
use crate::vm::companion::{CompanionFault, CompanionWork};
use crate::vm::disk::{FoundDisk, data};
use crate::vm::error::{VmError, VmIoError};
use crate::vm::full_disk::{FullDisk, tightest};
use crate::vm::monitor::is_paused;
use crate::vm::parallel::PerVm;
use crate::vm::record::{
    BootRecord, Crash, KernelRecord, MissingModules, NativeRecord, Record, VmState, copy_of, crash,
    observe,
};

/// Status of a data disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStatus {
    /// Name of the disk.
    pub name: DiskName,
    /// The file.
    pub path: PathBuf,
    /// Virtual size, in bytes; `None` if it cannot be read.
    pub size_bytes: Option<u64>,
    /// Bytes that it takes on this machine; `None` if it is gone.
    pub used_bytes: Option<u64>,
    /// Path in the guest at which the agent mounts it.
    pub guest: Option<String>,
    /// `false` for a disk that the VM did not have at its last start, and that is kept.
    pub is_attached: bool,
    /// Reason why it is not mounted, if the guest was asked ([`status_of_guests`]) and says so.
    /// Completes "disk `data` …".
    pub mount_fault: Option<String>,
}

/// Status of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmStatus {
    /// Name of the VM.
    pub name: String,
    /// State of the VM.
    pub state: VmState,
    /// Image that its disk is based on.
    pub image: String,
    /// Path of its disk.
    pub overlay: PathBuf,
    /// Data disks of the VM, and those that are kept for it.
    pub data_disks: Vec<DiskStatus>,
    /// Time at which its memory was saved, in milliseconds since 1970, if it is suspended.
    pub suspended_unix_ms: Option<u64>,
    /// Pid of QEMU, if it runs.
    pub pid: Option<i32>,
    /// Version of QEMU, if it runs.
    pub qemu_version: Option<String>,
    /// Accelerator that runs its CPU, if it runs.
    pub accelerator: Option<AcceleratorChoice>,
    /// Time at which it was started, in milliseconds since 1970, if it runs.
    pub started_unix_ms: Option<u64>,
    /// Time that QEMU has run, in milliseconds, unaffected by changes of the clock.
    pub uptime_ms: Option<u64>,
    /// Milliseconds until commands could run, if they can.
    pub ready_ms: Option<u64>,
    /// Virtual CPUs, if it is running.
    pub cpus: Option<u32>,
    /// Memory in MiB, if it is running.
    pub memory_mib: Option<u64>,
    /// Port on 127.0.0.1 for SSH, if it runs.
    pub ssh_port: Option<u16>,
    /// `true` if Castra's agent is in its guest; `None` unless it runs. Without an agent, nothing
    /// is known of what happens inside.
    pub agent: Option<bool>,
    /// Firmware and login of a native boot, if it runs so.
    pub native: Option<NativeRecord>,
    /// Bytes its guest has written to the serial console, if it is running.
    pub console_bytes: Option<u64>,
    /// Kernel modules of other kernels than the running one, if the guest has reported them, and
    /// the way out.
    pub missing_modules: Option<(MissingModules, String)>,
    /// Kernel of its disk that it has booted, if it runs with one.
    pub kernel: Option<KernelRecord>,
    /// Declared forwards, if it runs.
    pub port_forwards: Vec<PortForward>,
    /// Mounts, if it runs or is suspended, with their states, if its companion says.
    pub mounts: Vec<(Mount, Option<MountState>)>,
    /// Ports that its companion forwards, if it runs or is suspended.
    pub live_ports: Vec<ObservedPort>,
    /// `true` if whatever listens in its guest is forwarded, if it runs or is suspended.
    pub forwards_listeners: bool,
    /// Reason why something that listens in its guest is not forwarded.
    pub port_trouble: Option<String>,
    /// Pid of its companion, which serves its mounts and forwards ports, if there is one.
    pub companion_pid: Option<i32>,
    /// Reason for its crash, if it crashed.
    pub crash: Option<Crash>,
    /// Project that this one is a copy of, if the VM ran there when it was copied and was not
    /// started here since.
    pub copy_of: Option<PathBuf>,
    /// Filesystem that is too full for its disk, if it is paused for that.
    pub full_disk: Option<FullDisk>,
    /// True if a signal (SIGSTOP) has stopped its QEMU.
    pub is_frozen: bool,
    /// Directory from which its sockets have disappeared while it ran.
    pub lost_sockets: Option<PathBuf>,
    /// Fault of its agent, if it was asked ([`status_of_guests`]) and has not answered.
    pub agent_fault: Option<AgentFault>,
    /// Fault of its network, if its guest was asked ([`status_of_guests`]) and reports one.
    pub network_fault: Option<NetworkFault>,
    /// State of its cloud-init, if its guest was asked and was given data for it.
    pub cloud_init: Option<CloudInitState>,
    /// Milliseconds by which its clock is ahead of this machine's, if its guest was asked and
    /// reports its time.
    pub clock_ahead_ms: Option<i64>,
}

impl VmStatus {
    /// Returns the faults of its mounts and live ports, if it is running.
    pub fn companion_faults(&self) -> Vec<CompanionFault> {
        let has_ports = self.forwards_listeners || !self.live_ports.is_empty();
        let work = match (self.mounts.is_empty(), has_ports) {
            (false, _) => CompanionWork::Mounts,
            (true, true) => CompanionWork::Ports,
            (true, false) => return Vec::new(),
        };
        if self.state != VmState::Running || self.is_frozen {
            return Vec::new();
        }
        let Some(pid) = self.companion_pid else { return vec![CompanionFault::Ended { work }] };
        if self.mounts.iter().all(|(_, state)| state.is_none())
            && self.live_ports.iter().all(|port| port.state.is_none())
            && self.mounts.len() + self.live_ports.len() > 0
        {
            return vec![CompanionFault::Silent { pid, work }];
        }
        let fault = |(mount, state): &(Mount, Option<MountState>)| {
            let reason = match state {
                Some(MountState::Mounted | MountState::Unnotified(_)) => return None,
                Some(MountState::Waiting) => "its agent has not answered yet".to_owned(),
                Some(MountState::Failed(reason)) => reason.clone(),
                None => "it was not asked to".to_owned(),
            };
            Some(CompanionFault::NotMounted { guest: mount.guest.clone(), reason })
        };
        let fault_of_port = |port: &ObservedPort| {
            let reason = match &port.state {
                Some(LiveState::Open) => return None,
                Some(LiveState::Failed(reason)) => reason.clone(),
                None => "its companion was not asked to forward it".to_owned(),
            };
            Some(CompanionFault::NotForwarded { host: port.forward.host, reason })
        };
        let of_mounts = self.mounts.iter().filter_map(fault);
        of_mounts.chain(self.live_ports.iter().filter_map(fault_of_port)).collect()
    }
}

/// Returns the VMs of a project that have a record, by name. An unreadable record gives an error.
pub fn status(layout: &ProjectLayout) -> PerVm<VmStatus> {
    let status_of = |(name, record): (String, Result<Record, VmError>)| {
        (name, record.map(|record| status_by(&record, layout)))
    };
    recorded(layout).map(status_of).collect()
}

/// Returns the VMs as [`status`] does, with the immediate answers of running guests. Waits some
/// seconds for a silent one.
pub fn status_of_guests(layout: &ProjectLayout) -> PerVm<VmStatus> {
    thread::scope(|scope| {
        let ask = |(name, record): (String, Result<Record, VmError>)| {
            let known = record.map(|record| (status_by(&record, layout), record));
            (
                name,
                known.map(|(status, record)| {
                    scope.spawn(move || with_answer(status, &record, layout))
                }),
            )
        };
        // All are asked before the first answer is awaited.
        let asked: Vec<_> = recorded(layout).map(ask).collect();
        let answer = |asked: ScopedJoinHandle<'_, VmStatus>| {
            asked.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        asked.into_iter().map(|(name, asked)| (name, asked.map(answer))).collect()
    })
}

/// Reads the records of a project's VMs, each once.
fn recorded(
    layout: &ProjectLayout,
) -> impl Iterator<Item = (String, Result<Record, VmError>)> + use<'_> {
    Record::names(layout).into_iter().filter_map(|name| {
        let record = Record::load(layout, &name).map_err(VmError::from).transpose()?;
        Some((name, record))
    })
}

/// Adds what a running guest answers.
fn with_answer(mut status: VmStatus, record: &Record, layout: &ProjectLayout) -> VmStatus {
    if status.state != VmState::Running || status.is_frozen || is_paused(record) {
        return status;
    }
    match agent::ask(record, &layout.vm(&record.name)) {
        None => {}
        Some(Err(fault)) => status.agent_fault = Some(fault),
        Some(Ok(inspection)) => {
            if let NetworkReport::Faulty(fault) = NetworkReport::of(Some(&inspection)) {
                status.network_fault = Some(fault);
            }
            status.clock_ahead_ms = Some(inspection.clock_ahead_ms);
            status.cloud_init = inspection.condition.cloud_init;
            for fault in inspection.condition.disk_faults {
                let mut disks = status.data_disks.iter_mut();
                if let Some(disk) = disks.find(|disk| disk.name.as_str() == fault.name) {
                    disk.mount_fault = Some(fault.reason);
                }
            }
        }
    }
    status
}

/// Checks that everything about the project's VMs can be read: a state root owned by root, as `sudo
/// castra` leaves it, is not an empty one.
///
/// # Errors
/// Returns [`VmIoError::StateOfAnother`].
pub fn check_readable(layout: &ProjectLayout) -> Result<(), VmError> {
    let unreadable = |path: &Path, source: io::Error| {
        let denied = source.kind() == io::ErrorKind::PermissionDenied;
        denied.then(|| VmIoError::StateOfAnother {
            path: path.to_owned(),
            owner: owner_of(path),
            state_root: layout.state_root().to_owned(),
            source,
        })
    };
    for directory in [layout.state_root().to_owned(), layout.vms()] {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => match unreadable(&directory, error) {
                Some(error) => return Err(error.into()),
                None => continue,
            },
        };
        for entry in entries.flatten().filter(|_| directory == layout.vms()) {
            let record = layout.vm(&entry.file_name().to_string_lossy()).record();
            let looked = fs::symlink_metadata(&record).and_then(|_| open_at_once(&record));
            if let Some(error) = looked.err().and_then(|error| unreadable(&entry.path(), error)) {
                return Err(error.into());
            }
        }
    }
    Ok(())
}

/// Opens a path without waiting for the other end of a FIFO: all that matters is the permission to
/// read.
fn open_at_once(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn owner_of(path: &Path) -> String {
    match fs::symlink_metadata(path).map(|metadata| metadata.uid()) {
        Ok(0) => "root".to_owned(),
        Ok(uid) if uid == rustix::process::geteuid().as_raw() => {
            "you, without permission to read it".to_owned()
        }
        Ok(uid) => format!("another user (uid {uid})"),
        Err(_) => "another user".to_owned(),
    }
}

/// Returns the status of the VM of this name, or `None` if it has no record.
///
/// # Errors
/// Returns errors of reading the record.
pub fn status_of(name: &str, layout: &ProjectLayout) -> Result<Option<VmStatus>, VmError> {
    Ok(Record::load(layout, name)?.map(|record| status_by(&record, layout)))
}

fn status_by(record: &Record, layout: &ProjectLayout) -> VmStatus {
    let files = layout.vm(&record.name);
    let (state, qemu) = glance(record, &files);
    let boot = record.boot.as_ref().filter(|_| state.is_alive());
    let kept = record.suspended.as_ref().map(|saved| &saved.boot);
    let Observed { mounts, ports: live_ports, port_trouble, pid: companion_pid } =
        boot.or(kept).map(accompany::observe).unwrap_or_default();
    VmStatus {
        name: record.name.clone(),
        state,
        image: record.base.kind.to_string(),
        overlay: record.overlay_path(layout),
        data_disks: data_disks(record, &files),
        suspended_unix_ms: record.suspended.as_ref().map(|saved| saved.at_unix_ms),
        uptime_ms: boot.map(|boot| uptime_ms(qemu.as_ref(), boot.started_unix_ms)),
        is_frozen: qemu.as_ref().is_some_and(QemuPid::is_frozen),
        lost_sockets: boot
            .filter(|boot| qemu.is_some() && boot.socket_paths().are_gone())
            .map(|boot| boot.sockets.clone()),
        pid: qemu.map(|qemu| qemu.pid()),
        qemu_version: boot
            .map(|boot| boot.qemu_version.clone())
            .filter(|version| !version.is_empty()),
        accelerator: boot.map(|boot| boot.accelerator.clone()),
        started_unix_ms: boot.map(|boot| boot.started_unix_ms),
        ready_ms: boot.and_then(|boot| boot.ready_ms),
        cpus: boot.map(|boot| boot.cpus),
        memory_mib: boot.map(|boot| boot.memory_mib),
        ssh_port: boot.and_then(|boot| boot.ssh_port),
        agent: boot.map(BootRecord::has_agent),
        native: boot.and_then(|boot| boot.native.clone()),
        console_bytes: boot.map(|_| fs::metadata(files.console_log()).map_or(0, |log| log.len())),
        missing_modules: boot.and_then(|boot| boot.missing_modules.clone()).map(|missing| {
            let has_own = boot.is_some_and(|boot| boot.kernel.is_some());
            let way_out = missing.way_out(&record.name, &record.base.kind, has_own);
            (missing, way_out)
        }),
        kernel: boot.and_then(|boot| boot.kernel.clone()),
        port_forwards: boot.map(|boot| boot.port_forwards.clone()).unwrap_or_default(),
        mounts,
        live_ports,
        forwards_listeners: boot.or(kept).is_some_and(|boot| boot.auto_forwards.is_some()),
        port_trouble,
        companion_pid,
        crash: if state == VmState::Crashed { crash(record, &files) } else { None },
        copy_of: if state == VmState::Copied { copy_of(record, layout) } else { None },
        agent_fault: None,
        network_fault: None,
        cloud_init: None,
        clock_ahead_ms: None,
        full_disk: (state == VmState::DiskFull).then(|| FullDisk::of(&tightest(record, layout))),
    }
}

fn data_disks(record: &Record, files: &VmLayout) -> Vec<DiskStatus> {
    let mut found = data::found(files);
    let mut disks = Vec::new();
    for disk in &record.data_disks {
        let there = found.iter().position(|found| found.name == disk.name);
        let there = there.map(|index| found.remove(index));
        disks.push(DiskStatus {
            name: disk.name.clone(),
            path: files.data_disk(disk.name.as_str()),
            size_bytes: there.as_ref().and_then(|found| found.size_bytes),
            used_bytes: there.map(|found| found.used_bytes),
            guest: disk.guest.clone(),
            is_attached: true,
            mount_fault: None,
        });
    }
    let kept = |found: FoundDisk| DiskStatus {
        name: found.name,
        path: found.path,
        size_bytes: found.size_bytes,
        used_bytes: Some(found.used_bytes),
        guest: None,
        is_attached: false,
        mount_fault: None,
    };
    disks.extend(found.into_iter().map(kept));
    disks
}

/// Computes the uptime from the process, since clocks jump; otherwise from the clock.
fn uptime_ms(qemu: Option<&QemuPid>, started_unix_ms: u64) -> u64 {
    let age = qemu.and_then(QemuPid::age).map(millis);
    age.unwrap_or_else(|| unix_time_ms().saturating_sub(started_unix_ms))
}

/// Returns the VM's state, with QEMU's answer about a machine that should run, if it is immediate.
pub(in crate::vm) fn glance(record: &Record, files: &VmLayout) -> (VmState, Option<QemuPid>) {
    let (state, qemu) = observe(record, files);
    // A machine that is being saved or loaded is paused on purpose, and its QEMU serves the castra
    // that does that.
    let is_to_run = matches!(state, VmState::Starting | VmState::Running | VmState::Stopping);
    let is_answering = qemu.as_ref().is_some_and(|qemu| is_to_run && !qemu.is_frozen());
    let boot = record.boot.as_ref().filter(|_| is_answering);
    let status = boot.and_then(|boot| MachineStatus::glance(&boot.socket_paths()));
    if status == Some(MachineStatus::DiskFull) { (VmState::DiskFull, qemu) } else { (state, qemu) }
}

/// Returns the VM's current state, from its record and its process. Never blocks.
pub fn state_of(record: &Record, layout: &ProjectLayout) -> VmState {
    observe(record, &layout.vm(&record.name)).0
}
