//! Data of a validated project: [`ProjectConfig`], its VMs, their base images, boot profiles and
//! ports.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Diagnostics;
use super::bounds::{Bounds, DiskPath};
use super::cloud_init::CloudInit;
use super::data_disk::DataDisk;
use super::provision::ProvisionStep;
use crate::guest::Mount;
use crate::layout::LOCK_FILE;
use crate::managed::{Catalog, ManagedDiskKind, ManagedImageSpec};
use crate::qemu::CpuModel;
use crate::sockets::Protocol;
use crate::state_root::StateRoot;

/// A validated project: every path absolute, every name safe, every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectConfig {
    /// Configuration file; `None` for the default project of a directory without one.
    pub file: Option<PathBuf>,
    /// Directory of the file, or the working directory. Absolute.
    pub root: PathBuf,
    /// Name of the project.
    pub name: String,
    /// State root: `<root>/.castra` unless `state_dir` is set.
    pub state_root: StateRoot,
    /// Directories in which the configuration may make castra write.
    pub bounds: Arc<Bounds>,
    /// VMs, in the file's order; at least one.
    pub vms: Vec<VmDefinition>,
    /// Images that the user describes, by name.
    pub images: BTreeMap<String, ManagedImageSpec>,
    /// Steps of images, by the images' names. A VM's own have them already.
    pub image_steps: BTreeMap<String, Vec<ProvisionStep>>,
    /// Builds of distributions that the project's `castra.lock` pins, the current one of each name
    /// first.
    pub pinned: Vec<ManagedImageSpec>,
    /// Files of the keys by which publishers of distributions sign, by the publishers' names.
    /// Absolute.
    pub keys: BTreeMap<String, PathBuf>,
    /// Base URLs (https, without a trailing slash) that are asked before an image's own URLs.
    pub mirrors: Vec<String>,
    /// Warnings: unknown keys and the like.
    pub warnings: Diagnostics,
}

impl ProjectConfig {
    /// Returns the images that can be used by name without a description in the file.
    pub fn catalog(&self) -> Catalog {
        Catalog::with_pinned(&self.pinned)
    }

    /// Returns the path of the project's `castra.lock`, which only a project with a file can have.
    pub fn lock_file(&self) -> Option<PathBuf> {
        self.file.as_ref().map(|file| file.with_file_name(LOCK_FILE))
    }
}

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDefinition {
    /// Name: letters, digits, `-`, `_` and `.`; starts with a letter or digit; at most
    /// [`crate::layout::MAX_VM_NAME_BYTES`].
    pub name: String,
    /// Description by the user.
    pub description: Option<String>,
    /// Image on which the disk is based.
    pub base_image: BaseImageSource,
    /// Set if a base image of the user's own may have backing files.
    pub allow_backing_file: bool,
    /// Path of the VM's own disk. Absolute.
    pub overlay: DiskPath,
    /// Number of virtual CPUs, at least 1.
    pub cpus: u32,
    /// CPU model under TCG, instead of the image's.
    pub cpu: Option<CpuModel>,
    /// Memory, in bytes; a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// Virtual size of the disk, in bytes; an overlay is never made smaller than its base.
    pub disk_bytes: u64,
    /// Disks in addition to that one.
    pub data_disks: Vec<DataDisk>,
    /// Boot method. `None` for the kernel of the image or else of the disk, and natively if there
    /// is none.
    pub boot_profile: Option<BootProfile>,
    /// Firmware of a native boot. `None` for the one that the disk is made for.
    pub firmware: Option<Firmware>,
    /// Data for cloud-init in the guest; without it, cloud-init is kept from running.
    pub cloud_init: Option<CloudInit>,
    /// Ports of the host that are forwarded to the VM.
    pub port_forwards: Vec<PortForward>,
    /// `true` if what listens in the VM is forwarded by itself.
    pub auto_forwards: bool,
    /// Directories of the host that the VM sees.
    pub mounts: Vec<DeclaredMount>,
    /// Steps that prepare the disk on which the VM's own is based.
    pub provision: Vec<ProvisionStep>,
    /// Proxies that commands in the VM use.
    pub proxy: Proxy,
}

/// Proxies that commands in a VM have in their environment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// No proxies but those that the guest itself has.
    #[default]
    None,
    /// Proxies of castra's environment, without users and passwords.
    Host,
}

impl Proxy {
    /// Returns the word in castra.toml.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Host => "host",
        }
    }
}

/// A mount that a VM shall have. Whether its directory exists is found out when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredMount {
    /// The directory and its place in the guest. The former is absolute, and may contain links.
    pub mount: Mount,
    /// Source of the declaration.
    pub origin: MountOrigin,
}

/// Source of a mount's declaration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountOrigin {
    /// A file, which may be a stranger's.
    File,
    /// The user, by the command line or a program.
    User,
}

/// Image on which a VM's disk is based.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseImageSource {
    /// A qcow2 of the user's own. Absolute. Never written to.
    Path(PathBuf),
    /// An image that Castra fetches.
    Managed(ManagedImageSelection),
}

/// Selection of a managed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagedImageSelection {
    /// First of the catalog's default images that is cached or reachable; only without a
    /// `castra.toml`.
    Default,
    /// One particular image.
    Exact {
        /// ID, from the catalog or from `[images]`.
        name: String,
        /// Version of the image.
        version: ImageVersion,
        /// Disk of the image.
        disk: ManagedDiskKind,
    },
}

/// Version of a managed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageVersion {
    /// Named by the user.
    Named(String),
    /// Newest that is known, pinned or built in: for new VMs. A VM that exists keeps the version
    /// on which its disk is based.
    Newest(String),
}

impl ImageVersion {
    /// Returns the version as text.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Named(version) | Self::Newest(version) => version,
        }
    }
}

/// Boot method of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootProfile {
    /// With a kernel, its initramfs and command line, and the guest agent: the image's or, if it
    /// has none, the disk's own.
    Managed,
    /// From its disk's own boot loader, as a real machine would.
    Native,
}

/// Firmware that starts a disk's own boot loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// BIOS: QEMU's own.
    Bios,
    /// UEFI: OVMF, with variables that belong to the VM.
    Uefi,
}

impl Firmware {
    /// Returns its name in `castra.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Uefi => "uefi",
        }
    }
}

/// A port of the host that is forwarded to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortForward {
    /// Port on the host, at 127.0.0.1.
    pub host: u16,
    /// Port in the guest.
    pub guest: u16,
    /// Protocol of both ports.
    pub protocol: Protocol,
}
