//! Partition tables.

mod crc32;
mod gpt;
mod mbr;

use std::io;

use crate::source::{Source, read_up_to};

/// Maximum number of partitions that are considered.
pub(crate) const MAX_PARTITIONS: usize = 128;
/// Sector sizes that disks have.
const SECTOR_BYTES: [u64; 2] = [512, 4096];

/// A partition table, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// True for a GUID partition table.
    pub(crate) is_gpt: bool,
    pub(crate) partitions: Vec<Partition>,
}

/// A partition, by its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Number of the partition, from 1 on, as Linux counts them.
    pub(crate) number: u32,
    /// Offset of its first byte.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) length: u64,
    /// Identity of a partition in a GPT, as in `root=PARTUUID=…`.
    pub(crate) uuid: Option<String>,
    /// True if a boot loader for a BIOS may continue there: in a GPT, only in its own partition, or
    /// in one with the attribute for it.
    pub(crate) is_for_bios: bool,
    /// True for an EFI system partition.
    pub(crate) is_for_uefi: bool,
}

/// Reads the partition table, which has no partitions if there is none.
///
/// # Errors
/// Those of the source: damage is no error, since the disk may have no table at all.
pub(crate) fn table(disk: &dyn Source) -> io::Result<Table> {
    let Some(table) = mbr::Mbr::parse(&read_up_to(disk, 0, 512)?) else {
        return Ok(Table::default());
    };
    let found = if table.is_protective() { gpt::partitions(disk)? } else { None };
    let is_gpt = found.is_some();
    let mut partitions = match found {
        Some(found) => found,
        None => table.partitions(disk)?,
    };
    partitions.truncate(MAX_PARTITIONS);
    Ok(Table { is_gpt, partitions })
}
