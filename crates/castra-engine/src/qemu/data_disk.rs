//! Data disks: disks of a machine besides the one that it boots from.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::QemuError;
use super::qcow2::Qcow2Header;
use super::{DiskError, chain};

/// Longest name of a data disk, in bytes: that of a virtio disk's serial number
/// (`VIRTIO_BLK_ID_BYTES` in `linux/virtio_blk.h`).
pub const MAX_DISK_NAME_BYTES: usize = 20;

/// Maximum number of data disks of a machine. Each has a slot of its PCI bus, of which there are
/// 32 (*measured*: with all of these disks, a q35 has ten left).
pub const MAX_DATA_DISKS: usize = 16;

/// Name of a data disk: letters, digits, `-`, `_` and `.`, starting with a letter or digit. The
/// guest sees it as the disk's serial number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskName(String);

/// A text that is not the name of a data disk.
#[derive(Debug, thiserror::Error)]
#[error("`{}` is not the name of a disk", .0.escape_debug())]
pub struct BadDiskName(String);

impl DiskName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DiskName {
    type Error = BadDiskName;

    fn try_from(text: String) -> Result<Self, BadDiskName> {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let fits = (1..=MAX_DISK_NAME_BYTES).contains(&text.len())
            && text.bytes().all(is_part)
            && text.starts_with(|first: char| first.is_ascii_alphanumeric());
        if fits { Ok(Self(text)) } else { Err(BadDiskName(text)) }
    }
}

impl From<DiskName> for String {
    fn from(name: DiskName) -> Self {
        name.0
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A data disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDisk {
    /// Name of the disk.
    pub name: DiskName,
    /// The file, a qcow2 without a backing file.
    pub path: PathBuf,
}

/// A data disk, as far as its file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataDiskFacts {
    /// Virtual size, in bytes.
    pub virtual_bytes: u64,
    /// Set if nothing has ever been written to the disk.
    pub is_unwritten: bool,
}

impl DataDisk {
    /// Reads the tables of the file, which the guest's QEMU may have written, and checks that the
    /// file is complete.
    ///
    /// # Errors
    /// Those of [`Qcow2Header::read`] and [`Qcow2Header::has_no_clusters`], and
    /// [`DiskError::DataHasBackingFile`].
    pub fn check(&self) -> Result<DataDiskFacts, QemuError> {
        // As for each file of a backing chain: no link, no device.
        chain::identity(&self.path)?;
        let header = Qcow2Header::read(&self.path)?;
        if let Some(backing) = &header.backing_file {
            let (disk, backing) = (self.path.clone(), backing.clone());
            return Err(DiskError::DataHasBackingFile { disk, backing }.into());
        }
        let is_unwritten = header.has_no_clusters(&self.path)?;
        Ok(DataDiskFacts { virtual_bytes: header.virtual_bytes, is_unwritten })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_a_file_and_a_serial_number() {
        for good in ["data", "a", "0.b_c-d", "12345678901234567890"] {
            assert!(DiskName::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a,b", "a b", "ä", "a\0", "123456789012345678901"] {
            assert!(DiskName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
