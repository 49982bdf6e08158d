//! Boot loaders that firmware finds on a disk, and the ways into the system that they start.

use std::io;

use super::mounted::{Mounted, MountedTree};
use super::no_system::NoSystem;
use super::os_release::OsRelease;
use crate::disk::Disk;
use crate::filesystem::Fault;
use crate::signature::{Content, Kind};
use crate::source::read_up_to;
use crate::tree::FileTree;

/// Sector that a BIOS loads, the part of it that is code, and the signature at its end.
const SECTOR_BYTES: usize = 512;
const CODE_BYTES: usize = 440;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Loader that UEFI starts without an entry in its variables (UEFI specification 2.10, section
/// 3.5.1.1).
const DEFAULT_LOADER: &str = "/EFI/BOOT/BOOTX64.EFI";
/// Directory with the loaders of systems, each in a directory of its own.
const LOADERS: &str = "/EFI";
/// Maximum number of those directories that are searched.
const MAX_LOADER_DIRECTORIES: usize = 64;
/// Directories of systemd's library, whose name has the version.
const SYSTEMD: [&str; 5] = [
    "/usr/lib/systemd",
    "/lib/systemd",
    "/usr/lib/x86_64-linux-gnu/systemd",
    "/lib/x86_64-linux-gnu/systemd",
    "/usr/lib64/systemd",
];
const SYSTEMD_LIBRARY: &[u8] = b"libsystemd-shared-";
const CLOUD_INIT: [&str; 2] = ["/usr/bin/cloud-init", "/usr/local/bin/cloud-init"];
const SSH_SERVERS: [&str; 4] =
    ["/usr/sbin/sshd", "/usr/bin/sshd", "/usr/local/sbin/sshd", "/usr/sbin/dropbear"];
/// Directory with the host keys of OpenSSH's server.
const HOST_KEYS: &str = "/etc/ssh";
const ROOT_KEYS: &str = "/root/.ssh/authorized_keys";
/// Largest such file that is read.
const MAX_KEYS_BYTES: u64 = 256 << 10;

/// Boot loaders that firmware finds on a disk, and the ways into its system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// True if the first sector holds code, which a BIOS runs.
    pub has_boot_code: bool,
    /// True if the partition table has a place for the rest of a boot loader for a BIOS: a GPT
    /// marks it, other tables cannot.
    pub has_place_for_bios: bool,
    /// True if there is an EFI system partition.
    pub has_efi_partition: bool,
    /// Loader for UEFI, on any FAT filesystem.
    pub loader: Option<UefiLoader>,
    /// System on the disk; `None` if no root filesystem can be read.
    pub system: Option<InstalledSystem>,
}

/// Boot loader for UEFI. The path is the disk's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UefiLoader {
    /// The one that firmware starts by itself.
    Default,
    /// Another one, which firmware starts only if its variables have an entry for it.
    Other(String),
}

/// A system as it was installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledSystem {
    /// Distribution.
    pub os: OsRelease,
    /// Version of systemd; `None` without systemd.
    pub systemd: Option<u32>,
    /// True if cloud-init is installed.
    pub has_cloud_init: bool,
    /// True if an SSH server is installed.
    pub has_ssh_server: bool,
    /// True if OpenSSH's server has host keys.
    pub has_host_keys: bool,
    /// Keys by which root may log in.
    pub root_keys: RootKeys,
}

/// File with the keys by which root may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootKeys {
    /// There is no such file.
    Missing,
    /// Content of the file.
    Known(Vec<u8>),
    /// The file cannot be read.
    Unreadable,
}

/// Inspects a disk.
pub(crate) fn inspect(disk: &Disk) -> io::Result<Inspection> {
    let sector = read_up_to(disk.meter.as_ref(), 0, SECTOR_BYTES)?;
    let code = sector.get(..CODE_BYTES).unwrap_or_default();
    let mut failed = NoSystem::of(disk.volumes());
    let mut mounted = Mounted::open(disk.volumes(), &disk.meter, &mut failed);
    let is_vfat = |tree: &&mut MountedTree<'_>| match &tree.volume.content {
        Content::Filesystem(identity) => identity.kind == Kind::Vfat,
        _ => false,
    };
    let loaders = mounted.trees.iter_mut().filter(is_vfat);
    let loaders: Vec<UefiLoader> = loaders.filter_map(|tree| loader_in(&mut tree.files)).collect();
    let default = loaders.iter().find(|loader| **loader == UefiLoader::Default);
    let root = mounted.trees.iter_mut().find(|tree| tree.os.is_some());
    Ok(Inspection {
        has_boot_code: sector.ends_with(&SIGNATURE) && code.iter().any(|byte| *byte != 0),
        has_place_for_bios: disk.has_place_for_bios,
        has_efi_partition: disk.has_efi_partition,
        loader: default.or(loaders.first()).cloned(),
        system: root.and_then(system_of),
    })
}

fn loader_in(files: &mut FileTree) -> Option<UefiLoader> {
    if files.has_counted(DEFAULT_LOADER) {
        return Some(UefiLoader::Default);
    }
    let directories = files.list_counted(LOADERS.as_bytes()).ok()?;
    for directory in directories.into_iter().take(MAX_LOADER_DIRECTORIES) {
        let path = format!("{LOADERS}/{}", String::from_utf8_lossy(&directory.name));
        let Ok(entries) = files.list_counted(path.as_bytes()) else { continue };
        let loader = entries.into_iter().find(|entry| {
            entry.name.len() > 4 && entry.name.to_ascii_lowercase().ends_with(b".efi")
        });
        if let Some(loader) = loader {
            let name = String::from_utf8_lossy(&loader.name).into_owned();
            return Some(UefiLoader::Other(format!("{path}/{name}")));
        }
    }
    None
}

fn system_of(tree: &mut MountedTree<'_>) -> Option<InstalledSystem> {
    let (os, files) = (tree.os.clone()?, &mut tree.files);
    let mut has_any = |paths: &[&str]| paths.iter().any(|path| files.has_counted(path));
    let (has_cloud_init, has_ssh_server) = (has_any(&CLOUD_INIT), has_any(&SSH_SERVERS));
    Some(InstalledSystem {
        os,
        systemd: systemd_version(files),
        has_cloud_init,
        has_ssh_server,
        has_host_keys: names_in(files, HOST_KEYS)
            .any(|name| name.starts_with(b"ssh_host_") && name.ends_with(b"_key")),
        root_keys: match files.read_counted(ROOT_KEYS.as_bytes(), MAX_KEYS_BYTES) {
            Ok(keys) => RootKeys::Known(keys),
            Err(Fault::NotFound) => RootKeys::Missing,
            Err(_) => RootKeys::Unreadable,
        },
    })
}

fn systemd_version(files: &mut FileTree) -> Option<u32> {
    SYSTEMD
        .iter()
        .find_map(|directory| names_in(files, directory).find_map(|name| version_of_library(&name)))
}

/// Returns the version in `libsystemd-shared-252.so` or `libsystemd-shared-256.7-1.fc41.so`.
fn version_of_library(name: &[u8]) -> Option<u32> {
    let version = name.strip_prefix(SYSTEMD_LIBRARY)?;
    let digits: Vec<u8> = version.iter().copied().take_while(u8::is_ascii_digit).collect();
    String::from_utf8(digits).ok()?.parse().ok()
}

fn names_in(files: &mut FileTree, directory: &str) -> impl Iterator<Item = Vec<u8>> + use<> {
    let entries = files.list_counted(directory.as_bytes()).unwrap_or_default();
    entries.into_iter().map(|entry| entry.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_systemd_is_in_the_name_of_its_library() {
        for (name, version) in [
            ("libsystemd-shared-252.so", Some(252)),
            ("libsystemd-shared-256.7-1.fc41.so", Some(256)),
            ("libsystemd-shared-.so", None),
            ("libsystemd-shared-99999999999.so", None),
            ("libsystemd-core-252.so", None),
        ] {
            assert_eq!(version_of_library(name.as_bytes()), version, "{name}");
        }
    }
}
