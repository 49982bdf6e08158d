//! Description of a managed image: its files, where they come from, and the steps from a source to each of them.

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
    /// Its id: a safe file name.
    pub id: String,
    /// Its version: a safe file name.
    pub version: String,
    /// One line about it.
    pub description: String,
    /// Its files. Exactly one is the disk; kernel and initramfs come together or not at all.
    pub artifacts: Vec<ManagedArtifactSpec>,
    /// How QEMU is to run it.
    pub profile: QemuProfile,
}

impl ManagedImageSpec {
    /// The image's label in events and messages.
    pub fn label(&self) -> ImageLabel {
        ImageLabel { id: self.id.clone(), version: self.version.clone() }
    }
}

/// One file of an image. Artifacts that name the same source share one download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ManagedArtifactSpec {
    /// What the file is for; also decides its final name.
    pub role: ArtifactRole,
    /// Where its bytes come from.
    pub source: ArtifactSource,
    /// Digest of the bytes as they come.
    pub digest: Digest,
    /// Their number, if it is pinned too.
    pub size_bytes: Option<u64>,
    /// From those bytes to the file, in order.
    pub pipeline: Vec<TransformStep>,
    /// SHA-256 of the final file, where it does not depend on the version of a tool.
    pub product_digest: Option<Digest>,
}

/// What a file of an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
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
    /// The name of its file in an image's directory.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Rootfs => layout::ROOTFS,
            Self::Kernel => layout::KERNEL,
            Self::Initramfs => layout::INITRAMFS,
        }
    }
}

/// As in events and messages: `rootfs`, `kernel`, `initramfs`.
impl fmt::Display for ArtifactRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rootfs => "rootfs",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
        })
    }
}

/// Which disk of an image a VM stands on. There is one so far; the key exists so that files stay valid when more come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ManagedDiskKind {
    /// The root filesystem.
    #[default]
    Rootfs,
}

/// Where bytes come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactSource {
    /// `https://` (or `http://`, which the pinned digest makes safe) URLs of the same bytes, tried in order.
    Url(Vec<String>),
    /// A file of a Python package, fetched by `pip download`, which brings the user's own index and proxy settings.
    PythonPackage {
        /// The package's name.
        name: String,
        /// Its exact version.
        version: String,
        /// `--platform` tag of the wheel, for instance `manylinux_2_17_x86_64`; nothing for a pure one.
        platform: Option<String>,
    },
    /// A file on this machine. Absolute.
    Path(PathBuf),
}

/// One step from the bytes of a source to a file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum TransformStep {
    /// Take the 512-byte footer off a *fixed* VHD, leaving the raw disk. A dynamic one is refused: convert it from `vpc`.
    StripVhdFooter,
    /// `qemu-img convert`.
    QemuImgConvert {
        /// Format of the input.
        input_format: DiskFormat,
        /// Format of the output.
        output_format: DiskFormat,
    },
    /// Take one file out of a raw disk that is one ext4 filesystem.
    ExtractFile {
        /// Absolute path inside the filesystem; symbolic links are followed inside it.
        path: String,
    },
    /// Take one member out of a ZIP archive (a wheel is one).
    Unzip {
        /// The member's exact name.
        member: String,
    },
    /// Decompress.
    Decompress {
        /// The format.
        format: Compression,
    },
    /// Give the file this name before the next step; the final name comes from the artifact's role all the same.
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

/// How QEMU is to run an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QemuProfile {
    /// The kernel's command line; nothing for an image without a kernel, which boots natively.
    pub command_line: Option<CommandLine>,
    /// The machine, as QEMU's `-machine` takes it.
    pub machine: MachineType,
    /// CPU model under TCG. Under kvm and hvf it is `host`.
    pub tcg_cpu: CpuModel,
    /// Memory below which the image does not boot, in MiB.
    pub min_memory_mib: u64,
    /// Further devices, as QEMU's `-device` takes them, for instance `virtio-rng-pci`.
    pub devices: Vec<Device>,
}

/// As in events and messages: the first URL, the Python requirement or the path.
impl fmt::Display for ArtifactSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(urls) => f.write_str(urls.first().map_or("", String::as_str)),
            Self::PythonPackage { name, version, .. } => write!(f, "Python package {name}=={version}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Where the files of an image are, once they are there and verified.
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
    /// Digests of descriptions are made over this text, and manifests keep them.
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
