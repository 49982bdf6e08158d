//! Checks for free space before the first byte is fetched, since a failure after an hour of
//! downloading is no help.

use crate::size::ByteSize;
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::{At, FileError};

/// Bytes left free in any case, for the manifest, logs and directories.
const RESERVE_BYTES: u64 = 1024 * 1024;

/// Size of a VM's new disk until its first boot is over: its tables and what a guest writes by
/// itself. (*Measured* with Alpine: 0.2 MiB when it is created, 4 MiB after the first boot and
/// shutdown.)
pub const OVERLAY_BYTES: u64 = 8 * 1024 * 1024;

/// Unit of `st_blocks`, whatever the filesystem's own is: `stat(2)`.
const BLOCK_BYTES: u64 = 512;

/// Returns the bytes that a file takes on its disk.
pub(crate) fn allocated_bytes(metadata: &Metadata) -> u64 {
    metadata.blocks() * BLOCK_BYTES
}

/// Peak disk usage of an operation in bytes, by purpose. Displays as a list of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peak {
    /// Bytes still to be downloaded.
    pub download: u64,
    /// Files made from the downloads, and a copy of them in the project if it is on another
    /// filesystem.
    pub image: u64,
    /// Disk of the VM that the image is for.
    pub overlay: u64,
    /// A file that is exported.
    pub archive: u64,
}

impl Peak {
    /// Returns the sum of all parts.
    pub fn total(&self) -> u64 {
        [self.download, self.image, self.overlay, self.archive]
            .into_iter()
            .fold(0, u64::saturating_add)
    }
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.download, "to download"),
            (self.image, "for the image built from it"),
            (self.overlay, "for the VM's disk"),
            (self.archive, "for the archive"),
        ];
        let parts = parts.iter().filter(|(bytes, _)| *bytes > 0);
        let parts: Vec<String> =
            parts.map(|(bytes, what)| format!("{} {what}", ByteSize(*bytes))).collect();
        f.write_str(&parts.join(", "))
    }
}

/// Checks that the filesystem of `directory` has room for `peak`.
///
/// # Errors
/// Returns [`FileError::NoSpace`] if less is available to this user.
pub fn require_space(directory: &Path, peak: &Peak) -> Result<(), FileError> {
    let status = rustix::fs::statvfs(directory).at("look at", directory)?;
    let available = status.f_bavail.saturating_mul(status.f_frsize);
    let needed = peak.total().saturating_add(RESERVE_BYTES);
    if available < needed {
        let (path, needed, available) =
            (directory.to_owned(), ByteSize(needed), ByteSize(available));
        return Err(FileError::NoSpace { path, needed, available, purpose: peak.to_string() });
    }
    Ok(())
}

/// Returns `true` if two paths are on one filesystem. A missing path is on none.
pub(crate) fn is_shared(one: &Path, other: &Path) -> Result<bool, FileError> {
    let device = |path: &Path| match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        metadata => metadata.at("look at", path).map(|metadata| Some(metadata.dev())),
    };
    Ok(device(one)? == device(other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_is_refused_with_numbers() {
        let peak =
            Peak { download: u64::MAX / 2, image: 3 << 20, overlay: OVERLAY_BYTES, archive: 0 };
        let error = require_space(Path::new("/"), &peak).expect_err("no disk has that much");
        assert!(matches!(error, FileError::NoSpace { available: ByteSize(1..), .. }), "{error}");
        let text = error.to_string();
        for part in ["iB free", "3 MiB for the image built from it", "8 MiB for the VM's disk"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("archive"), "{text}");
    }

    #[test]
    fn a_little_is_there() {
        require_space(Path::new("/"), &Peak { download: 1, ..Peak::default() }).expect("one byte");
    }
}
