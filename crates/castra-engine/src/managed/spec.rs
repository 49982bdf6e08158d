//! Description of a managed image: its files, where they come from, and the steps from a source to
//! each of them.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::files::Digest;
use crate::layout;
use crate::qemu::{CommandLine, CpuModel, Device, DiskFormat, MachineType};
use crate::report::ImageLabel;

/// A managed image: data, from the catalog or from the user's `[images]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ManagedImageSpec {
    /// Id, a safe file name.
    pub id: String,
    /// Version, a safe file name.
    pub version: String,
    /// One-line description.
    pub description: String,
    /// Files of the image. Exactly one is the disk; kernel and initramfs come together or not at
    /// all.
    pub artifacts: Vec<ManagedArtifactSpec>,
    /// QEMU settings of the image.
    pub profile: QemuProfile,
}

impl ManagedImageSpec {
    /// Returns the image's label in events and messages.
    pub fn label(&self) -> ImageLabel {
        ImageLabel { id: self.id.clone(), version: self.version.clone() }
    }
}

/// One file of an image. Artifacts that name the same source share one download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ManagedArtifactSpec {
    /// Role of the file, which also decides its final name.
    pub role: ArtifactRole,
    /// Source of its bytes.
    pub source: ArtifactSource,
    /// Digest of the bytes as they are fetched.
    pub digest: Digest,
    /// Number of those bytes, if it is pinned too.
    pub size_bytes: Option<u64>,
    /// Steps from those bytes to the file, in order.
    pub pipeline: Vec<TransformStep>,
    /// SHA-256 of the final file, if it does not depend on the version of a tool.
    pub product_digest: Option<Digest>,
}

/// Role of a file of an image.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactRole {
    /// The disk: `rootfs.qcow2`.
    Rootfs,
    /// The kernel: `vmlinuz`.
    Kernel,
    /// The initramfs: `initramfs`.
    Initramfs,
}

impl ArtifactRole {
    /// Returns the name of the file in an image's directory.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Rootfs => layout::ROOTFS,
            Self::Kernel => layout::KERNEL,
            Self::Initramfs => layout::INITRAMFS,
        }
    }
}

/// Displays as in events and messages: `rootfs`, `kernel`, `initramfs`.
impl fmt::Display for ArtifactRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rootfs => "rootfs",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
        })
    }
}

/// Disk of an image that a VM is based on. There is only one kind so far; the key exists so that
/// files stay valid when more come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ManagedDiskKind {
    /// The root filesystem.
    #[default]
    Rootfs,
}

/// Source of bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactSource {
    /// `https://` (or `http://`, which the pinned digest makes safe) URLs of the same bytes, tried
    /// in order.
    Url(Vec<String>),
    /// A file of a Python package, fetched by `pip download`, which brings the user's own index and
    /// proxy settings.
    PythonPackage {
        /// Name of the package.
        name: String,
        /// Exact version.
        version: String,
        /// `--platform` tag of the wheel, for instance `manylinux_2_17_x86_64`; none for a pure
        /// one.
        platform: Option<String>,
    },
    /// An absolute path of a file on this machine.
    Path(PathBuf),
}

/// One step from the bytes of a source to a file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum TransformStep {
    /// Remove the 512-byte footer of a *fixed* VHD, leaving the raw disk. A dynamic one is refused:
    /// convert it from `vpc`.
    StripVhdFooter,
    /// `qemu-img convert`.
    QemuImgConvert {
        /// Input format.
        input_format: DiskFormat,
        /// Output format.
        output_format: DiskFormat,
    },
    /// Extract one file from a raw disk that is one ext4 filesystem.
    ExtractFile {
        /// Absolute path inside the filesystem; symbolic links are followed inside it.
        path: String,
    },
    /// Extract one member of a ZIP archive, such as a wheel.
    Unzip {
        /// Exact name of the member.
        member: String,
    },
    /// Decompress.
    Decompress {
        /// The format.
        format: Compression,
    },
    /// Give the file this name before the next step; the final name still comes from the artifact's
    /// role.
    Rename {
        /// A plain file name.
        name: String,
    },
}

/// A compression format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// `.xz`.
    Xz,
    /// RFC 8878.
    Zstd,
}

/// QEMU settings of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QemuProfile {
    /// Kernel command line; none for an image without a kernel, which boots natively.
    pub command_line: Option<CommandLine>,
    /// Machine type, as in QEMU's `-machine`.
    pub machine: MachineType,
    /// CPU model under TCG. Under kvm and hvf it is `host`.
    pub tcg_cpu: CpuModel,
    /// Least memory with which the image boots, in MiB.
    pub min_memory_mib: u64,
    /// Further devices, as in QEMU's `-device`, for instance `virtio-rng-pci`.
    pub devices: Vec<Device>,
}

/// Displays as in events and messages: the first URL, the Python requirement or the path.
impl fmt::Display for ArtifactSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(urls) => f.write_str(urls.first().map_or("", String::as_str)),
            Self::PythonPackage { name, version, .. } => {
                write!(f, "Python package {name}=={version}")
            }
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Paths of an image's verified files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedImagePaths {
    /// The image's directory in the project.
    pub directory: PathBuf,
    /// The disk.
    pub disk: PathBuf,
    /// SHA-256 of the disk, hexadecimal, from the manifest.
    pub disk_sha256: String,
    /// The kernel.
    pub kernel: Option<PathBuf>,
    /// The initramfs.
    pub initramfs: Option<PathBuf>,
    /// The manifest.
    pub manifest: PathBuf,
}

#[cfg(test)]
mod tests {
    /// Digests of descriptions are computed over this text, and manifests store them.
    #[test]
    fn a_description_is_written_as_ever() {
        let catalog = crate::managed::Catalog::builtin();
        let image = &catalog.images()[0];
        assert_eq!(
            serde_json::to_string(&image.profile).expect("written"),
            r#"{"command_line":"root=/dev/vda rootfstype=ext4 rootflags=rw modules=ext4,virtio_blk,virtio_net,virtio-rng console=ttyS0 ds=nocloud","machine":"q35,sata=off,smbus=off,vmport=off","tcg_cpu":"qemu64,+rdrand,+cx16,+lahf-lm,+popcnt,+ssse3,+sse4.1,+sse4.2","min_memory_mib":256,"devices":["virtio-rng-pci"]}"#
        );
        assert_eq!(
            serde_json::to_string(&image.artifacts[0].pipeline[1]).expect("written"),
            r#"{"step":"qemu-img-convert","input_format":"raw","output_format":"qcow2"}"#
        );
    }
}
