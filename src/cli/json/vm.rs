//! VMs in JSON: their status, and the outcome of commands that change them.

use std::path::{Path, PathBuf};

use castra_engine::config::{Firmware, PortForward};
use castra_engine::error::{Error, Result};
use castra_engine::guest::{LiveForward, LiveOrigin, LiveState, Mount, MountState, NetworkFault};
use castra_engine::layout::ProjectLayout;
use castra_engine::qemu::AcceleratorChoice;
use castra_engine::vm::{
    self, AgentFault, DiskStatus, KernelRecord, MissingModules, ObservedPort, VmState, VmStatus,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::Failure;

/// A boot by the disk's own boot loader.
#[derive(Debug, Serialize, JsonSchema)]
struct Native {
    /// Firmware that started the boot loader.
    firmware: Firmware,
    /// Reason for it, in words.
    reason: String,
}

/// A VM, as every command prints it. Fields that do not apply are `null`.
#[derive(Debug, Serialize, JsonSchema)]
pub(in super::super) struct VmView {
    /// Name of the VM.
    pub(in super::super) name: String,
    /// State of the VM.
    state: State,
    /// Image that the VM's disk is based on: name and version, or the path of the user's own file.
    image: Option<String>,
    /// The VM's own disk.
    overlay: Option<PathBuf>,
    /// Time at which its memory was saved, if it is suspended.
    suspended_unix_ms: Option<u64>,
    /// QEMU's process, if it is running.
    pid: Option<i32>,
    /// QEMU's version, if it is running.
    qemu_version: Option<String>,
    /// Accelerator that runs its CPU, and the reason for the choice, if it runs.
    accelerator: Option<AcceleratorChoice>,
    /// Time at which it was started, if it runs.
    started_unix_ms: Option<u64>,
    /// Time that it has run, unaffected by changes of the clock.
    uptime_ms: Option<u64>,
    /// Time until commands could run, in this run.
    ready_ms: Option<u64>,
    /// Virtual CPUs, if it is running.
    cpus: Option<u32>,
    /// Memory in MiB, if it is running.
    memory_mib: Option<u64>,
    /// Port of 127.0.0.1 for SSH, if it is running: to castra's agent or, if it boots natively, to
    /// the system's own server.
    ssh_port: Option<u16>,
    /// `true` if castra's agent runs in its guest, `false` if not, and `null` unless the VM runs.
    /// Without an agent, castra knows nothing of what happens inside.
    agent: Option<bool>,
    /// Firmware, if it boots natively and is running.
    native: Option<Native>,
    /// Bytes its guest has written to the serial console, if it is running.
    console_bytes: Option<u64>,
    /// Kernel modules of other kernels than the running one, if the guest has reported them:
    /// `modprobe` fails there.
    missing_modules: Option<MissingModules>,
    /// Kernel of its disk that it has booted, if it runs with one and not with an image's.
    kernel: Option<Kernel>,
    /// Forwarded ports, if it is running.
    port_forwards: Vec<PortForward>,
    /// Data disks of the VM, and those that are kept for it.
    data_disks: Vec<DataDiskView>,
    /// Directories of this machine that it sees, if it is running or suspended.
    mounts: Vec<MountView>,
    /// Forwards that were added while it ran or found themselves, if it is running or suspended.
    live_ports: Vec<LivePortView>,
    /// Process that serves its mounts and forwards these ports, if there is one.
    companion_pid: Option<i32>,
    /// Reason for its crash.
    crash: Option<String>,
    /// Project of which this one is a copy, made while the VM ran there, if its state is `copied`.
    copy_of: Option<PathBuf>,
    /// Filesystem that is too full for its disk, if its state is `disk-full`.
    full_disk: Option<FullDisk>,
    /// Fault of castra's agent, if it runs no longer (`gone`) or does not answer (`silent`). Only
    /// `status` asks it.
    agent_fault: Option<AgentFault>,
    /// Fault of the guest's network, if the guest reports one. Only `status` asks for it.
    network_fault: Option<NetworkFault>,
    /// State of cloud-init, if the VM has `cloud_init` and its guest answers. Only `status` asks.
    cloud_init: Option<CloudInit>,
    /// Milliseconds by which the guest's clock is ahead of this machine's, if the guest reports its
    /// time. Only `status` asks for it.
    clock_ahead_ms: Option<i64>,
    /// Problem of the VM, or error of the command.
    pub(in super::super) error: Option<Failure>,
}

/// State of cloud-init in a guest.
#[derive(Debug, Serialize, JsonSchema)]
struct CloudInit {
    /// `true` once all that it does in a boot is done.
    done: bool,
    /// Errors of this boot, in cloud-init's words.
    errors: Vec<String>,
}

/// Kernel that was read from a VM's disk. Texts are the disk's own.
#[derive(Debug, Serialize, JsonSchema)]
struct Kernel {
    /// Version of the kernel, if it names one.
    version: Option<String>,
    /// Distribution.
    os: String,
    /// Rule of boot loaders that found it.
    rule: String,
    /// Entry of that configuration.
    entry: String,
    /// Command line of that entry; Castra adds options of its own.
    command_line: String,
    /// SHA-256 of the kernel, in hexadecimal.
    kernel_sha256: String,
    /// SHA-256 of the initramfs, in hexadecimal, without what Castra adds.
    initramfs_sha256: String,
}

impl From<KernelRecord> for Kernel {
    fn from(record: KernelRecord) -> Self {
        Self {
            version: record.version,
            os: record.os,
            rule: record.rule,
            entry: record.entry,
            command_line: record.command_line.to_string(),
            kernel_sha256: record.kernel_sha256,
            initramfs_sha256: record.initramfs_sha256,
        }
    }
}

/// A data disk of a VM.
#[derive(Debug, Serialize, JsonSchema)]
struct DataDiskView {
    /// Name of the disk.
    name: String,
    /// The file.
    path: PathBuf,
    /// Virtual size, in bytes; `null` if it cannot be read.
    size_bytes: Option<u64>,
    /// Bytes that it takes on this machine; `null` if it is gone.
    used_bytes: Option<u64>,
    /// Path in the VM at which it is mounted; `null` for one that castra does not mount.
    guest: Option<String>,
    /// `false` for a disk that the VM did not have at its last start, and that is kept.
    attached: bool,
    /// Reason why the running VM does not have it mounted at `guest`; `null` if it does, or has not
    /// said.
    mount_fault: Option<String>,
}

impl From<DiskStatus> for DataDiskView {
    fn from(disk: DiskStatus) -> Self {
        Self {
            name: disk.name.to_string(),
            path: disk.path,
            size_bytes: disk.size_bytes,
            used_bytes: disk.used_bytes,
            guest: disk.guest,
            attached: disk.is_attached,
            mount_fault: disk.mount_fault,
        }
    }
}

/// A directory of this machine in a VM.
#[derive(Debug, Serialize, JsonSchema)]
pub(in super::super) struct MountView {
    /// Directory of this machine.
    host: PathBuf,
    /// Path in the VM.
    guest: String,
    /// The VM cannot write.
    read_only: bool,
    /// Programs in the VM that watch files are notified of changes that this machine makes.
    notify: bool,
    /// `mounted`, `waiting` for the guest, or `failed`; `null` if nothing serves it now.
    state: Option<String>,
    /// Reason why it is not mounted, or why the VM is not notified of all changes.
    reason: Option<String>,
}

impl From<(Mount, Option<MountState>)> for MountView {
    fn from((mount, state): (Mount, Option<MountState>)) -> Self {
        let (state, reason) = match state {
            None => (None, None),
            Some(MountState::Mounted) => (Some("mounted"), None),
            Some(MountState::Unnotified(reason)) => (Some("mounted"), Some(reason)),
            Some(MountState::Waiting) => (Some("waiting"), None),
            Some(MountState::Failed(reason)) => (Some("failed"), Some(reason)),
        };
        let Mount { host, guest, read_only, notify } = mount;
        Self { host, guest, read_only, notify, state: state.map(str::to_owned), reason }
    }
}

/// A port of this machine that leads to a VM since it runs.
#[derive(Debug, Serialize, JsonSchema)]
struct LivePortView {
    /// Port on 127.0.0.1.
    host: u16,
    /// Port in the VM.
    guest: u16,
    /// `added` by the user, or `auto` if it found itself.
    origin: String,
    /// `open` or `failed`; `null` if nothing forwards it now.
    state: Option<String>,
    /// Reason why it is not open.
    reason: Option<String>,
}

impl From<ObservedPort> for LivePortView {
    fn from(ObservedPort { forward, origin, state }: ObservedPort) -> Self {
        let origin = match origin {
            LiveOrigin::Added => "added",
            LiveOrigin::Auto => "auto",
        };
        let (state, reason) = match state {
            None => (None, None),
            Some(LiveState::Open) => (Some("open"), None),
            Some(LiveState::Failed(reason)) => (Some("failed"), Some(reason)),
        };
        let LiveForward { host, guest } = forward;
        Self { host, guest, origin: origin.to_owned(), state: state.map(str::to_owned), reason }
    }
}

/// A filesystem that is too full for a VM's disk.
#[derive(Debug, Serialize, JsonSchema)]
struct FullDisk {
    /// Mount point.
    filesystem: PathBuf,
    /// Free bytes, if known.
    free_bytes: Option<u64>,
    /// Bytes by which the VM's disk may still grow, if known.
    growth_bytes: Option<u64>,
}

impl From<castra_engine::vm::FullDisk> for FullDisk {
    fn from(full: castra_engine::vm::FullDisk) -> Self {
        let castra_engine::vm::FullDisk { filesystem, free_bytes, growth_bytes } = full;
        Self { filesystem, free_bytes, growth_bytes }
    }
}

/// State of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Declared but never started.
    NotCreated,
    /// Without a record of its disk: the next start uses the disk, and writes a record.
    Unrecorded,
    Stopped,
    Starting,
    Running,
    /// Running, but paused until the filesystem of its disk has room.
    DiskFull,
    Stopping,
    Suspending,
    Suspended,
    Resuming,
    /// Running in another pid namespace of this machine, out of reach.
    Elsewhere,
    Crashed,
    /// In a project that is a copy, made while the VM ran in the original.
    Copied,
    /// Unknown, since its record cannot be read.
    Unknown,
}

impl VmView {
    /// Returns the view of a VM that is declared but was never started.
    pub(in super::super) fn not_created(name: &str) -> Self {
        Self::empty(name, State::NotCreated)
    }

    /// Returns the view of a VM that has a disk and no record.
    pub(in super::super) fn unrecorded(name: &str, disk: &Path) -> Self {
        Self { overlay: Some(disk.to_owned()), ..Self::empty(name, State::Unrecorded) }
    }

    /// Returns the view of a VM whose record cannot be read.
    pub(in super::super) fn unreadable(name: &str, error: &Error) -> Self {
        Self { error: Some(error.into()), ..Self::empty(name, State::Unknown) }
    }

    /// Returns the view of a VM of this project, as it is now.
    fn now(name: &str, layout: &ProjectLayout) -> Self {
        match vm::status_of(name, layout) {
            Ok(Some(status)) => Self::from(status),
            Ok(None) => Self::not_created(name),
            Err(error) => Self::unreadable(name, &error.into()),
        }
    }

    fn empty(name: &str, state: State) -> Self {
        Self {
            name: name.to_owned(),
            state,
            image: None,
            overlay: None,
            suspended_unix_ms: None,
            pid: None,
            qemu_version: None,
            accelerator: None,
            started_unix_ms: None,
            uptime_ms: None,
            ready_ms: None,
            cpus: None,
            memory_mib: None,
            ssh_port: None,
            agent: None,
            native: None,
            console_bytes: None,
            missing_modules: None,
            kernel: None,
            port_forwards: Vec::new(),
            data_disks: Vec::new(),
            mounts: Vec::new(),
            live_ports: Vec::new(),
            companion_pid: None,
            crash: None,
            copy_of: None,
            full_disk: None,
            agent_fault: None,
            network_fault: None,
            cloud_init: None,
            clock_ahead_ms: None,
            error: None,
        }
    }
}

impl From<VmStatus> for VmView {
    fn from(status: VmStatus) -> Self {
        Self {
            name: status.name,
            state: status.state.into(),
            image: Some(status.image),
            overlay: Some(status.overlay),
            suspended_unix_ms: status.suspended_unix_ms,
            pid: status.pid,
            qemu_version: status.qemu_version,
            accelerator: status.accelerator,
            started_unix_ms: status.started_unix_ms,
            uptime_ms: status.uptime_ms,
            ready_ms: status.ready_ms,
            cpus: status.cpus,
            memory_mib: status.memory_mib,
            ssh_port: status.ssh_port,
            agent: status.agent,
            native: status
                .native
                .map(|native| Native { firmware: native.firmware, reason: native.reason }),
            console_bytes: status.console_bytes,
            missing_modules: status.missing_modules.map(|(missing, _)| missing),
            kernel: status.kernel.map(Kernel::from),
            port_forwards: status.port_forwards,
            data_disks: status.data_disks.into_iter().map(DataDiskView::from).collect(),
            mounts: status.mounts.into_iter().map(MountView::from).collect(),
            live_ports: status.live_ports.into_iter().map(LivePortView::from).collect(),
            companion_pid: status.companion_pid,
            crash: status.crash.map(|crash| crash.to_string()),
            copy_of: status.copy_of,
            full_disk: status.full_disk.map(FullDisk::from),
            agent_fault: status.agent_fault,
            network_fault: status.network_fault,
            cloud_init: status
                .cloud_init
                .map(|state| CloudInit { done: state.is_done, errors: state.errors }),
            clock_ahead_ms: status.clock_ahead_ms,
            error: None,
        }
    }
}

impl From<VmState> for State {
    fn from(state: VmState) -> Self {
        match state {
            VmState::Stopped => Self::Stopped,
            VmState::Starting => Self::Starting,
            VmState::Running => Self::Running,
            VmState::DiskFull => Self::DiskFull,
            VmState::Stopping => Self::Stopping,
            VmState::Suspending => Self::Suspending,
            VmState::Suspended => Self::Suspended,
            VmState::Resuming => Self::Resuming,
            VmState::Elsewhere => Self::Elsewhere,
            VmState::Crashed => Self::Crashed,
            VmState::Copied => Self::Copied,
        }
    }
}

/// Outcome of a command for each VM.
#[derive(Debug, Serialize, JsonSchema)]
pub(in super::super) struct Outcomes {
    /// VMs as they are now.
    vms: Vec<Outcome>,
}

/// Outcome of a command for one VM.
#[derive(Debug, Serialize, JsonSchema)]
pub(in super::super) struct Outcome {
    #[serde(flatten)]
    vm: VmView,
    /// True if the command changed the VM; false if nothing had to be done, or if it failed.
    changed: bool,
}

/// Returns the VMs as they are now, each with its outcome: changed, unchanged or an error.
pub(in super::super) fn outcomes<'a>(
    done: impl IntoIterator<Item = (&'a str, &'a Result<bool>)>,
    layout: &ProjectLayout,
) -> Outcomes {
    let outcome = |(name, done): (&str, &Result<bool>)| {
        let mut vm = VmView::now(name, layout);
        if let Err(error) = done {
            vm.error = Some(error.into());
        }
        Outcome { vm, changed: matches!(done, Ok(true)) }
    };
    Outcomes { vms: done.into_iter().map(outcome).collect() }
}
