//! Stamps: cheap evidence that a file is still the one that was verified.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// Size, time and inode of a published file. Published files are never written to, so while these
/// are unchanged, so are the bytes. If one differs (the file was copied, restored or touched), the
/// bytes are hashed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// Size in bytes.
    pub size_bytes: u64,
    /// Time of the last change of the bytes: whole seconds since 1970 …
    pub modified_secs: i64,
    /// … and nanoseconds.
    pub modified_nanos: i64,
    /// Inode number.
    pub inode: u64,
}

impl Stamp {
    /// Returns the stamp of the file that `metadata` describes.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            size_bytes: metadata.size(),
            modified_secs: metadata.mtime(),
            modified_nanos: metadata.mtime_nsec(),
            inode: metadata.ino(),
        }
    }
}
