//! The beginning of a disk, as a BIOS sees it: QEMU's firmware loads the first sector and runs it,
//! or reports that the disk is not bootable, but on a screen that castra does not have.

use std::fs;
use std::path::Path;

use crate::cancel::Cancel;
use crate::command::{self, CommandError};
use crate::context::Environment;

use super::img::{ImageDisk, ImageWork, run_image_tool};
use super::{DiskFormat, Qcow2Header, QemuError};

/// Sector size of every disk that QEMU emulates here, in bytes.
const SECTOR_BYTES: usize = 512;
/// Number of bytes that are read: the partition tables of both kinds, of which the longer takes 34
/// sectors.
const BEGINNING_BYTES: u64 = 64 << 10;
/// Length of the code in a boot sector, after which the disk's signature and partition table begin.
const CODE_BYTES: usize = 440;
/// Entries of the partition table in a boot sector: four of sixteen bytes, each with its type in
/// the fifth.
const PARTITIONS: std::ops::Range<usize> = 446..510;
/// Last two bytes of a boot sector.
const SIGNATURE: [u8; 2] = [0x55, 0xaa];
/// Type of an EFI system partition in a boot sector.
const EFI_SYSTEM: u8 = 0xef;
/// Type of an EFI system partition in a GUID partition table, as it is written there (UEFI
/// Specification, "GUID Partition Table"): C12A7328-F81F-11D2-BA4B-00A0C93EC93B.
const EFI_SYSTEM_GUID: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];

/// Reason why firmware cannot boot from a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unbootable {
    /// The disk begins with nothing but zeros.
    Blank,
    /// The first sector is no boot sector.
    NoBootSector,
    /// The first sector holds a partition table and no code.
    NoCode,
    /// The first sector holds no code, and a partition has a boot loader for UEFI.
    UefiOnly,
    /// No filesystem has a boot loader for UEFI.
    NoUefiLoader,
}

impl Unbootable {
    /// Returns the reason why a BIOS cannot boot a disk that begins with these bytes; `None` for
    /// one that is bootable as far as its first sector shows.
    pub fn of(beginning: &[u8]) -> Option<Self> {
        let sector = beginning.get(..SECTOR_BYTES).unwrap_or_default();
        let has_signature = sector.ends_with(&SIGNATURE);
        if has_signature && sector[..CODE_BYTES].iter().any(|byte| *byte != 0) {
            return None;
        }
        Some(if beginning.iter().all(|byte| *byte == 0) {
            Self::Blank
        } else if has_signature && (has_efi_partition(sector) || has_efi_guid_partition(beginning))
        {
            Self::UefiOnly
        } else if has_signature {
            Self::NoCode
        } else {
            Self::NoBootSector
        })
    }

    /// Returns the reason why QEMU's BIOS cannot boot this qcow2, which is the guest's disk.
    /// Returns `None` if it can, or if the beginning cannot be read: then QEMU decides. The caller
    /// has checked the disk's backing chain.
    ///
    /// # Errors
    /// [`QemuError::Interrupted`].
    pub fn of_disk(
        disk: &Path,
        environment: &Environment,
        cancel: &Cancel,
    ) -> Result<Option<Self>, QemuError> {
        match read_beginning(disk, environment, cancel) {
            Err(error @ QemuError::Interrupted(_)) => Err(error),
            Err(_) => Ok(None),
            Ok(beginning) => Ok(Self::of(&beginning)),
        }
    }
}

/// Reads with `qemu-img`, since clusters may be compressed or lie in any file of the backing chain.
fn read_beginning(
    disk: &Path,
    environment: &Environment,
    cancel: &Cancel,
) -> Result<Vec<u8>, QemuError> {
    let program = command::find_program(environment, "qemu-img")
        .ok_or_else(|| QemuError::NotInstalled { program: "qemu-img".into() })?;
    let failed = |source| QemuError::File { action: "read", path: disk.to_owned(), source };
    let copy = tempfile::NamedTempFile::new_in(environment.temp_dir()).map_err(failed)?;
    let bytes = BEGINNING_BYTES.min(Qcow2Header::read(disk)?.virtual_bytes);
    let qcow2 = ImageDisk { path: disk, format: DiskFormat::Qcow2, length: None };
    let work = ImageWork::CopyBeginning { to: copy.path(), bytes };
    match run_image_tool(program, qcow2, work, environment, cancel, |_| ()) {
        Ok(_) => fs::read(copy.path()).map_err(failed),
        Err(CommandError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(source) => Err(QemuError::MakeDisk { path: disk.to_owned(), source }),
    }
}

fn has_efi_partition(sector: &[u8]) -> bool {
    sector[PARTITIONS].chunks(16).any(|entry| entry[4] == EFI_SYSTEM)
}

fn has_efi_guid_partition(beginning: &[u8]) -> bool {
    let number = |offset: usize| {
        let bytes = beginning.get(offset..offset + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if !beginning.get(SECTOR_BYTES..).is_some_and(|header| header.starts_with(b"EFI PART")) {
        return false;
    }
    // The lower half of the first entry's sector, and the length of an entry: larger values lie
    // beyond the bytes read.
    let (Some(first), Some(length)) = (number(SECTOR_BYTES + 72), number(SECTOR_BYTES + 84)) else {
        return false;
    };
    let entries = first
        .checked_mul(SECTOR_BYTES)
        .and_then(|offset| beginning.get(offset..))
        .unwrap_or_default();
    length > 0 && entries.chunks(length).any(|entry| entry.starts_with(&EFI_SYSTEM_GUID))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beginning() -> Vec<u8> {
        vec![0; BEGINNING_BYTES as usize]
    }

    fn boot_sector() -> Vec<u8> {
        let mut disk = beginning();
        disk[510..512].copy_from_slice(&SIGNATURE);
        disk
    }

    /// Returns a disk with a protective boot sector and one partition of this type, as the third
    /// entry.
    fn gpt(kind: [u8; 16]) -> Vec<u8> {
        let mut disk = boot_sector();
        disk[450] = 0xee;
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[584] = 2;
        disk[596] = 128;
        disk[1024 + 2 * 128..][..16].copy_from_slice(&kind);
        disk
    }

    #[test]
    fn boot_code_counts_whatever_is_behind_it() {
        let mut disk = boot_sector();
        disk[0] = 0xfa;
        assert_eq!(Unbootable::of(&disk), None);
        assert_eq!(Unbootable::of(&disk[..512]), None);
        let mut hybrid = gpt(EFI_SYSTEM_GUID);
        hybrid[439] = 1;
        assert_eq!(Unbootable::of(&hybrid), None);
    }

    #[test]
    fn what_a_bios_cannot_boot_is_recognised() {
        assert_eq!(Unbootable::of(&[]), Some(Unbootable::Blank));
        assert_eq!(Unbootable::of(&beginning()), Some(Unbootable::Blank));
        let mut filesystem = beginning();
        // The magic of ext4, which leaves its first sectors to boot loaders.
        filesystem[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(Unbootable::of(&filesystem), Some(Unbootable::NoBootSector));
        assert_eq!(Unbootable::of(&[1; 100]), Some(Unbootable::NoBootSector));
        assert_eq!(Unbootable::of(&boot_sector()), Some(Unbootable::NoCode));
        // A disk's signature and an active partition are not code.
        let mut table = boot_sector();
        table[440..444].copy_from_slice(&[1, 2, 3, 4]);
        (table[446], table[450]) = (0x80, 0x83);
        assert_eq!(Unbootable::of(&table), Some(Unbootable::NoCode));
        table[466] = EFI_SYSTEM;
        assert_eq!(Unbootable::of(&table), Some(Unbootable::UefiOnly));
        assert_eq!(Unbootable::of(&gpt(EFI_SYSTEM_GUID)), Some(Unbootable::UefiOnly));
        assert_eq!(Unbootable::of(&gpt([7; 16])), Some(Unbootable::NoCode));
    }

    #[test]
    fn absurd_tables_are_no_harm() {
        for (offset, value) in [(584, [0xff; 4]), (596, [0; 4]), (596, [0xff; 4])] {
            let mut disk = gpt(EFI_SYSTEM_GUID);
            disk[offset..offset + 4].copy_from_slice(&value);
            assert!(Unbootable::of(&disk).is_some());
            assert!(Unbootable::of(&disk[..600]).is_some());
            assert!(Unbootable::of(&disk[..580]).is_some());
        }
    }
}
