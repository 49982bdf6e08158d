//! State root that a VM was started in. A copy of the project also has the record, but is another
//! directory, so it knows that the QEMU in the record is not its own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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

/// Returns a sentence that the project is a copy, made while the VM ran in the original.
pub fn sentence_of_copy(vm: &str, original: &Path) -> String {
    format!(
        "This project is a copy of the one in {}, made while VM `{vm}` was running there: its \
        disk here is in the state after a power cut.",
        original.display()
    )
}
