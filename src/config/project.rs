//! Data of a validated project: [`ProjectConfig`], its VMs, their base images, boot profiles and
//! ports.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Diagnostics;
use super::bounds::{Bounds, DiskPath};
use crate::managed::{ManagedDiskKind, ManagedImageSpec};
use crate::qemu::CpuModel;
use crate::sockets::Protocol;
use crate::state_root::StateRoot;

/// A project, validated: every path absolute, every name safe, every default filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct ProjectConfig {
    /// The file it came from; nothing for the project that is synthesised where there is no file.
    pub file: Option<PathBuf>,
    /// The directory that holds the file (or the working directory). Absolute.
    pub root: PathBuf,
    /// Name of the project.
    pub name: String,
    /// Where everything is kept: `<root>/.castra` unless `state_dir` says otherwise.
    pub state_root: StateRoot,
    /// Directories in which the configuration may make castra write.
    pub bounds: Arc<Bounds>,
    /// The VMs, in the file's order; at least one.
    pub vms: Vec<VmDefinition>,
    /// Images the user describes, by name.
    pub images: BTreeMap<String, ManagedImageSpec>,
    /// Base URLs (https, no slash at the end) that are asked before an image's own URLs.
    pub mirrors: Vec<String>,
    /// What is odd but stops nothing: unknown keys.
    pub warnings: Diagnostics,
}

/// One VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDefinition {
    /// Its name: letters, digits, `-`, `_` and `.`; starts with a letter or digit; at most
    /// [`crate::layout::MAX_VM_NAME_BYTES`].
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// What its disk stands on.
    pub base_image: BaseImageSource,
    /// Whether a base image of the user's own may name other files that it stands on.
    pub allow_backing_file: bool,
    /// Its own disk. Absolute.
    pub overlay: DiskPath,
    /// Virtual CPUs, at least 1.
    pub cpus: u32,
    /// CPU model under TCG, in the place of the image's.
    pub cpu: Option<CpuModel>,
    /// Memory, in bytes; whole MiB.
    pub memory_bytes: u64,
    /// Virtual size of the disk, in bytes; an overlay is never made smaller than its base.
    pub disk_bytes: u64,
    /// How it boots.
    pub boot_profile: BootProfile,
    /// Ports of the host that lead into it.
    pub port_forwards: Vec<PortForward>,
}

/// What a VM's disk stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseImageSource {
    /// A qcow2 of the user's own. Absolute. Never written to.
    Path(PathBuf),
    /// An image that Castra fetches.
    Managed(ManagedImageSelection),
}

/// Which managed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagedImageSelection {
    /// The first of the catalog's default images that is cached or reachable; only where there is no `castra.toml`.
    Default,
    /// This one and no other.
    Exact {
        /// Its id, from the catalog or from `[images]`.
        name: String,
        /// Its version.
        version: String,
        /// Which of its disks.
        disk: ManagedDiskKind,
    },
}

/// How a VM boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootProfile {
    /// With the image's kernel, initramfs and command line, and the guest agent.
    Managed,
    /// From its disk's own boot loader, as a real machine would.
    Native,
}

/// A port of the host that leads into a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortForward {
    /// Port on 127.0.0.1 of the host.
    pub host: u16,
    /// Port of the guest.
    pub guest: u16,
    /// Protocol of both.
    pub protocol: Protocol,
}
