//! Boot loaders that firmware finds on a disk, and the ways into its system.

use std::fs;
use std::path::{Path, PathBuf};

use castra_disk::{Inspection, InstalledSystem, Kind, RootKeys, UefiLoader};
use castra_test_support::tool;

use crate::made::{self, GPT, MBR, text, write_at};

/// Writes a file and the directories above it.
fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a directory")).expect("directories");
    fs::write(path, content).expect("written");
}

/// Parts of a disk in the making.
struct Parts {
    directory: tempfile::TempDir,
}

impl Parts {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes a disk of a FAT filesystem with this loader and a root, and sets the type of the
    /// first partition.
    fn disk(&self, label: &str, loader: Option<&str>, kind: Option<&str>) -> PathBuf {
        let (esp, root) = (self.at("esp"), self.at("root"));
        fs::create_dir_all(esp.join("EFI")).expect("a directory");
        if let Some(loader) = loader {
            write(&esp, loader, "MZ");
        }
        made::system(&root);
        let esp = made::filesystem(Kind::Vfat, &esp, &self.at("esp.image"));
        let root = made::filesystem(Kind::Ext4, &root, &self.at("root.image"));
        let disk = made::partitioned(label, &[&esp, &root], &self.at("disk"));
        if let Some(kind) = kind {
            tool("sfdisk", &["--quiet", "--no-reread", "--part-type", text(&disk), "1", kind]);
        }
        disk
    }
}

fn inspect(disk: &Path) -> Inspection {
    made::disk(disk).inspect().expect("inspected")
}

#[test]
fn a_boot_loader_for_uefi_is_found_on_any_fat_filesystem() {
    let parts = Parts::new();
    let disk = parts.disk(GPT, Some("EFI/BOOT/BOOTX64.EFI"), Some("uefi"));
    let found = inspect(&disk);
    assert_eq!(found.loader, Some(UefiLoader::Default));
    assert!(found.has_efi_partition && !found.has_boot_code && !found.has_place_for_bios);
    // Code that nothing continues, as some partitioning programs leave it.
    write_at(&disk, 0, &[0xfa]);
    let found = inspect(&disk);
    assert!(found.has_boot_code && !found.has_place_for_bios);

    let parts = Parts::new();
    let found = inspect(&parts.disk(MBR, Some("efi/boot/bootx64.efi"), None));
    assert_eq!(found.loader, Some(UefiLoader::Default), "in lower case, of any type");
    assert!(!found.has_efi_partition && found.has_place_for_bios);
    let parts = Parts::new();
    let found = inspect(&parts.disk(MBR, Some("EFI/debian/grubx64.efi"), Some("ef")));
    assert_eq!(found.loader, Some(UefiLoader::Other("/EFI/debian/grubx64.efi".to_owned())));
    assert!(found.has_efi_partition);
    let parts = Parts::new();
    let found = inspect(&parts.disk(GPT, None, Some("linux")));
    assert_eq!((found.loader, found.has_efi_partition), (None, false));
}

#[test]
fn a_gpt_says_where_a_bios_continues() {
    const BIOS_BOOT: &str = "21686148-6449-6E6F-744E-656564454649";
    let parts = Parts::new();
    let disk = parts.disk(GPT, None, Some(BIOS_BOOT));
    assert!(inspect(&disk).has_place_for_bios);
    let parts = Parts::new();
    let disk = parts.disk(GPT, None, None);
    assert!(!inspect(&disk).has_place_for_bios);
    let attributes = [text(&disk), "2", "LegacyBIOSBootable"];
    tool("sfdisk", &[&["--quiet", "--no-reread", "--part-attrs"], &attributes[..]].concat());
    assert!(inspect(&disk).has_place_for_bios);
}

/// Inspects a system with these files.
fn system(files: &[(&str, &str)]) -> InstalledSystem {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("root");
    made::system(&root);
    for (path, content) in files {
        write(&root, path, content);
    }
    let image = made::filesystem(Kind::Ext4, &root, &directory.path().join("image"));
    inspect(&image).system.expect("a system")
}

#[test]
fn the_ways_into_a_system_are_found() {
    let found = system(&[]);
    assert_eq!(found.os.id, "debian");
    assert_eq!((found.systemd, found.root_keys), (None, RootKeys::Missing));
    assert!(!found.has_cloud_init && !found.has_ssh_server && !found.has_host_keys);

    let found = system(&[
        ("usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so", ""),
        ("usr/bin/cloud-init", ""),
        ("usr/sbin/sshd", ""),
        ("etc/ssh/ssh_host_ed25519_key", ""),
        ("root/.ssh/authorized_keys", "ssh-ed25519 A me\n"),
    ]);
    assert_eq!(found.systemd, Some(252));
    assert_eq!(found.root_keys, RootKeys::Known(b"ssh-ed25519 A me\n".to_vec()));
    assert!(found.has_cloud_init && found.has_ssh_server && found.has_host_keys);

    let large = "x".repeat(300 << 10);
    let found = system(&[
        ("usr/lib/systemd/libsystemd-shared-256.7-1.fc41.so", ""),
        ("etc/ssh/ssh_host_ed25519_key.pub", ""),
        ("root/.ssh/authorized_keys", &large),
    ]);
    assert_eq!((found.systemd, found.root_keys), (Some(256), RootKeys::Unreadable));
    assert!(!found.has_host_keys, "a public key alone");
}
