//! Errors of a disk whose qcow2 header or backing chain is refused.

use std::path::PathBuf;

use crate::error::{Explain, Kind};

/// Reason why a qcow2 cannot be used, or must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// The content is encrypted.
    #[error("the disk {} is encrypted", disk.display())]
    Encrypted {
        /// The disk.
        disk: PathBuf,
    },
    /// The content is in another file, named by the header.
    #[error("the disk {} has an external data file", disk.display())]
    DataElsewhere {
        /// The disk.
        disk: PathBuf,
    },
    /// The disk is marked as damaged.
    #[error("the disk {} is marked as corrupt", disk.display())]
    Corrupt {
        /// The disk.
        disk: PathBuf,
    },
    /// The disk needs features that this version does not know.
    #[error("the disk {} needs unknown qcow2 features (bits {features:#x})", disk.display())]
    UnknownFeatures {
        /// The disk.
        disk: PathBuf,
        /// Unknown bits in the header.
        features: u64,
    },
    /// The disk has a backing file and was not allowed to have one.
    #[error("the disk {} has a backing file, {}", disk.display(), backing.display())]
    HasBackingFile {
        /// The disk.
        disk: PathBuf,
        /// Backing file that it names.
        backing: PathBuf,
    },
    /// A data disk has a backing file. Castra makes none with one.
    #[error("the data disk {} has a backing file, {}", disk.display(), backing.display())]
    DataHasBackingFile {
        /// The disk.
        disk: PathBuf,
        /// Backing file that it names.
        backing: PathBuf,
    },
    /// The backing file is no plain file.
    #[error("the disk {} has the backing file `{name}`, which is not a plain file", disk.display())]
    NotAPlainFile {
        /// The disk.
        disk: PathBuf,
        /// Name of the backing file.
        name: String,
    },
    /// The header names no format for the backing file, or another one than qcow2 and raw.
    #[error(
        "the disk {} declares {} for its backing file {}",
        disk.display(), of_format(format), backing.display()
    )]
    BackingFormat {
        /// The disk.
        disk: PathBuf,
        /// Backing file that it names.
        backing: PathBuf,
        /// Format that it names.
        format: Option<String>,
    },
    /// The backing chain is a loop.
    #[error("the disk {} is its own backing file", disk.display())]
    Loop {
        /// The disk.
        disk: PathBuf,
    },
    /// The backing chain has more files than anyone would make on purpose.
    #[error("the backing chain of the disk {} is longer than {limit} files", disk.display())]
    TooDeep {
        /// The disk.
        disk: PathBuf,
        /// Maximum number of files.
        limit: usize,
    },
}

fn of_format(format: &Option<String>) -> String {
    match format {
        Some(format) => format!("the format `{format}`"),
        None => "no format".to_owned(),
    }
}

impl Explain for DiskError {
    fn kind(&self) -> Kind {
        Kind::Data
    }

    fn hint(&self) -> Option<String> {
        let convert = |disk: &PathBuf| {
            format!(
                "qemu-img convert -O qcow2 {0} {0}.qcow2, and name that as base_image",
                disk.display()
            )
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
                    "It could name any of your files. If you trust it, flatten it: {}.",
                    convert(disk)
                )
            }
            Self::HasBackingFile { disk, .. } => format!(
                "It could name any of your files, and the guest could read it. If you trust it, \
                flatten it: {}; or write allow_backing_file = true in its [[vms]].",
                convert(disk)
            ),
            Self::DataHasBackingFile { disk, .. } => format!(
                "Castra's data disks have none, so something else has written it. It could name \
                any of your files, and the guest could read it. Restore the disk from a backup, or \
                move it away, and the next start says how to continue: mv {0} {0}.kept",
                disk.display()
            ),
            Self::Corrupt { disk } => format!("Try qemu-img check -r all {}", disk.display()),
            Self::UnknownFeatures { disk, .. } | Self::NotAPlainFile { disk, .. } => {
                format!("Convert it to a plain disk: {}.", convert(disk))
            }
            Self::BackingFormat { disk, backing, .. } => format!(
                "QEMU would guess it, and data written by a guest could make it guess wrong. Set \
                it: qemu-img rebase -u -F qcow2 -b {} {}",
                backing.display(),
                disk.display()
            ),
            Self::Loop { .. } | Self::TooDeep { .. } => {
                "Its header is damaged, or was tampered with.".to_owned()
            }
        })
    }
}
