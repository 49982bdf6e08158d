//! Disks made from the real Alpine image: as the official one is shaped, and one that boots by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use castra::RuntimeContext;
use castra::cancel::Cancel;
use castra::context::Environment;
use castra::layout::ProjectLayout;
use castra::managed::{Catalog, ImageManager, ManagedImagePaths};
use castra::report::Silent;

use super::tool;

/// The files of the Alpine image that comes where only a Python index is reachable. Fetched once for all tests.
pub(crate) fn alpine() -> ManagedImagePaths {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let environment = Environment::of_process().with("XDG_CACHE_HOME", super::image_cache());
    let context = RuntimeContext::new(environment, Arc::new(Silent), Cancel::new()).expect("a home");
    let catalog = Catalog::builtin();
    let image = catalog.find("alpine-pypi", "v1").expect("is in the catalog");
    let manager = ImageManager::new(&ProjectLayout::unchecked(target.join("alpine")));
    manager.ensure_image(image, &context).expect("the image can be had")
}

/// The image's filesystem on a raw disk of 400 MiB without a partition table, labelled `/`, as the official image is.
pub(crate) fn shrunken_ext4(alpine: &ManagedImagePaths, target: &Path) {
    let path = target.to_str().expect("UTF-8");
    tool("qemu-img", &["convert", "-O", "raw", alpine.disk.to_str().expect("UTF-8"), path]);
    // e2fsck says 1 when it has put something right, such as a journal to replay.
    let check = std::process::Command::new("/sbin/e2fsck").args(["-fy", path]).output().expect("e2fsck runs");
    assert!(check.status.code().is_some_and(|code| code <= 1), "e2fsck: {check:?}");
    tool("resize2fs", &[path, "400M"]);
    tool("e2label", &[path, "/"]);
    fs::OpenOptions::new().write(true).open(target).expect("opened").set_len(400 << 20).expect("cut");
}

/// Appends the 512-byte footer of a VHD, as the Virtual Hard Disk Image Format Specification 1.0 describes it.
pub(crate) fn append_vhd_footer(disk: &Path, disk_type: u32) {
    let size = fs::metadata(disk).expect("metadata").len();
    let mut footer = [0_u8; 512];
    footer[0..8].copy_from_slice(b"conectix");
    footer[8..12].copy_from_slice(&2_u32.to_be_bytes());
    footer[12..16].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
    footer[16..24].copy_from_slice(&u64::MAX.to_be_bytes());
    footer[28..32].copy_from_slice(b"test");
    footer[40..48].copy_from_slice(&size.to_be_bytes());
    footer[48..56].copy_from_slice(&size.to_be_bytes());
    footer[60..64].copy_from_slice(&disk_type.to_be_bytes());
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    let mut file = fs::OpenOptions::new().append(true).open(disk).expect("opened");
    std::io::Write::write_all(&mut file, &footer).expect("written");
}

/// What the self-booting disk runs: brings up the network and answers on port 8000.
const NATIVE_INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
/bin/busybox modprobe virtio_net
/bin/busybox ip link set lo up
/bin/busybox ip link set eth0 up
/bin/busybox ip addr add 10.0.2.15/24 dev eth0
/bin/busybox ip route add default via 10.0.2.2
echo booted by my own loader: $(/bin/busybox cat /proc/cmdline)
exec /bin/busybox nc -lk -p 8000 -e /bin/busybox uname -r
"#;

/// A qcow2 of FAT with syslinux around the image's kernel and initramfs: it boots by its own boot loader.
pub(crate) fn self_booting(alpine: &ManagedImagePaths, directory: &Path) -> PathBuf {
    let at = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
    let (raw, qcow2) = (at("native.raw"), at("native.qcow2"));
    fs::write(at("init.cpio"), cpio("native-init", NATIVE_INIT.as_bytes())).expect("written");
    let config = "SERIAL 0 115200\nDEFAULT linux\nLABEL linux\n  LINUX vmlinuz\n  \
                  INITRD initramfs,init.cpio\n  APPEND console=ttyS0 rdinit=/native-init mode=native\n";
    fs::write(at("syslinux.cfg"), config).expect("written");
    let file = fs::File::create(&raw).expect("created");
    file.set_len(64 << 20).expect("sized");
    tool("mkfs.fat", &["-F", "32", &raw]);
    let text =
        |path: &Option<PathBuf>| path.as_ref().and_then(|path| path.to_str()).expect("UTF-8").to_owned();
    let (kernel, initramfs) = (text(&alpine.kernel), text(&alpine.initramfs));
    tool("mcopy", &["-i", &raw, &kernel, "::vmlinuz"]);
    tool("mcopy", &["-i", &raw, &initramfs, "::initramfs"]);
    tool("mcopy", &["-i", &raw, &at("init.cpio"), "::init.cpio"]);
    tool("mcopy", &["-i", &raw, &at("syslinux.cfg"), "::syslinux.cfg"]);
    tool("syslinux", &["--install", &raw]);
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2]);
    fs::remove_file(raw).expect("removed");
    qcow2.into()
}

/// A newc archive (cpio(5)) of one executable file.
fn cpio(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, content) in [(name, 0o100_755, content), ("TRAILER!!!", 0, &[][..])] {
        let fields = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        fields.iter().for_each(|field| archive.extend(format!("{field:08X}").bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}
