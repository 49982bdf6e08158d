use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::OptionError;

/// A format of disks that every `qemu-img` reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// QEMU's own.
    Qcow2,
    /// The bytes of the disk as they are.
    Raw,
    /// VirtualBox's.
    Vdi,
    /// Hyper-V's.
    Vhdx,
    /// VMware's.
    Vmdk,
    /// Virtual PC's, which is called VHD elsewhere.
    Vpc,
}

impl DiskFormat {
    /// Every format.
    pub const ALL: [Self; 6] = [Self::Qcow2, Self::Raw, Self::Vdi, Self::Vhdx, Self::Vmdk, Self::Vpc];

    /// The name that `qemu-img` has for it.
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
