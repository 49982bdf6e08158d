//! Kernel and initramfs that were read from a VM's disk.

use serde::{Deserialize, Serialize};

use crate::qemu::CommandLine;

/// Kernel and initramfs that were read from a VM's disk. The text is the disk's own, sanitised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// SHA-256 of the kernel, in hexadecimal.
    pub kernel_sha256: String,
    /// SHA-256 of the initramfs, without the agent, in hexadecimal.
    pub initramfs_sha256: String,
    /// SHA-256 of the archive of modules for the agent, in hexadecimal, if it needs any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_sha256: Option<String>,
    /// Command line of the boot loader's entry.
    pub command_line: CommandLine,
    /// Version of the kernel, such as `6.1.0-13-amd64`; `None` if it names none.
    #[serde(default)]
    pub version: Option<String>,
    /// Distribution, such as `Debian GNU/Linux 12 (bookworm)`.
    #[serde(default)]
    pub os: String,
    /// Rule of boot loaders that found the kernel, such as `GRUB's configuration`.
    #[serde(default)]
    pub rule: String,
    /// Entry of that configuration.
    #[serde(default)]
    pub entry: String,
}

impl KernelRecord {
    /// Returns `true` if another kernel boots in the same way: with the same files and the same
    /// command line.
    pub(in crate::vm) fn boots_as(&self, other: &Self) -> bool {
        let key = |one: &Self| {
            (one.kernel_sha256.clone(), one.initramfs_sha256.clone(), one.command_line.clone())
        };
        key(self) == key(other)
    }

    /// Returns the digests of its files.
    pub(in crate::vm) fn digests(&self) -> impl Iterator<Item = &str> {
        let modules = self.modules_sha256.as_deref();
        [self.kernel_sha256.as_str(), &self.initramfs_sha256].into_iter().chain(modules)
    }

    /// Returns its name in a sentence.
    pub(in crate::vm) fn title(&self) -> String {
        match &self.version {
            Some(version) => format!("Linux {version}"),
            None => format!("the kernel of `{}`", self.entry),
        }
    }
}
