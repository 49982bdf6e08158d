//! An image shaped like the official one: a fixed VHD that is one ext4 filesystem, made by tools
//! and small.

use std::path::Path;
use std::process::Command;

use castra_engine::managed::{
    ArtifactRole, ArtifactSource, ManagedArtifactSpec, ManagedImageSpec, TransformStep,
};

use crate::images::fixture::{convert, disk_image, payload, profile, sha256};

pub(crate) const MIB: usize = 1024 * 1024;

/// Runs a tool that the tests need.
pub(crate) fn tool(program: &str, arguments: &[&str], last: &Path) {
    let output = Command::new(program).args(arguments).arg(last).output().expect("is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the start of a kernel, as far as it is checked before booting, followed by other bytes.
pub(crate) fn kernel() -> Vec<u8> {
    let mut bytes = payload(40 * 1024);
    bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes
}

/// Returns a disk that is one ext4 filesystem with a kernel and an initramfs in `/boot`.
pub(crate) fn ext4_disk(directory: &Path) -> Vec<u8> {
    let boot = directory.join("tree/boot");
    std::fs::create_dir_all(&boot).expect("a directory");
    std::fs::write(boot.join("vmlinuz-virt"), kernel()).expect("writes");
    std::fs::write(boot.join("initramfs-virt"), b"070701 not really").expect("writes");
    std::os::unix::fs::symlink("vmlinuz-virt", boot.join("vmlinuz")).expect("links");
    let disk = directory.join("disk.raw");
    let tree = directory.join("tree");
    std::fs::File::create(&disk).and_then(|file| file.set_len(8 * MIB as u64)).expect("a file");
    let tree = tree.to_str().expect("is UTF-8");
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", tree], &disk);
    std::fs::read(disk).expect("reads")
}

/// Returns the footer of a VHD, as far as it is read.
pub(crate) fn footer(disk_type: u32) -> [u8; 512] {
    let mut footer = [0; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[60..64].copy_from_slice(&disk_type.to_be_bytes());
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

pub(crate) fn artifact(
    role: ArtifactRole,
    bytes: &[u8],
    url: &str,
    pipeline: Vec<TransformStep>,
) -> ManagedArtifactSpec {
    ManagedArtifactSpec {
        role,
        source: ArtifactSource::Url(vec![url.to_owned()]),
        digest: sha256(bytes),
        size_bytes: Some(bytes.len() as u64),
        pipeline,
        product_digest: None,
    }
}

pub(crate) fn extract(file: &str) -> TransformStep {
    TransformStep::ExtractFile { path: format!("/boot/{file}") }
}

/// Returns an image made like `alpine-minimal`: everything from one VHD.
pub(crate) fn vhd_image(vhd: &[u8], url: &str) -> ManagedImageSpec {
    let made = |role, step| artifact(role, vhd, url, vec![TransformStep::StripVhdFooter, step]);
    let mut image = disk_image(vhd, &[]);
    image.artifacts = vec![
        made(ArtifactRole::Rootfs, convert("raw")),
        made(ArtifactRole::Kernel, extract("vmlinuz")),
        made(ArtifactRole::Initramfs, extract("initramfs-virt")),
    ];
    image.profile = profile(Some("root=/dev/vda"));
    image
}
