//! Disk formats that `qemu-img` converts.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::OptionError;

/// A format of disks that every `qemu-img` reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// QEMU's own format.
    Qcow2,
    /// Raw bytes of the disk.
    Raw,
    /// VirtualBox's format.
    Vdi,
    /// Hyper-V's format.
    Vhdx,
    /// VMware's format.
    Vmdk,
    /// Virtual PC's format, also called VHD.
    Vpc,
}

impl DiskFormat {
    /// Every format.
    pub const ALL: [Self; 6] =
        [Self::Qcow2, Self::Raw, Self::Vdi, Self::Vhdx, Self::Vmdk, Self::Vpc];

    /// Returns `qemu-img`'s name for the format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vdi => "vdi",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
            Self::Vpc => "vpc",
        }
    }
}

impl FromStr for DiskFormat {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let found = Self::ALL.into_iter().find(|format| format.name() == text);
        found.ok_or_else(|| OptionError::Format(text.to_owned()))
    }
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
