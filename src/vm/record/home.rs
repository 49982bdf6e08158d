//! State root that a VM was started in. A copy of the project also has the record, but is another
//! directory, so it knows that the QEMU in the record is not its own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::boot_id;
use crate::layout::ProjectLayout;
use crate::qemu::{running_qemu, runs_elsewhere};

use super::boot::BootRecord;

/// Identity of a state root, as the kernel distinguishes directories. Its inode stays the same when
/// it is moved, and a copy has another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// Path at that time.
    pub path: PathBuf,
    /// Device number of its filesystem, in this run of the machine.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

impl Home {
    /// Returns the identity of the state root at this path, or `None` if it cannot be read.
    pub(in crate::vm) fn of(state_root: &Path) -> Option<Self> {
        let metadata = fs::metadata(state_root).ok()?;
        let (device, inode) = (metadata.dev(), metadata.ino());
        Some(Self { path: state_root.to_owned(), device, inode })
    }
}

/// Returns the state root that a boot was started in, if that is not this one.
pub(super) fn original(boot: &BootRecord, state_root: &Path) -> Option<PathBuf> {
    let (started, here) = (boot.home.as_ref()?, Home::of(state_root)?);
    // Filesystems may be numbered differently after a restart of the machine.
    let is_same_run = boot.boot_id.is_some() && boot.boot_id == boot_id();
    let is_here = started.inode == here.inode && (started.device == here.device || !is_same_run);
    (!is_here).then(|| started.path.clone())
}

/// Moves the sockets of a boot to where those of this project are, unless it was started here or
/// its QEMU runs here: a copy must not touch the original's.
pub(super) fn settle(boot: &mut BootRecord, vm: &str, layout: &ProjectLayout) {
    let pidfile = layout.vm(vm).pidfile();
    let is_own = boot.home.is_some() && original(boot, layout.state_root()).is_none();
    if is_own || running_qemu(&pidfile).is_some() || runs_elsewhere(&pidfile) {
        return;
    }
    if let Some(runtime_root) = boot.sockets.ancestors().nth(2) {
        boot.sockets = layout.sockets(runtime_root, vm).directory().to_owned();
    }
}

/// Returns a sentence that the project is a copy, made while the VM ran in the original.
pub fn sentence_of_copy(vm: &str, original: &Path) -> String {
    format!(
        "This project is a copy of the one in {}, made while VM `{vm}` was running there: its \
        disk here is in the state after a power cut.",
        original.display()
    )
}
