//! Kernel and initramfs of a disk, read from outside.

use std::fmt;

use castra_disk::{Limit, System};

use crate::config::VmDefinition;
use crate::files::sha256_hex;
use crate::guest::{early_modules, modules_archive};
use crate::qemu::{self, CommandLine};
use crate::sanitize::sanitize_text;
use crate::vm::record::KernelRecord;

use super::command_line;

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
    /// Returns what was found on a disk instead, when kernel and initramfs could have this many
    /// bytes.
    pub(super) fn found(reason: &castra_disk::NoSystem, most_bytes: u64) -> Self {
        let mut text = sanitize_text(&reason.to_string());
        if text.contains(&Limit::KernelAndInitramfs(most_bytes).to_string()) {
            text.push_str(" (half of the VM's memory)");
        }
        Self(text)
    }

    pub(super) fn because(reason: impl fmt::Display) -> Self {
        Self(sanitize_text(&reason.to_string()))
    }
}

impl Pair {
    /// Prepares what was read from a disk for a VM.
    pub(super) fn of_system(
        mut system: System,
        definition: &VmDefinition,
    ) -> Result<Self, NoKernel> {
        let unusable = |reason: &str| {
            NoKernel::because(format_args!("{} {}: {reason}", system.rule, system.entry))
        };
        if !qemu::is_linux(&system.kernel) {
            return Err(unusable("its kernel is no Linux kernel for x86"));
        }
        let line: CommandLine =
            system.command_line.as_str().parse().map_err(|_| unusable("it has no command line"))?;
        if let Some(problem) =
            command_line::problem_of_disk(&line, &definition.port_forwards, &definition.data_disks)
        {
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
