//! Errors of operations on a VM. Their exit codes and hints are in `hints`.

mod hints;

use std::io;
use std::path::{Path, PathBuf};

use crate::cancel::Interrupted;
use crate::config::OutOfBounds;
use crate::error::{Explain, Kind};
use crate::files::{FileError, LockError};
use crate::guest::{ControlError, InitrdError, KeyError, NetworkDown};
use crate::layout::SocketsLayout;
use crate::managed::ImageError;
use crate::qemu::{QemuError, Unbootable};
use crate::sockets::{PortOwner, Protocol};
use crate::state_root::StateRootError;
use crate::template::TemplateError;

use super::diagnosis::{Diagnosis, Trouble};
use super::full_disk::FullDisk;
use super::record::{RecordError, VmState};

/// A VM whose project was moved or removed while it ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Predecessor {
    /// Pid of its QEMU.
    pub pid: i32,
    /// Current directory of its project, if there is one.
    pub project: Option<PathBuf>,
}

/// Error of an operation on a VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The VM's record is not available.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file under the name of a disk is not one.
    #[error("{} is not a disk of yours; it was not removed", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// QEMU runs, but there is no record of it.
    #[error("QEMU of VM `{vm}` is running (process {pid}), but its record is gone")]
    Unrecorded {
        /// The VM.
        vm: String,
        /// Pid of QEMU.
        pid: i32,
    },
    /// The VM does not run.
    #[error("VM `{vm}` is not running ({})", in_words(*state))]
    NotRunning {
        /// The VM.
        vm: String,
        /// State that it is in instead.
        state: VmState,
    },
    /// The VM's QEMU was stopped by a signal.
    #[error("VM `{vm}` is frozen: its QEMU process {pid} is stopped (SIGSTOP)")]
    Frozen {
        /// The VM.
        vm: String,
        /// Pid of QEMU.
        pid: i32,
    },
    /// The VM is suspended, and the operation would drop its memory.
    #[error("VM `{vm}` is suspended")]
    IsSuspended {
        /// The VM.
        vm: String,
    },
    /// A suspended VM cannot be resumed.
    #[error("cannot resume VM `{vm}`: {reason}")]
    NotResumable {
        /// The VM.
        vm: String,
        /// The reason.
        reason: String,
    },
    /// Only a running or suspended VM can be cloned.
    #[error("VM `{vm}` is neither running nor suspended ({})", in_words(*state))]
    NotSuspended {
        /// The VM.
        vm: String,
        /// State that it is in instead.
        state: VmState,
    },
    /// A clone needs a name of its own.
    #[error("VM `{vm}` already exists, or its disk does")]
    CloneExists {
        /// The name.
        vm: String,
    },
    /// Something has removed the sockets of a running VM.
    #[error("cannot {doing} VM `{vm}`: its sockets in {} are gone", directory.display())]
    SocketsGone {
        /// The VM.
        vm: String,
        /// Verb of the operation that is not possible.
        doing: &'static str,
        /// Directory in which the sockets were.
        directory: PathBuf,
    },
    /// A clone was interrupted before it was complete.
    #[error("VM `{vm}` is an unfinished clone of `{of}`")]
    CloneUnfinished {
        /// Name of the clone.
        vm: String,
        /// The VM that was being cloned.
        of: String,
    },
    /// The name of a clone is not valid for a VM.
    #[error("`{name}` is not a valid VM name")]
    BadName {
        /// The name.
        name: String,
    },
    /// Too little is known of the machine to save its state.
    #[error("VM `{vm}` cannot be suspended: it was started by an earlier castra")]
    NotSuspendable {
        /// The VM.
        vm: String,
    },
    /// `CASTRA_ACCELERATOR` names no accelerator.
    #[error("CASTRA_ACCELERATOR is not an accelerator: `{name}`")]
    UnknownAccelerator {
        /// Value of the variable.
        name: String,
    },
    /// The VM boots natively, so there is no agent in it.
    #[error("VM `{vm}` boots from its own disk, without Castra's agent inside")]
    NoAgent {
        /// The VM.
        vm: String,
    },
    /// The VM's console is in use.
    #[error("the console of VM `{vm}` is in use{}", by_process(*pid))]
    ConsoleTaken {
        /// The VM.
        vm: String,
        /// Pid of the connected process, if the kernel knows it.
        pid: Option<i32>,
    },
    /// The socket of the VM's console is gone.
    #[error("cannot reach the console of VM `{vm}`: its socket {} is gone", socket.display())]
    NoConsole {
        /// The VM.
        vm: String,
        /// The socket.
        socket: PathBuf,
    },
    /// The VM's disk is based on another image than the configuration now names.
    #[error("the disk of VM `{vm}` is based on {recorded}, but castra.toml now names {wanted}")]
    ImageChanged {
        /// The VM.
        vm: String,
        /// Image that the disk is based on.
        recorded: String,
        /// Image that the configuration names.
        wanted: String,
    },
    /// The disk is where castra must not write.
    #[error("invalid location for the disk of VM `{vm}`: {problem}")]
    DiskOutOfBounds {
        /// The VM.
        vm: String,
        /// The reason.
        problem: Box<OutOfBounds>,
    },
    /// The project's state belongs to another user.
    #[error("cannot read {}, which belongs to {owner}", path.display())]
    StateOfAnother {
        /// The file or directory.
        path: PathBuf,
        /// Owner, in words.
        owner: String,
        /// The project's state root.
        state_root: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Another VM that was started here still runs, although its project is gone from here.
    #[error(
        "VM `{vm}` cannot start here: another VM that was started here is running{}",
        before(predecessor.as_ref())
    )]
    PlaceTaken {
        /// The VM.
        vm: String,
        /// The other VM; `None` if it cannot be seen.
        predecessor: Option<Predecessor>,
    },
    /// The base image of a disk has changed.
    #[error("the base image of VM `{vm}` is not the one its disk is based on: {}", base.display())]
    BaseChanged {
        /// The VM.
        vm: String,
        /// The base image.
        base: PathBuf,
        /// The disk.
        overlay: PathBuf,
    },
    /// The project was copied while its VM wrote to its disk.
    #[error("the disk of VM `{vm}` changed while it was copied, so its tables are inconsistent: \
        {}", disk.display())]
    CopyTorn {
        /// The VM.
        vm: String,
        /// Path of the disk.
        disk: PathBuf,
        /// Directory of the project that was copied.
        original: PathBuf,
    },
    /// Nothing proves that a layer is the one a disk was created on.
    #[error(
        "the size or modification time of layer {} of VM `{vm}` differs from its record, in which \
        an earlier castra kept no digest",
        layer.display()
    )]
    LayerUnproven {
        /// The VM.
        vm: String,
        /// The layer.
        layer: PathBuf,
    },
    /// The base image of a disk is missing.
    #[error("the base image of VM `{vm}` is missing: {}", base.display())]
    BaseMissing {
        /// The VM.
        vm: String,
        /// The base image.
        base: PathBuf,
        /// The disk that is based on it, if there is one.
        overlay: Option<PathBuf>,
    },
    /// The boot disk of a VM has nothing that its BIOS can boot.
    #[error("the disk of VM `{vm}` cannot be booted: {}", unbootable(disk, *reason))]
    Unbootable {
        /// The VM.
        vm: String,
        /// The disk.
        disk: PathBuf,
        /// The reason.
        reason: Unbootable,
    },
    /// The guest has no agent that reports its services, so the wait for them is pointless.
    #[error(
        "VM `{vm}` boots from its own disk, without Castra's agent inside, which `--wait \
        services` needs"
    )]
    ServicesUnseen {
        /// The VM.
        vm: String,
    },
    /// The base image is a FIFO, a device, a socket or a directory.
    #[error("the base image of VM `{vm}` is not a regular file: {}", base.display())]
    BaseNotAFile {
        /// The VM.
        vm: String,
        /// Path of the base image.
        base: PathBuf,
    },
    /// The disk has another backing file than expected.
    #[error(
        "the disk {} of VM `{vm}` has backing file {}, expected {}",
        overlay.display(), found.display(), expected.display()
    )]
    ForeignOverlay {
        /// The VM.
        vm: String,
        /// The disk.
        overlay: PathBuf,
        /// Backing file that the disk has.
        found: PathBuf,
        /// Backing file that it should have.
        expected: PathBuf,
    },
    /// The disk cannot be created or read.
    #[error("cannot {action} {}", path.display())]
    Disk {
        /// Verb of the operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The system provides no random bytes.
    #[error("cannot read random bytes from the system")]
    Random(#[source] io::Error),
    /// A host port is in use.
    #[error(
        "port {port}/{protocol} of this machine, which VM `{vm}` forwards, is in use{}",
        by(owner)
    )]
    PortTaken {
        /// The VM.
        vm: String,
        /// The port.
        port: u16,
        /// Protocol of the port.
        protocol: Protocol,
        /// Owner of the port.
        owner: PortOwner,
    },
    /// The user lacks the right to a host port.
    #[error("this user may not use port {port}/{protocol} of this machine")]
    PortForbidden {
        /// The port.
        port: u16,
        /// Protocol of the port.
        protocol: Protocol,
    },
    /// The guest was not ready in time.
    #[error("VM `{vm}` was not ready after {limit_secs} s, {trouble}")]
    BootTimedOut {
        /// The VM.
        vm: String,
        /// The limit in seconds.
        limit_secs: u64,
        /// Report on the boot.
        trouble: Box<Trouble>,
    },
    /// The VM runs where it cannot be reached.
    #[error(
        "VM `{vm}` is running in another container or pid namespace of this machine, out of reach \
        from here"
    )]
    Elsewhere {
        /// The VM.
        vm: String,
    },
    /// A disk to be removed is in use.
    #[error("the disk {} is in use; it was not removed", path.display())]
    DiskInUse {
        /// The disk.
        path: PathBuf,
    },
    /// A guest that was ready no longer answers.
    #[error(
        "the guest of VM `{vm}` is not responding: it was ready, but has been silent for \
        {limit_secs} s"
    )]
    GuestSilent {
        /// The VM.
        vm: String,
        /// The limit in seconds.
        limit_secs: u64,
    },
    /// The VM was ended by a power cut that was not requested.
    #[error(
        "VM `{vm}` did not shut down{}: its QEMU was stopped by {method}, like a power cut",
        within(*limit_secs)
    )]
    PowerCut {
        /// The VM.
        vm: String,
        /// Seconds that its guest had to shut down; `None` if it could not be asked.
        limit_secs: Option<u64>,
        /// Method that ended QEMU.
        method: &'static str,
    },
    /// The host's disk is full, and the VM is paused until there is room.
    #[error("VM `{vm}` is paused: {full}")]
    DiskFull {
        /// The VM.
        vm: String,
        /// Filesystem of its disk.
        full: FullDisk,
    },
    /// The guest's own output says that it will never be ready.
    #[error("VM `{vm}` failed to boot {trouble}")]
    BootFailed {
        /// The VM.
        vm: String,
        /// Report on the boot.
        trouble: Box<Trouble>,
    },
    /// QEMU could not be started, and there is a probable cause.
    #[error("{error}\n  probable cause: {}", diagnosis.cause)]
    NotStarted {
        /// The failure of QEMU.
        error: Box<QemuError>,
        /// The probable cause.
        diagnosis: Box<Diagnosis>,
    },
    /// Commands can run, but not all services of the guest are up.
    #[error("not all services of VM `{vm}` were up after {limit_secs} s; commands can run in it")]
    ServicesTimedOut {
        /// The VM.
        vm: String,
        /// The limit in seconds.
        limit_secs: u64,
    },
    /// The agent could not do what commands need.
    #[error("the agent in VM `{vm}` could not {task}: {reason}")]
    AgentFailed {
        /// The VM.
        vm: String,
        /// Task of the agent.
        task: &'static str,
        /// Reason that the agent reported.
        reason: String,
    },
    /// QEMU ended while the guest booted.
    #[error("VM `{vm}` exited while booting, {trouble}")]
    BootDied {
        /// The VM.
        vm: String,
        /// Report on the boot.
        trouble: Box<Trouble>,
    },
    /// QEMU could not be ended.
    #[error("QEMU of VM `{vm}` (process {pid}) does not exit, not even on SIGKILL")]
    Unkillable {
        /// The VM.
        vm: String,
        /// Pid of the process.
        pid: i32,
    },
    /// A throwaway VM did not start; nothing of it is left to inspect.
    #[error(transparent)]
    ThrowawayFailed(Box<VmError>),
    /// The image is not available.
    #[error(transparent)]
    Image(Box<ImageError>),
    /// A file of the VM cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// QEMU could not be run.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// A warm template could not be made or used.
    #[error(transparent)]
    Template(Box<TemplateError>),
    /// The agent could not be reached.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The guest runs, but its network does not.
    #[error(transparent)]
    NetworkDown(#[from] NetworkDown),
    /// The agent could not be added to the initramfs.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The VM's keys cannot be created or read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The state root cannot be used.
    #[error(transparent)]
    StateRoot(#[from] StateRootError),
    /// Another process works on the VM.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The operation was interrupted.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl From<ImageError> for VmError {
    fn from(error: ImageError) -> Self {
        Self::Image(Box::new(error))
    }
}

impl From<TemplateError> for VmError {
    fn from(error: TemplateError) -> Self {
        Self::Template(Box::new(error))
    }
}

impl VmError {
    /// Returns the error of a VM that cannot be reached, since its sockets are gone.
    pub(super) fn sockets_gone(vm: &str, doing: &'static str, sockets: &SocketsLayout) -> Self {
        Self::SocketsGone { vm: vm.to_owned(), doing, directory: sockets.directory().to_owned() }
    }

    /// Returns the diagnosis of a failed start, if there is one.
    pub fn diagnosis(&self) -> Option<&Diagnosis> {
        match self {
            Self::BootTimedOut { trouble, .. }
            | Self::BootDied { trouble, .. }
            | Self::BootFailed { trouble, .. } => trouble.diagnosis.as_ref(),
            Self::NotStarted { diagnosis, .. } => Some(diagnosis),
            _ => None,
        }
    }

    /// Returns `true` if the operation was interrupted on request.
    pub fn is_interruption(&self) -> bool {
        self.kind() == Kind::Interrupted
    }
}

fn before(predecessor: Option<&Predecessor>) -> String {
    match predecessor {
        None => String::new(),
        Some(Predecessor { pid, project: None }) => {
            format!(", whose project is gone (process {pid})")
        }
        Some(Predecessor { pid, project: Some(project) }) => {
            format!(", whose project was moved to {} (process {pid})", project.display())
        }
    }
}

fn by(owner: &PortOwner) -> String {
    if *owner == PortOwner::Unknown { String::new() } else { format!(" by {owner}") }
}

fn unbootable(disk: &Path, reason: Unbootable) -> String {
    let disk = disk.display();
    match reason {
        Unbootable::Blank => format!("{disk} has no boot code: it begins with zeros"),
        Unbootable::NoBootSector => {
            format!("{disk} has no boot code: its first sector is not a boot sector")
        }
        Unbootable::NoCode => {
            format!("{disk} has no boot code: its first sector holds only a partition table")
        }
        Unbootable::UefiOnly => {
            format!("{disk} boots only by UEFI, but Castra starts it with a BIOS")
        }
    }
}

fn in_words(state: VmState) -> String {
    match state {
        VmState::Crashed => "it has crashed".to_owned(),
        VmState::Copied => "it is a copy of a running VM".to_owned(),
        VmState::Elsewhere => "it is running elsewhere".to_owned(),
        VmState::DiskFull => "it is paused: the disk is full".to_owned(),
        other => format!("it is {}", other.name()),
    }
}

fn within(limit_secs: Option<u64>) -> String {
    limit_secs.map_or(String::new(), |secs| format!(" within {secs} s"))
}

fn by_process(pid: Option<i32>) -> String {
    pid.map_or(String::new(), |pid| format!(" by process {pid}"))
}
