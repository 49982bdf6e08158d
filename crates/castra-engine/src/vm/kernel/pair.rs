//! Kernel and initramfs of a disk, read from outside.

use std::fmt;
use std::io;
use std::path::Path;

use castra_disk::{Image, Limit, Limits, Source, System};

use crate::cancel::Cancel;
use crate::config::VmDefinition;
use crate::files::sha256_hex;
use crate::guest::{early_modules, modules_archive};
use crate::qemu::{self, CommandLine};
use crate::sanitize::sanitize_text;
use crate::vm::error::VmError;
use crate::vm::record::KernelRecord;

use super::command_line;

/// Part of a VM's memory that kernel and initramfs of a disk may take: unpacked, they are larger.
const MEMORY_SHARE: u64 = 2;

/// Kernel and initramfs of a disk, as they are on it.
pub(super) struct Pair {
    pub(super) kernel: Vec<u8>,
    pub(super) initramfs: Vec<u8>,
    /// Archive of the modules that the agent loads; empty if it needs none.
    pub(super) modules: Vec<u8>,
    pub(super) record: KernelRecord,
    /// Memory of the VM, in bytes.
    pub(super) memory_bytes: u64,
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.record.fmt(f)
    }
}

/// Reason why no kernel was read from a disk: text of the disk, sanitised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoKernel(pub(super) String);

impl NoKernel {
    fn because(reason: impl fmt::Display) -> Self {
        Self(sanitize_text(&reason.to_string()))
    }
}

impl Pair {
    /// Reads kernel and initramfs of the disk at this path, through its whole backing chain. The
    /// inner error is the reason why the disk has none.
    ///
    /// # Errors
    /// [`VmError::Qemu`] for a chain that is refused; [`VmError::Interrupted`].
    pub(super) fn read(
        disk: &Path,
        definition: &VmDefinition,
        cancel: &Cancel,
    ) -> Result<Result<Self, NoKernel>, VmError> {
        let files = qemu::Disk::open(disk)?.open_files()?;
        let found = Image::open(files).map_err(NoKernel::because).and_then(|image| {
            let source = Interruptible { image, cancel: cancel.clone() };
            let limits = Limits::default();
            let kernel_bytes = limits.kernel_bytes.min(definition.memory_bytes / MEMORY_SHARE);
            let limits = Limits { kernel_bytes, ..limits };
            let disk = castra_disk::Disk::open(source, limits).map_err(NoKernel::because)?;
            let system = disk.find_system().map_err(|reason| no_system(&reason, definition))?;
            Self::of_system(system, definition)
        });
        cancel.check()?;
        Ok(found)
    }

    fn of_system(mut system: System, definition: &VmDefinition) -> Result<Self, NoKernel> {
        let unusable = |reason: &str| {
            NoKernel::because(format_args!("{} {}: {reason}", system.rule, system.entry))
        };
        if !qemu::is_linux(&system.kernel) {
            return Err(unusable("its kernel is no Linux kernel for x86"));
        }
        let line: CommandLine =
            system.command_line.as_str().parse().map_err(|_| unusable("it has no command line"))?;
        if let Some(problem) = command_line::problem_of_disk(&line, &definition.port_forwards) {
            return Err(unusable(problem));
        }
        let modules = early_modules(system.kernel_version.as_deref(), &mut system.files);
        let modules = modules_archive(&modules);
        let record = KernelRecord {
            kernel_sha256: sha256_hex(&system.kernel),
            initramfs_sha256: sha256_hex(&system.initramfs),
            modules_sha256: (!modules.is_empty()).then(|| sha256_hex(&modules)),
            command_line: line,
            version: system.kernel_version.as_deref().map(sanitize_text),
            os: sanitize_text(system.os.pretty_name.as_ref().unwrap_or(&system.os.id)),
            rule: system.rule.to_string(),
            entry: sanitize_text(&system.entry),
        };
        let System { kernel, initramfs, .. } = system;
        let memory_bytes = definition.memory_bytes;
        Ok(Self { kernel, initramfs, modules, record, memory_bytes })
    }
}

fn no_system(reason: &castra_disk::NoSystem, definition: &VmDefinition) -> NoKernel {
    let mut text = sanitize_text(&reason.to_string());
    let half = Limit::KernelAndInitramfs(definition.memory_bytes / MEMORY_SHARE);
    if text.contains(&half.to_string()) {
        text.push_str(" (half of the VM's memory)");
    }
    NoKernel(text)
}

/// An image that fails to be read once the operation is interrupted.
pub(super) struct Interruptible {
    pub(super) image: Image,
    pub(super) cancel: Cancel,
}

impl Source for Interruptible {
    fn length(&self) -> u64 {
        self.image.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.cancel.check().map_err(io::Error::other)?;
        self.image.read_at(offset, buffer)
    }
}
