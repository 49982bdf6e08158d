//! Machines that QEMU has paused: because the host's disk is full, or because another client asked for it.
//!
//! QEMU pauses a machine whose disk cannot grow, and holds the write that failed. Once there is room, `cont` repeats that
//! write, so the guest never sees an error and loses nothing. Only Castra ever sends that.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::cancel::Cancel;
use crate::context::RuntimeContext;
use crate::files::Size;
use crate::layout::{ProjectLayout, SocketsLayout};
use crate::qemu::{MachineStatus, Qcow2Header, Qmp};
use crate::report::Event;
use crate::wait::WaitLimit;

use super::error::VmError;
use super::record::Record;
use super::suspend::unanswered;

/// Time for QEMU to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// A machine that is still full pauses again with the first write that it repeats, within milliseconds.
const SETTLE: Duration = Duration::from_millis(300);
/// Interval between questions meanwhile.
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// The filesystem that has no room for a VM's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullDisk {
    /// Where it is mounted.
    pub filesystem: PathBuf,
    /// What is free on it, if it can be told.
    pub free_bytes: Option<u64>,
    /// How much the VM's disk may still grow, if it can be told. QEMU does not say how much the write needs that found no
    /// room; with this much, none fails.
    pub growth_bytes: Option<u64>,
}

impl fmt::Display for FullDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its disk cannot grow, since the filesystem {} is full", self.filesystem.display())?;
        match (self.free_bytes, self.growth_bytes) {
            (Some(free), Some(growth)) => {
                write!(f, " ({} are free, and the disk may grow by {} more)", Size(free), Size(growth))
            }
            (Some(free), None) => write!(f, " ({} are free)", Size(free)),
            (None, _) => Ok(()),
        }
    }
}

impl FullDisk {
    /// The filesystem of a VM's disk.
    pub(super) fn of(disk: &Path) -> Self {
        let directory = disk.parent().unwrap_or(Path::new("/"));
        let free = rustix::fs::statvfs(directory).ok();
        let free_bytes = free.map(|status| status.f_bavail.saturating_mul(status.f_frsize));
        Self { filesystem: mount_point(directory), free_bytes, growth_bytes: growth(disk) }
    }
}

/// Computes how much larger a disk can become than it is.
fn growth(disk: &Path) -> Option<u64> {
    let virtual_bytes = Qcow2Header::read(disk).ok()?.virtual_bytes;
    let allocated = fs::metadata(disk).ok()?.blocks().saturating_mul(512);
    Some(virtual_bytes.saturating_sub(allocated))
}

/// The error for a VM that is paused for want of room.
pub(super) fn disk_full(vm: &str, disk: &Path) -> VmError {
    VmError::DiskFull { vm: vm.to_owned(), full: FullDisk::of(disk) }
}

/// The highest directory of the same filesystem.
fn mount_point(directory: &Path) -> PathBuf {
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let here = device(&directory);
    let shared = directory.ancestors().take_while(|path| device(path) == here);
    shared.last().unwrap_or(&directory).to_owned()
}

/// Continues a machine that is to run and is paused. The caller holds the VM's lock, so that no other castra is saving it. A QEMU that
/// does not answer is left to what its caller wants of it.
///
/// # Errors
/// [`VmError::DiskFull`] while there is no room; [`VmError::Interrupted`]; [`VmError::Qemu`].
pub(super) fn let_run(
    vm: &str,
    disk: &Path,
    sockets: &SocketsLayout,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    let cancel = &context.cancel;
    let was = match MachineStatus::ask(sockets, cancel) {
        Some(MachineStatus::Runs) | None => return Ok(cancel.check()?),
        Some(paused) => paused,
    };
    proceed(vm, sockets, cancel)?;
    let settled = WaitLimit::new(SETTLE, cancel).begin();
    while settled.sleep(SETTLE_POLL).is_ok() {
        if MachineStatus::ask(sockets, cancel) == Some(MachineStatus::DiskFull) {
            return Err(disk_full(vm, disk));
        }
    }
    cancel.check()?;
    let why = match was {
        MachineStatus::DiskFull => "was paused since its disk could not grow; there is room again",
        MachineStatus::Runs | MachineStatus::Paused => "was paused",
    };
    context.reporter.report(&Event::Warning { message: format!("VM `{vm}` {why}, and it continues") });
    Ok(())
}

/// [`let_run`] for a VM with a record.
pub(super) fn let_recorded_run(
    record: &Record,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    let Some(boot) = &record.boot else { return Ok(()) };
    let sockets = boot.socket_paths();
    let_run(&record.name, &record.overlay_path(layout), &sockets, context)
}

fn proceed(vm: &str, sockets: &SocketsLayout, cancel: &Cancel) -> Result<(), VmError> {
    Qmp::connect(&sockets.qmp(), WaitLimit::new(ANSWER_LIMIT, cancel))
        .and_then(|mut qmp| qmp.execute("cont", json!({})))
        .map(drop)
        .map_err(|error| unanswered(vm, error))
}
