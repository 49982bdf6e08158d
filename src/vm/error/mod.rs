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
    /// Its QEMU.
    pub pid: i32,
    /// Directory of its project by now, if there is one.
    pub project: Option<PathBuf>,
}

/// Why something could not be done to a VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The VM's record cannot be had.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Something has the name of a disk and is none.
    #[error("{} is no disk of yours, and stays", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// QEMU runs and nothing is known of it.
    #[error("QEMU of VM `{vm}` runs (process {pid}), but its record is gone")]
    Unrecorded {
        /// The VM.
        vm: String,
        /// QEMU's process.
        pid: i32,
    },
    /// The VM does not run.
    #[error("VM `{vm}` is not running (it is {})", state.name())]
    NotRunning {
        /// The VM.
        vm: String,
        /// What it does instead.
        state: VmState,
    },
    /// The VM's QEMU was stopped by a signal.
    #[error("QEMU of VM `{vm}` stands still: somebody has stopped its process {pid} (SIGSTOP)")]
    Frozen {
        /// The VM.
        vm: String,
        /// QEMU's process.
        pid: i32,
    },
    /// The VM is suspended, and what is asked for would drop its memory.
    #[error("VM `{vm}` is suspended")]
    IsSuspended {
        /// The VM.
        vm: String,
    },
    /// What was saved of a suspended VM cannot be gone on from.
    #[error("VM `{vm}` cannot go on from where it was suspended: {reason}")]
    NotResumable {
        /// The VM.
        vm: String,
        /// Why.
        reason: String,
    },
    /// Only what has a memory can be cloned.
    #[error("VM `{vm}` neither runs nor is it suspended (it is {})", state.name())]
    NotSuspended {
        /// The VM.
        vm: String,
        /// What it does instead.
        state: VmState,
    },
    /// A clone needs a name of its own.
    #[error("there is a VM `{vm}` already, or a disk of one")]
    CloneExists {
        /// The name.
        vm: String,
    },
    /// Something has removed the sockets of a VM that runs.
    #[error("cannot {doing} VM `{vm}`: its sockets in {} are gone", directory.display())]
    SocketsGone {
        /// The VM.
        vm: String,
        /// The verb of what cannot be done.
        doing: &'static str,
        /// Directory in which the sockets were.
        directory: PathBuf,
    },
    /// A clone was interrupted before all of it was there.
    #[error("VM `{vm}` is a clone of `{of}` that was never finished")]
    CloneUnfinished {
        /// Its name.
        vm: String,
        /// The VM it was to be a clone of.
        of: String,
    },
    /// A clone needs a name that a VM can have.
    #[error("`{name}` cannot be a VM's name")]
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
    /// `CASTRA_ACCELERATOR` names none.
    #[error("CASTRA_ACCELERATOR names no accelerator: `{name}`")]
    UnknownAccelerator {
        /// What it says.
        name: String,
    },
    /// The VM boots natively, so there is no agent in it.
    #[error("VM `{vm}` boots from its own disk, without Castra's agent inside")]
    NoAgent {
        /// The VM.
        vm: String,
    },
    /// Somebody is connected to the VM's console.
    #[error("the console of VM `{vm}` is in use{}", by_process(*pid))]
    ConsoleTaken {
        /// The VM.
        vm: String,
        /// Who is connected, if the kernel tells.
        pid: Option<i32>,
    },
    /// The socket of its console is gone.
    #[error("the console of VM `{vm}` cannot be reached: its socket {} is gone", socket.display())]
    NoConsole {
        /// The VM.
        vm: String,
        /// The socket.
        socket: PathBuf,
    },
    /// The VM's disk stands on another image than the configuration now names.
    #[error("the disk of VM `{vm}` stands on {recorded}, and now {wanted} is asked for")]
    ImageChanged {
        /// The VM.
        vm: String,
        /// What the disk stands on.
        recorded: String,
        /// What is asked for.
        wanted: String,
    },
    /// The disk is where castra must not write.
    #[error("the disk of VM `{vm}` cannot be there: {problem}")]
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
        /// Its owner, in words.
        owner: String,
        /// The project's state root.
        state_root: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A VM runs that was started here before its project went.
    #[error("VM `{vm}` cannot start here: another one runs that was started here{}", before(predecessor.as_ref()))]
    PlaceTaken {
        /// The VM.
        vm: String,
        /// The other one; nothing if it cannot be seen.
        predecessor: Option<Predecessor>,
    },
    /// The base under a disk has changed.
    #[error("the base image of VM `{vm}` is not the one its disk was made on: {}", base.display())]
    BaseChanged {
        /// The VM.
        vm: String,
        /// The base image.
        base: PathBuf,
        /// The disk.
        overlay: PathBuf,
    },
    /// The project was copied while its VM wrote to its disk.
    #[error("the disk of VM `{vm}` changed while it was copied, and its tables contradict each other: {}", disk.display())]
    CopyTorn {
        /// The VM.
        vm: String,
        /// Its disk.
        disk: PathBuf,
        /// The directory of the project that was copied.
        original: PathBuf,
    },
    /// Nothing proves that a layer is the one a disk was made on.
    #[error(
        "the layer {} of VM `{vm}` has another size or time of change than recorded, and an earlier castra kept no digest of it",
        layer.display()
    )]
    LayerUnproven {
        /// The VM.
        vm: String,
        /// The layer.
        layer: PathBuf,
    },
    /// The base under a disk is gone.
    #[error("the base image of VM `{vm}` is missing: {}", base.display())]
    BaseMissing {
        /// The VM.
        vm: String,
        /// The base image.
        base: PathBuf,
        /// The disk that stands on it, if there is one.
        overlay: Option<PathBuf>,
    },
    /// The disk that a VM is to boot from holds nothing that its BIOS can boot.
    #[error("the disk of VM `{vm}` cannot be booted: {}", unbootable(disk, *reason))]
    Unbootable {
        /// The VM.
        vm: String,
        /// The disk.
        disk: PathBuf,
        /// The reason.
        reason: Unbootable,
    },
    /// The wait is for services of a guest without an agent that reports them.
    #[error(
        "VM `{vm}` boots from its own disk, without Castra's agent inside: `--wait services` would never learn of its services"
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
        /// Its base image.
        base: PathBuf,
    },
    /// The disk does not stand on what it should.
    #[error("the disk {} of VM `{vm}` stands on {}, not on {}", overlay.display(), found.display(), expected.display())]
    ForeignOverlay {
        /// The VM.
        vm: String,
        /// The disk.
        overlay: PathBuf,
        /// The backing file it names.
        found: PathBuf,
        /// The backing file it should name.
        expected: PathBuf,
    },
    /// The disk cannot be made or looked at.
    #[error("cannot {action} {}", path.display())]
    Disk {
        /// What was to be done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The system has no random bytes.
    #[error("cannot read random bytes from the system")]
    Random(#[source] io::Error),
    /// A host port is in use.
    #[error("port {port}/{protocol} of this machine, which VM `{vm}` forwards, is taken{}", by(owner))]
    PortTaken {
        /// The VM.
        vm: String,
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// Who has it.
        owner: PortOwner,
    },
    /// A host port may not be used by this user.
    #[error("port {port}/{protocol} of this machine may not be used by this user")]
    PortForbidden {
        /// The port.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
    },
    /// The guest did not come up in time.
    #[error("VM `{vm}` was not ready after {limit_secs} s, {trouble}")]
    BootTimedOut {
        /// The VM.
        vm: String,
        /// The limit.
        limit_secs: u64,
        /// What is known of it.
        trouble: Box<Trouble>,
    },
    /// The VM runs where it cannot be reached.
    #[error(
        "VM `{vm}` runs in another container or pid namespace of this machine, and cannot be reached from here"
    )]
    Elsewhere {
        /// The VM.
        vm: String,
    },
    /// A disk that is to go is in use.
    #[error("the disk {} is in use, and stays", path.display())]
    DiskInUse {
        /// The disk.
        path: PathBuf,
    },
    /// A guest that was ready does not answer.
    #[error("the guest of VM `{vm}` does not answer: it was ready, and has said nothing for {limit_secs} s")]
    GuestSilent {
        /// The VM.
        vm: String,
        /// The limit.
        limit_secs: u64,
    },
    /// A power cut ended the VM, and was not asked for.
    #[error(
        "VM `{vm}` did not shut down{}: its QEMU was ended by {method}, as if the power went",
        within(*limit_secs)
    )]
    PowerCut {
        /// The VM.
        vm: String,
        /// How long its guest was waited for; nothing if it could not be asked.
        limit_secs: Option<u64>,
        /// What ended QEMU.
        method: &'static str,
    },
    /// The disk of this machine is full, and the VM is paused until there is room.
    #[error("VM `{vm}` is paused: {full}")]
    DiskFull {
        /// The VM.
        vm: String,
        /// The filesystem of its disk.
        full: FullDisk,
    },
    /// The guest will never come up, by what it says itself.
    #[error("VM `{vm}` cannot boot: it gave up {trouble}")]
    BootHopeless {
        /// The VM.
        vm: String,
        /// What is known of it.
        trouble: Box<Trouble>,
    },
    /// QEMU could not be started, and there is a guess why.
    #[error("{error}\n  probable cause: {}", diagnosis.cause)]
    NotStarted {
        /// What QEMU did.
        error: Box<QemuError>,
        /// The guess.
        diagnosis: Box<Diagnosis>,
    },
    /// Commands can run, but the guest's services are not all up.
    #[error("the services of VM `{vm}` were not all up after {limit_secs} s; commands can run in it")]
    ServicesTimedOut {
        /// The VM.
        vm: String,
        /// The limit.
        limit_secs: u64,
    },
    /// The agent could not do what commands need.
    #[error("the agent in VM `{vm}` could not {task}: {reason}")]
    AgentFailed {
        /// The VM.
        vm: String,
        /// What it was to do.
        task: &'static str,
        /// What it said.
        reason: String,
    },
    /// QEMU ended while the guest booted.
    #[error("VM `{vm}` ended while it booted, {trouble}")]
    BootDied {
        /// The VM.
        vm: String,
        /// What is known of it.
        trouble: Box<Trouble>,
    },
    /// QEMU could not be ended.
    #[error("QEMU of VM `{vm}` (process {pid}) does not end, not even by SIGKILL")]
    Unkillable {
        /// The VM.
        vm: String,
        /// The process.
        pid: i32,
    },
    /// A VM that is thrown away did not start; nothing is left of it to look into.
    #[error(transparent)]
    ThrowawayFailed(Box<VmError>),
    /// The image could not be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A file of the VM cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// QEMU could not be run.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// A warm template could not be made or used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The agent could not be talked to.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The guest lives, and its network does not.
    #[error(transparent)]
    NetworkDown(#[from] NetworkDown),
    /// The agent could not be put into the initramfs.
    #[error(transparent)]
    Initrd(#[from] InitrdError),
    /// The VM's keys cannot be made or read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The state root cannot be used.
    #[error(transparent)]
    StateRoot(#[from] StateRootError),
    /// The VM is being worked on by somebody else.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl VmError {
    /// Returns the error of a VM that cannot be reached, since its sockets are gone.
    pub(super) fn sockets_gone(vm: &str, doing: &'static str, sockets: &SocketsLayout) -> Self {
        Self::SocketsGone { vm: vm.to_owned(), doing, directory: sockets.directory().to_owned() }
    }

    /// Why a start came to nothing, as far as it can be told.
    pub fn diagnosis(&self) -> Option<&Diagnosis> {
        match self {
            Self::BootTimedOut { trouble, .. }
            | Self::BootDied { trouble, .. }
            | Self::BootHopeless { trouble, .. } => trouble.diagnosis.as_ref(),
            Self::NotStarted { diagnosis, .. } => Some(diagnosis),
            _ => None,
        }
    }

    /// Whether somebody asked for the stop.
    pub fn is_interruption(&self) -> bool {
        self.kind() == Kind::Interrupted
    }
}

fn before(predecessor: Option<&Predecessor>) -> String {
    match predecessor {
        None => String::new(),
        Some(Predecessor { pid, project: None }) => format!(", and whose project is gone (process {pid})"),
        Some(Predecessor { pid, project: Some(project) }) => {
            format!(", and whose project was moved to {} (process {pid})", project.display())
        }
    }
}

fn by(owner: &PortOwner) -> String {
    if *owner == PortOwner::Unknown { String::new() } else { format!(" by {owner}") }
}

fn unbootable(disk: &Path, reason: Unbootable) -> String {
    let disk = disk.display();
    match reason {
        Unbootable::Blank => format!("{disk} has no boot code: it begins with nothing but zeros"),
        Unbootable::NoBootSector => format!("{disk} has no boot code: its first sector is no boot sector"),
        Unbootable::NoCode => {
            format!("{disk} has no boot code: its first sector holds a partition table alone")
        }
        Unbootable::UefiOnly => format!("{disk} boots by UEFI only, and Castra starts it with a BIOS"),
    }
}

fn within(limit_secs: Option<u64>) -> String {
    limit_secs.map_or(String::new(), |secs| format!(" within {secs} s"))
}

fn by_process(pid: Option<i32>) -> String {
    pid.map_or(String::new(), |pid| format!(" by process {pid}"))
}
