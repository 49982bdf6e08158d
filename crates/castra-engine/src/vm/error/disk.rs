//! Errors of a VM's disk and of what it is based on.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::OutOfBounds;
use crate::error::{Explain, Kind};
use crate::qemu::options::UserArguments;
use crate::qemu::{QemuError, QmpError, Unbootable};
use crate::size::ByteSize;

/// Error of a VM's disk, its base image or a layer between them.
#[derive(Debug, thiserror::Error)]
pub enum VmDiskError {
    /// The disk is where castra must not write.
    #[error("invalid location for the disk of VM `{vm}`: {problem}")]
    OutOfBounds {
        /// The VM.
        vm: String,
        /// The reason.
        problem: Box<OutOfBounds>,
    },
    /// The VM's disk is based on another image than the configuration now names.
    #[error("the disk of VM `{vm}` is based on {recorded}, but castra.toml now names {wanted}")]
    ImageChanged {
        /// The VM.
        vm: String,
        /// Image that the disk is based on.
        recorded: String,
        /// Image that the configuration names.
        wanted: String,
    },
    /// Nothing describes the build of a distribution on which the VM's disk is based.
    #[error(
        "the disk of VM `{vm}` is based on {recorded}, which neither castra.lock nor this castra \
        describes"
    )]
    BuildUnknown {
        /// The VM.
        vm: String,
        /// Image that the disk is based on.
        recorded: String,
    },
    /// The base image of a disk is missing.
    #[error("the base image of VM `{vm}` is missing: {}", base.display())]
    BaseMissing {
        /// The VM.
        vm: String,
        /// The base image.
        base: PathBuf,
        /// The disk that is based on it, if there is one.
        overlay: Option<PathBuf>,
    },
    /// The base image is a FIFO, a device, a socket or a directory.
    #[error("the base image of VM `{vm}` is not a regular file: {}", base.display())]
    BaseNotAFile {
        /// The VM.
        vm: String,
        /// Path of the base image.
        base: PathBuf,
    },
    /// The base image of a disk has changed.
    #[error("the base image of VM `{vm}` is not the one its disk is based on: {}", base.display())]
    BaseChanged {
        /// The VM.
        vm: String,
        /// The base image.
        base: PathBuf,
        /// The disk.
        overlay: PathBuf,
    },
    /// Nothing proves that a layer is the one a disk was created on.
    #[error(
        "the size or modification time of layer {} of VM `{vm}` differs from its record, in which \
        an earlier castra kept no digest",
        layer.display()
    )]
    LayerUnproven {
        /// The VM.
        vm: String,
        /// The layer.
        layer: PathBuf,
    },
    /// The VM had a disk, and its file is gone.
    #[error("the disk of VM `{vm}` is gone: {}", disk.display())]
    Gone {
        /// The VM.
        vm: String,
        /// Path of the disk.
        disk: PathBuf,
    },
    /// The configuration names another file than the VM's disk, and that file does not exist.
    #[error(
        "the disk of VM `{vm}` is {}, but castra.toml now names {}, which does not exist",
        disk.display(), wanted.display()
    )]
    Renamed {
        /// The VM.
        vm: String,
        /// The disk.
        disk: PathBuf,
        /// Path that the configuration names.
        wanted: PathBuf,
    },
    /// The file of the VM's disk holds no disk of Castra's, or only a part of one.
    #[error("the disk of VM `{vm}` is damaged: {} {reason}", disk.display())]
    Damaged {
        /// The VM.
        vm: String,
        /// The disk.
        disk: PathBuf,
        /// The reason, which completes the sentence.
        reason: String,
    },
    /// The disk has another backing file than expected.
    #[error(
        "the disk {} of VM `{vm}` has backing file {}, expected {}",
        overlay.display(), found.display(), expected.display()
    )]
    ForeignOverlay {
        /// The VM.
        vm: String,
        /// The disk.
        overlay: PathBuf,
        /// Backing file that the disk has.
        found: PathBuf,
        /// Backing file that it should have.
        expected: PathBuf,
    },
    /// The project was copied while its VM wrote to its disk.
    #[error("the disk of VM `{vm}` changed while it was copied, so its tables are inconsistent: \
        {}", disk.display())]
    CopyTorn {
        /// The VM.
        vm: String,
        /// Path of the disk.
        disk: PathBuf,
        /// Directory of the project that was copied.
        original: PathBuf,
    },
    /// The boot disk of a VM has nothing that its BIOS can boot.
    #[error(
        "the disk of VM `{vm}` cannot be booted: {}{}",
        unbootable(disk, *reason), besides(found.as_deref())
    )]
    Unbootable {
        /// The VM.
        vm: String,
        /// The disk.
        disk: PathBuf,
        /// The reason.
        reason: Unbootable,
        /// Contents in which no kernel was found, if one was looked for.
        found: Option<String>,
    },
    /// A file under the name of a disk is not one.
    #[error("{} is not a disk of yours; it was not removed", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A disk to be removed or resized is in use.
    #[error("the disk {} is in use; it was not changed", path.display())]
    InUse {
        /// The disk.
        path: PathBuf,
    },
    /// The wanted size is smaller than the disk.
    #[error("the disk of VM `{vm}` has {has} and cannot shrink to {wanted}")]
    Shrinking {
        /// The VM.
        vm: String,
        /// Size of the disk.
        has: ByteSize,
        /// Wanted size.
        wanted: ByteSize,
    },
    /// A data disk that the VM had is not there.
    #[error("disk `{name}` of VM `{vm}` is gone: {}", disk.display())]
    DataGone {
        /// The VM.
        vm: String,
        /// Name of the disk.
        name: String,
        /// Path of the disk.
        disk: PathBuf,
    },
    /// The file of a data disk holds no disk.
    #[error("disk `{name}` of VM `{vm}` is damaged: {}", disk.display())]
    DataDamaged {
        /// The VM.
        vm: String,
        /// Name of the disk.
        name: String,
        /// Path of the disk.
        disk: PathBuf,
        /// The reason.
        source: Box<QemuError>,
    },
    /// A data disk is larger than declared.
    #[error("disk `{name}` of VM `{vm}` has {has} and cannot shrink to {wanted}")]
    DataShrinking {
        /// The VM.
        vm: String,
        /// Name of the disk.
        name: String,
        /// Size of the disk.
        has: ByteSize,
        /// Declared size.
        wanted: ByteSize,
    },
    /// There is no data disk of this name.
    #[error("there is no disk `{name}` to remove")]
    NoDataDisk {
        /// The name.
        name: String,
        /// Names of disks that there are.
        known: Vec<String>,
    },
    /// A clone would replace a data disk that an earlier VM of its name has left.
    #[error("VM `{vm}` cannot get disk `{name}`: {} is there already", disk.display())]
    DataThere {
        /// The VM.
        vm: String,
        /// Name of the disk.
        name: String,
        /// Path of the disk.
        disk: PathBuf,
    },
    /// The wanted size is one that filesystems cannot grow to.
    #[error("cannot resize the disk of VM `{vm}` to {wanted}: the limit is {most}")]
    TooLarge {
        /// The VM.
        vm: String,
        /// Wanted size.
        wanted: ByteSize,
        /// Largest size.
        most: ByteSize,
    },
    /// QEMU has not resized the disk of a running VM.
    #[error("cannot resize the disk of VM `{vm}`")]
    NotResized {
        /// The VM.
        vm: String,
        /// The reason.
        source: QmpError,
    },
}

impl Explain for VmDiskError {
    fn kind(&self) -> Kind {
        match self {
            Self::OutOfBounds { problem, .. } => problem.kind(),
            Self::BaseMissing { .. } | Self::Gone { .. } | Self::DataGone { .. } => Kind::NotFound,
            Self::NoDataDisk { .. } => Kind::NotFound,
            Self::DataThere { .. } => Kind::CannotCreate,
            Self::InUse { .. } => Kind::Busy,
            Self::Shrinking { .. } | Self::TooLarge { .. } => Kind::Usage,
            Self::NotResized { .. } => Kind::Unavailable,
            Self::ImageChanged { .. }
            | Self::BuildUnknown { .. }
            | Self::BaseNotAFile { .. }
            | Self::BaseChanged { .. }
            | Self::LayerUnproven { .. }
            | Self::Renamed { .. }
            | Self::Damaged { .. }
            | Self::ForeignOverlay { .. }
            | Self::CopyTorn { .. }
            | Self::Unbootable { .. }
            | Self::DataDamaged { .. }
            | Self::DataShrinking { .. }
            | Self::NotADisk { .. } => Kind::Data,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::OutOfBounds { problem, .. } => return problem.hint(),
            Self::ImageChanged { vm, .. } => format!(
                "Name the old image again, or use the new one for a VM with another name. To give \
                 up the disk of `{vm}`: castra down {vm} && castra clean --disks {vm}"
            ),
            Self::BuildUnknown { vm, .. } => format!(
                "Restore the entry of that build in castra.lock from your version control. To give \
                 up the disk of `{vm}`: castra down {vm} && castra clean --disks {vm}"
            ),
            Self::BaseMissing { vm, overlay: Some(overlay), .. } => format!(
                "Put the file back where it was. If the data of `{vm}` in {} may go: castra clean \
                --disks {vm}, and name another base_image.",
                overlay.display()
            ),
            Self::BaseMissing { overlay: None, .. } => {
                "base_image in castra.toml must name an existing qcow2 file.".into()
            }
            Self::BaseNotAFile { .. } => "Name a qcow2 file in `base_image`.".into(),
            Self::BaseChanged { vm, overlay, .. } => format!(
                "Put the original file back. If the data of `{vm}` in {} may go: castra clean \
                --disks {vm} && castra up {vm}",
                overlay.display()
            ),
            Self::LayerUnproven { .. } => {
                "If the project was copied, copy it again with its timestamps: cp -a, rsync -a or \
                a tar archive in pax format. If the layer was changed, restore it from a backup."
                    .into()
            }
            Self::Gone { vm, .. } => format!(
                "Put it back where it was, or mount the filesystem that it is on. If its data may \
                go, `castra clean --disks {vm}` removes what is left of the VM, and `castra up \
                {vm}` then creates a new disk."
            ),
            Self::Renamed { vm, disk, .. } => format!(
                "Name {} as its `overlay` in castra.toml. If its data may go, `castra clean \
                --disks {vm}` removes it, and `castra up {vm}` then creates a new disk.",
                disk.display()
            ),
            Self::Damaged { vm, disk, .. } => format!(
                "Restore it from a backup. If its data may go, move it away and remove what is \
                left of the VM: mv {0} {0}.damaged && castra clean --disks {vm}",
                disk.display()
            ),
            Self::ForeignOverlay { found, .. } => format!(
                "Name the image that belongs to {} again, or use the new one for a VM with another \
                name. Never rebase the disk onto another image: that destroys its data.",
                found.display()
            ),
            Self::CopyTorn { vm, original, .. } => format!(
                "Copy the project again while the VM is stopped or suspended: castra suspend {vm}, \
                in {}.",
                original.display()
            ),
            Self::Unbootable { reason, .. } => hint_for_unbootable(*reason),
            Self::NotADisk { path, .. } => {
                format!("Inspect it, then move it away: mv {0} {0}.kept", path.display())
            }
            Self::Shrinking { .. } => {
                "A disk can only grow: what is at its end would be lost.".into()
            }
            Self::DataGone { vm, name, .. } => format!(
                "Put it back where it was. If its data may go, `castra clean {vm} --data-disk \
                {name}` forgets it, and the next start creates a blank one."
            ),
            Self::DataDamaged { disk, .. } => format!(
                "Restore it from a backup. If its data may go, move it away, and the next start \
                says how to continue: mv {0} {0}.damaged",
                disk.display()
            ),
            Self::DataShrinking { vm, name, has, .. } => format!(
                "A disk can only grow: what is at its end would be lost. Write `size = \"{has}\"` \
                in castra.toml. If its data may go, `castra clean {vm} --data-disk {name}` removes \
                it, and the next start creates a smaller one."
            ),
            Self::NoDataDisk { known, .. } if known.is_empty() => {
                "There is none. `castra clean --dry-run --disks` shows what there is.".into()
            }
            Self::NoDataDisk { known, .. } => format!("There is: {}", known.join(", ")),
            Self::DataThere { vm, name, .. } => format!(
                "Choose another name. If the data of that disk may go: castra clean {vm} \
                --data-disk {name}"
            ),
            Self::TooLarge { .. } => "A filesystem cannot grow without end, and a disk cannot \
                shrink again."
                .into(),
            Self::NotResized { vm, .. } => format!(
                "Nothing is lost. With the VM stopped, it works without QEMU: castra down {vm}, \
                then resize it and `castra up {vm}`."
            ),
            Self::InUse { .. } => "A QEMU has it open, perhaps in another container of this \
                machine. Stop that VM first."
                .into(),
        })
    }
}

fn unbootable(disk: &Path, reason: Unbootable) -> String {
    let disk = disk.display();
    match reason {
        Unbootable::Blank => format!("{disk} has no boot code: it begins with zeros"),
        Unbootable::NoBootSector => {
            format!("{disk} has no boot code: its first sector is not a boot sector")
        }
        Unbootable::NoCode => {
            format!("{disk} has no boot code: its first sector holds only a partition table")
        }
        Unbootable::UefiOnly => {
            format!("{disk} boots only by UEFI, and not by a BIOS")
        }
        Unbootable::NoUefiLoader => format!(
            "{disk} has no boot loader for UEFI (\\EFI\\BOOT\\BOOTX64.EFI on a FAT filesystem)"
        ),
    }
}

fn besides(found: Option<&str>) -> String {
    found.map_or_else(String::new, |found| format!("; {found}"))
}

fn hint_for_unbootable(reason: Unbootable) -> String {
    match reason {
        Unbootable::UefiOnly => {
            "Boot it by UEFI: `boot_profile = \"native\"` and `firmware = \"uefi\"` in \
            its [[vms]]."
                .to_owned()
        }
        Unbootable::NoUefiLoader => {
            "Remove `firmware` from its [[vms]]: then the disk decides. Or \
            install a boot loader on it: `grub-install --removable` or `bootctl install`."
                .to_owned()
        }
        Unbootable::Blank | Unbootable::NoBootSector | Unbootable::NoCode => format!(
            "Name a disk that an operating system is installed on, with a boot loader for \
            BIOS. A disk that holds only a filesystem needs a kernel and an initramfs: \
            describe all three in `[images.NAME]` of castra.toml. To use an installer of your \
            own, set `{}`: docs/config.md, \"A disk of your own\".",
            UserArguments::VARIABLE
        ),
    }
}
