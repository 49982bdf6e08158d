//! Failures of the steps from a download to a finished file, and what to do about them.

use std::path::PathBuf;

use crate::command::CommandError;
use crate::error::{Explain, Kind};
use crate::files::Digest;
use crate::managed::spec::ArtifactRole;
use crate::qemu::install_hint;
use crate::size::ByteSize;

/// Failure of a step between download and file.
#[derive(Debug, thiserror::Error)]
pub enum TransformError {
    /// `qemu-img` is not on the `PATH`.
    #[error("qemu-img is not installed")]
    MissingQemuImg,
    /// `qemu-img` failed.
    #[error("cannot {action}")]
    QemuImg {
        /// Attempted action.
        action: String,
        /// The failure.
        source: CommandError,
    },
    /// `qemu-img info` printed something unexpected.
    #[error("qemu-img printed an unexpected description of {path}")]
    QemuImgInfo {
        /// The disk.
        path: PathBuf,
        /// Position at which its JSON goes wrong.
        source: serde_json::Error,
    },
    /// The VHD is not of the fixed kind.
    #[error("{path} is a {kind} VHD; only the footer of a fixed one can be stripped")]
    NotFixedVhd {
        /// The file.
        path: PathBuf,
        /// `dynamic` or `differencing`.
        kind: &'static str,
    },
    /// The file is not a VHD.
    #[error("{path} is not a VHD: {problem}")]
    NotVhd {
        /// The file.
        path: PathBuf,
        /// Problem of its last 512 bytes.
        problem: &'static str,
    },
    /// The disk does not hold an ext4 filesystem, or a damaged one.
    #[error("cannot read the ext4 filesystem of {path}")]
    Ext4 {
        /// The disk.
        path: PathBuf,
        /// The problem.
        source: ext4_view::Ext4Error,
    },
    /// A file's blocks in the filesystem are damaged.
    #[error("cannot read {file} out of the ext4 filesystem of {path}")]
    Ext4File {
        /// The disk.
        path: PathBuf,
        /// The path inside it.
        file: String,
        /// The problem.
        source: std::io::Error,
    },
    /// The filesystem does not have this file.
    #[error("the filesystem of {path} has no file {file}")]
    NoSuchFile {
        /// The disk.
        path: PathBuf,
        /// The path inside it.
        file: String,
    },
    /// The archive is damaged, or of an unsupported kind.
    #[error("cannot read the archive {path}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The problem.
        source: zip::result::ZipError,
    },
    /// The archive does not have this member, or has it as something other than a file.
    #[error("the archive {path} has no file {member}")]
    NoSuchMember {
        /// The archive.
        path: PathBuf,
        /// The member.
        member: String,
    },
    /// The archive names a member twice, so that readers disagree on which one counts.
    #[error("the archive {path} names one of its members twice")]
    AmbiguousArchive {
        /// The archive.
        path: PathBuf,
    },
    /// The compressed data is damaged or truncated.
    #[error("cannot decompress {path} as {format}")]
    Compressed {
        /// The file.
        path: PathBuf,
        /// Expected format.
        format: &'static str,
        /// The problem.
        source: std::io::Error,
    },
    /// A step would make an excessively large file.
    #[error("{what} would exceed {limit}")]
    TooLarge {
        /// The file.
        what: String,
        /// The limit.
        limit: ByteSize,
    },
    /// The finished disk is not a self-contained qcow2.
    #[error("the finished disk {path} {problem}")]
    BadDisk {
        /// The disk.
        path: PathBuf,
        /// The problem, as the end of a sentence about the disk.
        problem: String,
    },
    /// The finished kernel is not a kernel.
    #[error("the finished kernel {path} is not a Linux kernel image")]
    BadKernel {
        /// The kernel.
        path: PathBuf,
    },
    /// The finished file has another digest than the pinned one.
    #[error("the finished {role} has digest {found}, but {expected} was expected")]
    WrongProduct {
        /// Role of the file.
        role: ArtifactRole,
        /// The pinned digest.
        expected: Digest,
        /// Actual digest.
        found: Digest,
    },
    /// A finished file is empty.
    #[error("the finished file {path} is empty")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl Explain for TransformError {
    fn kind(&self) -> Kind {
        match self {
            Self::MissingQemuImg => Kind::Unavailable,
            Self::QemuImg { source, .. } => source.kind(),
            Self::QemuImgInfo { .. }
            | Self::NotFixedVhd { .. }
            | Self::NotVhd { .. }
            | Self::Ext4 { .. }
            | Self::Ext4File { .. }
            | Self::NoSuchFile { .. }
            | Self::Archive { .. }
            | Self::NoSuchMember { .. }
            | Self::AmbiguousArchive { .. }
            | Self::Compressed { .. }
            | Self::TooLarge { .. }
            | Self::BadDisk { .. }
            | Self::BadKernel { .. }
            | Self::WrongProduct { .. }
            | Self::Empty { .. } => Kind::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::MissingQemuImg => Some(install_hint("qemu-img")),
            Self::NotFixedVhd { .. } => Some(
                "Use the step qemu-img-convert with input_format = \"vpc\" instead of \
                strip-vhd-footer."
                    .to_owned(),
            ),
            Self::QemuImg { .. } | Self::QemuImgInfo { .. } => None,
            Self::NotVhd { .. }
            | Self::Ext4 { .. }
            | Self::Ext4File { .. }
            | Self::NoSuchFile { .. }
            | Self::Archive { .. }
            | Self::NoSuchMember { .. }
            | Self::AmbiguousArchive { .. }
            | Self::Compressed { .. }
            | Self::TooLarge { .. }
            | Self::BadDisk { .. }
            | Self::BadKernel { .. }
            | Self::WrongProduct { .. }
            | Self::Empty { .. } => Some(
                "The download matches its pin, so the image's description does not match the \
                download: check its pipeline."
                    .to_owned(),
            ),
        }
    }
}
