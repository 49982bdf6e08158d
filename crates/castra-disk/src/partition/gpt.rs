//! GUID partition tables. Source: UEFI specification 2.10, section 5.3.

use std::io;

use super::crc32::crc32;
use super::{Partition, SECTOR_BYTES};
use crate::fields::{guid, le32, le64};
use crate::source::{Source, read_up_to};

const SIGNATURE: &[u8] = b"EFI PART";
/// Types of partitions, as they are written.
const EFI_SYSTEM: [u8; 16] = *b"\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b";
/// Source: GRUB's manual, "BIOS installation".
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";
/// Attribute of a partition from which a BIOS boots.
const LEGACY_BOOTABLE: u64 = 1 << 2;
/// Length of the header's fields.
const HEADER_BYTES: usize = 92;
/// Permitted lengths of an entry.
const ENTRY_BYTES: std::ops::RangeInclusive<usize> = 128..=4096;
/// Largest table that is read; partitioning programs write 16 KiB.
const MAX_TABLE_BYTES: usize = 1 << 20;

/// Reads the table by its header at the start of the disk, or else by the copy at the end.
pub(super) fn partitions(disk: &dyn Source) -> io::Result<Option<Vec<Partition>>> {
    for sector in SECTOR_BYTES {
        let last = (disk.length() / sector).saturating_sub(1);
        for block in [1, last] {
            if let Some(partitions) = read(disk, sector, block)? {
                return Ok(Some(partitions));
            }
        }
    }
    Ok(None)
}

fn read(disk: &dyn Source, sector: u64, block: u64) -> io::Result<Option<Vec<Partition>>> {
    let bytes = read_up_to(disk, block * sector, sector as usize)?;
    let Some(header) = Header::parse(&bytes, block) else { return Ok(None) };
    let Some(offset) = header.table_block.checked_mul(sector) else { return Ok(None) };
    let table = read_up_to(disk, offset, header.table_bytes)?;
    if table.len() < header.table_bytes || crc32(&table) != header.table_crc {
        return Ok(None);
    }
    let entries = table.chunks_exact(header.entry_bytes).zip(1..);
    let partition = |(entry, number)| entry_of(entry, number, sector, disk.length());
    Ok(Some(entries.filter_map(partition).collect()))
}

struct Header {
    table_block: u64,
    table_bytes: usize,
    entry_bytes: usize,
    table_crc: u32,
}

impl Header {
    /// Parses a sector; `None` if it holds no valid header of this block.
    fn parse(sector: &[u8], block: u64) -> Option<Self> {
        let length = le32(sector, 12)? as usize;
        if !sector.starts_with(SIGNATURE) || length < HEADER_BYTES || le64(sector, 24)? != block {
            return None;
        }
        let mut summed = sector.get(..length)?.to_vec();
        summed[16..20].fill(0);
        let (count, entry_bytes) = (le32(sector, 80)? as usize, le32(sector, 84)? as usize);
        let table_bytes = count.checked_mul(entry_bytes)?;
        let is_valid = crc32(&summed) == le32(sector, 16)?
            && ENTRY_BYTES.contains(&entry_bytes)
            && table_bytes <= MAX_TABLE_BYTES;
        let (table_block, table_crc) = (le64(sector, 72)?, le32(sector, 88)?);
        is_valid.then_some(Self { table_block, table_bytes, entry_bytes, table_crc })
    }
}

/// Returns the partition of an entry; `None` if it is unused or not on the disk.
fn entry_of(entry: &[u8], number: u32, sector: u64, disk_bytes: u64) -> Option<Partition> {
    let (kind, rest) = entry.split_first_chunk::<16>()?;
    let (identity, _) = rest.split_first_chunk::<16>()?;
    let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
    let start = first.checked_mul(sector)?;
    let end = last.checked_add(1)?.checked_mul(sector)?;
    if *kind == [0; 16] || first == 0 || start >= end || start >= disk_bytes {
        return None;
    }
    Some(Partition {
        number,
        start,
        length: end - start,
        uuid: Some(guid(identity)),
        is_for_bios: *kind == BIOS_BOOT || le64(entry, 48)? & LEGACY_BOOTABLE != 0,
        is_for_uefi: *kind == EFI_SYSTEM,
    })
}
