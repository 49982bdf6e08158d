//! Growing the disk of a VM, running or stopped.
//!
//! QEMU resizes the disk of a running VM, and the guest agent then grows the partition and the root
//! filesystem. Those of a stopped VM grow at its next start. A suspended VM keeps its disk as it
//! is: its memory fits no other.

use std::time::{Duration, Instant};

use castra_wire::{AgentTask, GuestMessage, RootGrowth};
use serde_json::json;

use crate::config::ProjectConfig;
use crate::guest::{ControlError, ControlPort};
use crate::qemu::{Qcow2Header, QmpError, resize_disk};
use crate::size::ByteSize;

use super::disk::{check_present, confirm_place, refuse_in_use};
use super::error::{StateError, VmDiskError, VmError};
use super::lock::lock;
use super::monitor::{connect, continue_recorded, ensure_not_stopped};
use super::project::ProjectRef;
use super::record::{BootRecord, Record, VmState, observe, recorded_vm};

/// Largest size of a disk that is resized. An ext4 that was made for a small disk has an inode for
/// each 4 KiB, and its number of inodes, of 32 bits, ends at 16 TiB: the filesystem would not grow,
/// and the disk would not shrink again.
const MAX_BYTES: u64 = 8 << 40;

/// Time for the guest to grow its filesystem. From 1 to 10 GiB takes 0.3 s on an emulated CPU.
const GROWTH_LIMIT: Duration = Duration::from_secs(60);

/// A disk that has its new size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resized {
    /// Virtual size of the disk before, in bytes.
    pub before_bytes: u64,
    /// Virtual size of the disk now, in bytes.
    pub disk_bytes: u64,
    /// State of the guest's root filesystem.
    pub root: GrownRoot,
}

/// State of a guest's root filesystem after a change of its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrownRoot {
    /// The filesystem has grown.
    Grown {
        /// Size of the filesystem, in bytes, of which a part is its own tables.
        root_bytes: u64,
        /// Steps that are left to the user, as a sentence without its end.
        left_to_do: Option<String>,
    },
    /// The filesystem grows at the next start.
    AtNextStart,
    /// The VM boots natively: its own system may grow the filesystem.
    LeftToSystem,
    /// The filesystem has not grown.
    NotGrown {
        /// The reason.
        reason: String,
        /// Set if the next start of the VM grows it.
        is_due: bool,
    },
}

/// Grows the disk of a VM to this virtual size, and its root filesystem if the VM runs. A disk that
/// has the size already is left alone.
///
/// # Errors
/// Returns [`VmDiskError::Shrinking`] for a smaller size, [`StateError`] for a VM that neither runs
/// nor is stopped, [`VmDiskError::NotResized`], and errors as [`recorded_vm`] does.
pub fn resize(
    vm: &str,
    wanted_bytes: u64,
    config: &ProjectConfig,
    project: ProjectRef<'_>,
) -> Result<Resized, VmError> {
    recorded_vm(Some(vm), project.layout)?;
    if wanted_bytes > MAX_BYTES {
        let (wanted, most) = (ByteSize(wanted_bytes), ByteSize(MAX_BYTES));
        return Err(VmDiskError::TooLarge { vm: vm.to_owned(), wanted, most }.into());
    }
    let _lock = lock(vm, project)?;
    let mut record = recorded_vm(Some(vm), project.layout)?;
    let (state, qemu) = observe(&record, &project.files(vm));
    ensure_not_stopped(vm, qemu.as_ref())?;
    let disk = record.overlay_path(project.layout);
    check_present(vm, &disk)?;
    let before_bytes = Qcow2Header::read(&disk)?.virtual_bytes;
    if wanted_bytes < before_bytes {
        let (has, wanted) = (ByteSize(before_bytes), ByteSize(wanted_bytes));
        return Err(VmDiskError::Shrinking { vm: vm.to_owned(), has, wanted }.into());
    }
    let root = match (state, &record.boot) {
        (VmState::Running | VmState::DiskFull, Some(boot)) => {
            continue_recorded(&record, project)?;
            grow_running(&record, boot, wanted_bytes, project)?
        }
        (VmState::Stopped | VmState::Crashed, _) => {
            confirm_place(vm, &config.bounds.default_disk(vm).at(disk.clone()))?;
            refuse_in_use(&disk)?;
            if wanted_bytes > before_bytes {
                let context = project.context;
                resize_disk(&disk, wanted_bytes, &context.environment, &context.cancel)?;
            }
            GrownRoot::AtNextStart
        }
        (VmState::Elsewhere, _) => {
            return Err(StateError::Elsewhere { vm: vm.to_owned() }.into());
        }
        _ => return Err(StateError::NotRunning { vm: vm.to_owned(), state }.into()),
    };
    if let Some(cloned) = &mut record.cloned {
        // No castra.toml says how large it is to be.
        cloned.disk_bytes = wanted_bytes;
        record.save(project.layout)?;
    }
    Ok(Resized { before_bytes, disk_bytes: wanted_bytes, root })
}

fn grow_running(
    record: &Record,
    boot: &BootRecord,
    bytes: u64,
    project: ProjectRef<'_>,
) -> Result<GrownRoot, VmError> {
    let vm = &record.name;
    let mut qmp = connect(vm, boot, project.cancel())?;
    let resized = qmp.execute("block_resize", json!({ "node-name": "disk", "size": bytes }));
    drop(qmp);
    resized.map_err(|error| match error {
        QmpError::Interrupted(interrupted) => VmError::from(interrupted),
        source => VmDiskError::NotResized { vm: vm.clone(), source }.into(),
    })?;
    if !boot.has_agent() {
        return Ok(GrownRoot::LeftToSystem);
    }
    match ask_to_grow(boot, bytes, project) {
        Ok(RootGrowth::Done { root_bytes, left_to_do }) => {
            Ok(GrownRoot::Grown { root_bytes, left_to_do })
        }
        Ok(RootGrowth::Failed { reason }) => Ok(GrownRoot::NotGrown { reason, is_due: false }),
        Err(ControlError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(error) => Ok(GrownRoot::NotGrown { reason: error.to_string(), is_due: true }),
    }
}

/// Has the guest agent grow the root filesystem to a disk of this size.
fn ask_to_grow(
    boot: &BootRecord,
    disk_bytes: u64,
    project: ProjectRef<'_>,
) -> Result<RootGrowth, ControlError> {
    let deadline = Instant::now() + GROWTH_LIMIT;
    let mut port =
        ControlPort::connect(&boot.socket_paths().control(), deadline, project.cancel())?;
    port.attach()?;
    port.grow_root(disk_bytes)?;
    loop {
        match port.next(deadline)? {
            GuestMessage::RootGrown(growth) => return Ok(growth),
            GuestMessage::Failed { task: AgentTask::Protocol, .. } => {
                return Err(ControlError::TooOld);
            }
            _ => {}
        }
    }
}
