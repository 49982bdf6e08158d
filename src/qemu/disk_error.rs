use std::path::PathBuf;

use crate::error::{Explain, Kind};

/// Why a qcow2 cannot be used, or must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Its content is encrypted.
    #[error("the disk {} is encrypted", disk.display())]
    Encrypted {
        /// The disk.
        disk: PathBuf,
    },
    /// It keeps its content in another file, whose name it holds.
    #[error("the disk {} keeps its data in another file", disk.display())]
    DataElsewhere {
        /// The disk.
        disk: PathBuf,
    },
    /// It is marked as damaged.
    #[error("the disk {} is marked as damaged", disk.display())]
    Corrupt {
        /// The disk.
        disk: PathBuf,
    },
    /// It needs what this version does not know.
    #[error("the disk {} needs features that are not known here (bits {features:#x})", disk.display())]
    UnknownFeatures {
        /// The disk.
        disk: PathBuf,
        /// Their bits in the header.
        features: u64,
    },
    /// It stands on another file and was not allowed to.
    #[error("the disk {} stands on another file, {}", disk.display(), backing.display())]
    HasBackingFile {
        /// The disk.
        disk: PathBuf,
        /// The file it names.
        backing: PathBuf,
    },
    /// What it stands on is no plain file.
    #[error("the disk {} stands on `{name}`, which is no plain file", disk.display())]
    NotAPlainFile {
        /// The disk.
        disk: PathBuf,
        /// What it names.
        name: String,
    },
    /// It does not say of what format its backing file is, or says something else than qcow2 or raw.
    #[error("the disk {} says {} its backing file {}", disk.display(), of_format(format), backing.display())]
    BackingFormat {
        /// The disk.
        disk: PathBuf,
        /// The file it stands on.
        backing: PathBuf,
        /// What it says.
        format: Option<String>,
    },
    /// A disk that stands on itself.
    #[error("the disk {} stands on itself", disk.display())]
    Loop {
        /// The disk.
        disk: PathBuf,
    },
    /// More files than anybody has on purpose.
    #[error("the disk {} stands on more than {limit} files", disk.display())]
    TooDeep {
        /// The disk.
        disk: PathBuf,
        /// The limit.
        limit: usize,
    },
}

fn of_format(format: &Option<String>) -> String {
    match format {
        Some(format) => format!("`{format}` is the format of"),
        None => "nothing of the format of".to_owned(),
    }
}

impl Explain for DiskError {
    fn kind(&self) -> Kind {
        Kind::Data
    }

    fn hint(&self) -> Option<String> {
        let convert = |disk: &PathBuf| {
            format!("qemu-img convert -O qcow2 {0} {0}.qcow2, and name that as base_image", disk.display())
        };
        Some(match self {
            Self::Encrypted { disk } => {
                format!(
                    "Decrypt it: qemu-img convert with its secret (--object secret,…) from {}.",
                    disk.display()
                )
            }
            Self::DataElsewhere { disk } => {
                format!(
                    "It could name any file of yours. If you trust it, make one file of it: {}.",
                    convert(disk)
                )
            }
            Self::HasBackingFile { disk, .. } => format!(
                "It could name any file of yours, and the guest would read it. If you trust it, make one file of it: \
                 {}; or write allow_backing_file = true in its [[vms]].",
                convert(disk)
            ),
            Self::Corrupt { disk } => format!("Try qemu-img check -r all {}", disk.display()),
            Self::UnknownFeatures { disk, .. } | Self::NotAPlainFile { disk, .. } => {
                format!("Make a plain disk of it: {}.", convert(disk))
            }
            Self::BackingFormat { disk, backing, .. } => format!(
                "QEMU would guess, and what a guest has written there could make it guess wrong. Say it: \
                 qemu-img rebase -u -F qcow2 -b {} {}",
                backing.display(),
                disk.display()
            ),
            Self::Loop { .. } | Self::TooDeep { .. } => "Its header was tampered with, or spoilt.".to_owned(),
        })
    }
}
