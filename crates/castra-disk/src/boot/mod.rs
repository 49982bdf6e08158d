//! Kernel, initramfs and command line that a disk boots.
//!
//! The rules are those of boot loaders, in the order of how much they say: entries of the Boot
//! Loader Specification, GRUB's configuration, extlinux's, unified kernel images, and at last the
//! names of the files. Each rule is applied to every place in which boot loaders keep files; the
//! first entry whose files can all be read wins.

mod bls;
mod candidates;
mod command_line;
mod extlinux;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod grub;
mod inspection;
mod kernel;
mod mounted;
mod no_system;
mod os_release;
mod pe;
mod root;
mod variables;
mod version;

use std::fmt;
use std::sync::Arc;

pub use command_line::{CommandLine, CommandLineError};
pub(crate) use inspection::inspect;
pub use inspection::{Inspection, InstalledSystem, RootKeys, UefiLoader};
pub use no_system::{Attempt, NoSystem};
pub use os_release::OsRelease;
pub use root::RootFilesystem;

use candidates::{Candidate, Files, On};
use mounted::Mounted;

use crate::budget::Metered;
use crate::disk::Volume;
use crate::filesystem::{Fault, Limit};
use crate::tree::FileTree;

/// Largest kernel, in bytes; those of distributions have 8 to 16 MiB.
const MAX_KERNEL_BYTES: u64 = 256 << 20;
/// Largest configuration, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Maximum number of entries that are tried by one rule.
const MAX_CANDIDATES: usize = 16;

/// A system that can be booted with its own kernel.
pub struct System {
    /// Rule that found the kernel.
    pub rule: Rule,
    /// Name of the entry, of the configuration or of the file that said so.
    pub entry: String,
    /// Filesystem of the root.
    pub root: RootFilesystem,
    /// Distribution.
    pub os: OsRelease,
    /// Content of the kernel's file.
    pub kernel: Vec<u8>,
    /// Content of the initramfs; several files are concatenated, as boot loaders do it.
    pub initramfs: Vec<u8>,
    /// Command line of the entry.
    pub command_line: CommandLine,
    /// Version of the kernel, which names its directory of modules; `None` if the kernel has no
    /// header that says so.
    pub kernel_version: Option<String>,
    /// Files of the root filesystem.
    pub files: FileTree,
}

/// Rule by which a kernel was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Rule {
    /// Entry of the Boot Loader Specification.
    BootLoaderSpecification,
    /// `grub.cfg`.
    Grub,
    /// `extlinux.conf` or `syslinux.cfg`.
    Extlinux,
    /// Unified kernel image in `EFI/Linux`.
    UnifiedKernelImage,
    /// Newest kernel with an initramfs, by its name.
    NewestKernel,
}

impl Rule {
    /// All rules in the order in which they are tried.
    const ALL: [Self; 5] = [
        Self::BootLoaderSpecification,
        Self::Grub,
        Self::Extlinux,
        Self::UnifiedKernelImage,
        Self::NewestKernel,
    ];
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BootLoaderSpecification => "boot loader entry",
            Self::Grub => "GRUB's configuration",
            Self::Extlinux => "extlinux's configuration",
            Self::UnifiedKernelImage => "unified kernel image",
            Self::NewestKernel => "newest kernel",
        })
    }
}

/// Finds the system on these volumes.
pub(crate) fn find(volumes: &[Volume], meter: &Arc<Metered>) -> Result<System, NoSystem> {
    let mut failed = NoSystem::of(volumes);
    let mut mounted = Mounted::open(volumes, meter, &mut failed);
    for rule in Rule::ALL {
        for candidate in candidates::find(rule, &mut mounted, &mut failed) {
            match load(&candidate, &mut mounted, Room(meter.kernel_bytes())) {
                Ok(loaded) => return system(rule, candidate, loaded, mounted, failed),
                Err(reason) => failed.attempted(rule, candidate.name, reason),
            }
        }
        failed.exceeded = meter.exceeded();
        if failed.exceeded.is_some() {
            break;
        }
    }
    Err(failed)
}

/// Room for a kernel and its initramfs, in bytes.
#[derive(Clone, Copy)]
struct Room(u64);

impl Room {
    /// Reads a file that is to fit beside `used` bytes.
    fn read(
        self,
        files: &mut FileTree,
        path: &str,
        used: u64,
        most: u64,
    ) -> Result<Vec<u8>, Fault> {
        let left = self.0.saturating_sub(used).min(most);
        files.read_counted(path.as_bytes(), left).map_err(|fault| match fault {
            Fault::TooLarge(Limit::Bytes(bytes)) if bytes < most => {
                Fault::TooLarge(Limit::KernelAndInitramfs(self.0))
            }
            fault => fault,
        })
    }
}

/// Content of an entry's files.
struct Loaded {
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
    command_line: CommandLine,
    version: Option<String>,
    root: usize,
}

fn system(
    rule: Rule,
    candidate: Candidate,
    loaded: Loaded,
    mut mounted: Mounted<'_>,
    mut failed: NoSystem,
) -> Result<System, NoSystem> {
    let root = mounted.trees.swap_remove(loaded.root);
    let Some(os) = root.os else {
        failed.attempted(rule, candidate.name, "it has no root filesystem".to_owned());
        return Err(failed);
    };
    Ok(System {
        rule,
        entry: candidate.name,
        root: RootFilesystem {
            identity: root.identity,
            place: root.volume.place.clone(),
            subvolume: root.subvolume,
        },
        os,
        kernel: loaded.kernel,
        initramfs: loaded.initramfs,
        command_line: loaded.command_line,
        kernel_version: loaded.version,
        files: root.files,
    })
}

/// Reads an entry's files, and finds its root filesystem.
fn load(candidate: &Candidate, mounted: &mut Mounted<'_>, room: Room) -> Result<Loaded, String> {
    let (kernel, initramfs, options, named) = match &candidate.files {
        Files::Separate { on, kernel, initramfs, options } => {
            let (kernel, initramfs) = read_separate(on, kernel, initramfs, mounted, room)?;
            (kernel, initramfs, options.clone(), None)
        }
        Files::Unified { tree, path } => read_unified(*tree, path, mounted, room)?,
    };
    let version = kernel::version_inside(&kernel).or(named);
    let options = options.as_deref().map(CommandLine::parse).transpose();
    let options = options.map_err(|error| error.to_string())?;
    let root = root::find(options.as_ref(), mounted).ok_or("its root filesystem is not there")?;
    let tree = &mounted.trees[root];
    let command_line = match options {
        Some(options) => root::named(options, tree),
        None => root::command_line(tree),
    };
    let command_line = command_line.map_err(|error| error.to_string())?;
    Ok(Loaded { kernel, initramfs, command_line, version, root })
}

/// Reads the files from the first tree of their filesystem that has the kernel.
fn read_separate(
    on: &On,
    kernel: &str,
    initramfs: &[String],
    mounted: &mut Mounted<'_>,
    room: Room,
) -> Result<(Vec<u8>, Vec<u8>), String> {
    let trees = mounted.trees_of(on);
    if trees.is_empty() {
        return Err("its filesystem is not there".to_owned());
    }
    let mut fault = Fault::NotFound;
    for tree in trees {
        let files = &mut mounted.trees[tree].files;
        let content = match room.read(files, kernel, 0, MAX_KERNEL_BYTES) {
            Ok(content) => content,
            Err(Fault::NotFound) => continue,
            Err(other) => {
                fault = other;
                continue;
            }
        };
        let initramfs = concatenate(initramfs, files, content.len() as u64, room)?;
        return Ok((content, initramfs));
    }
    Err(format!("{kernel} {fault}"))
}

/// Reads several archives as one, which is to fit beside a kernel of `used` bytes. The kernel
/// expects each archive at a multiple of four bytes.
fn concatenate(
    paths: &[String],
    files: &mut FileTree,
    used: u64,
    room: Room,
) -> Result<Vec<u8>, String> {
    let mut whole = Vec::new();
    for path in paths {
        whole.resize(whole.len().next_multiple_of(4), 0);
        let content = room.read(files, path, used + whole.len() as u64, u64::MAX);
        let content = content.map_err(|fault| format!("{path} {fault}"))?;
        if whole.is_empty() { whole = content } else { whole.extend(content) }
    }
    if whole.is_empty() { Err("it has no initramfs".to_owned()) } else { Ok(whole) }
}

/// Kernel, initramfs, command line, and the kernel's version as the image names it.
type Unified = (Vec<u8>, Vec<u8>, Option<String>, Option<String>);

fn read_unified(
    tree: usize,
    path: &str,
    mounted: &mut Mounted<'_>,
    room: Room,
) -> Result<Unified, String> {
    let files = &mut mounted.trees[tree].files;
    let image = room.read(files, path, 0, u64::MAX);
    let image = image.map_err(|fault| format!("{path} {fault}"))?;
    let part = |name| {
        pe::section(&image, name).ok_or_else(|| format!("{path} has no valid section {name}"))
    };
    let text = |name| {
        let bytes = pe::section(&image, name)?;
        Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').trim().to_owned())
    };
    let (kernel, initramfs) = (part(".linux")?.to_vec(), part(".initrd")?.to_vec());
    let version = text(".uname").and_then(|text| kernel::version_name(text.as_bytes()));
    Ok((kernel, initramfs, text(".cmdline"), version))
}
