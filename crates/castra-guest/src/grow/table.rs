//! Partition tables in which the last partition gets the rest of the disk: GPT and MBR.
//!
//! Only bytes are computed here. Everything is read from the disk, so every number is checked
//! before it is used.

use thiserror::Error;

use super::crc32::crc32;

/// Size of a sector, in bytes. Disks of VMs have no other.
pub(super) const SECTOR: usize = 512;
/// Beginning of the disk that is read: both tables and, in a GPT, its entries.
pub(super) const HEAD_BYTES: usize = 64 * 1024;
/// Beginning of the disk that is written, as one request.
const WRITTEN_BYTES: usize = 4096;
/// Alignment of a partition's end, in sectors, and the least that it grows by: 1 MiB.
const ALIGNMENT: u64 = 2048;

/// Partition, as the kernel has it. Sectors are counted from the beginning of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
    pub(super) number: u32,
    pub(super) start: u64,
    pub(super) sectors: u64,
}

/// Change of a table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// What is written first, and where: the backup of a GPT.
    pub(super) backup: Option<(u64, Vec<u8>)>,
    /// Beginning of the disk, which is written last. It is small enough for one request, so that
    /// a power failure leaves the old table or the new one.
    pub(super) head: Vec<u8>,
    /// New size of the partition, in sectors.
    pub(super) sectors: u64,
}

/// Reason why a partition keeps its size although there is room behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum Unchanged {
    #[error("the disk has neither a GPT nor an MBR that is valid")]
    NoTable,
    #[error("the kernel's partition is not the one in the partition table")]
    Different,
    #[error("another partition follows it")]
    Followed,
    #[error("it is a logical partition")]
    Logical,
    #[error("the partition table has an unusual layout")]
    Unusual,
}

/// Returns `true` if there is unused room between the partition and the end of the disk, or another
/// partition.
pub(super) fn has_room(disk_sectors: u64, partition: Partition) -> bool {
    let end = partition.start.saturating_add(partition.sectors);
    // The backup of a GPT takes less than the alignment.
    end.saturating_add(2 * ALIGNMENT) <= disk_sectors
}

/// Returns the change by which a partition ends where the disk does, or `None` if it does so
/// already.
pub(super) fn grow(
    head: &[u8],
    disk_sectors: u64,
    partition: Partition,
) -> Result<Option<Change>, Unchanged> {
    if head.get(510..512) != Some(&[0x55, 0xAA]) {
        return Err(Unchanged::NoTable);
    }
    let mut types = (0..4).map(|index| head[mbr_entry(index) + 4]);
    if types.any(|kind| kind == PROTECTIVE) {
        Gpt::parse(head).ok_or(Unchanged::NoTable)?.grow(head, disk_sectors, partition)
    } else {
        grow_mbr(head, disk_sectors, partition)
    }
}

/// Types of an MBR's partitions.
const PROTECTIVE: u8 = 0xEE;
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];

/// Returns the offset of an entry in the MBR.
fn mbr_entry(index: usize) -> usize {
    446 + index * 16
}

fn grow_mbr(
    head: &[u8],
    disk_sectors: u64,
    partition: Partition,
) -> Result<Option<Change>, Unchanged> {
    let Partition { number, start, sectors } = partition;
    if number > 4 {
        return Err(Unchanged::Logical);
    }
    let own = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    let at = mbr_entry(own.ok_or(Unchanged::Different)?);
    if (u64::from(u32_at(head, at + 8)), u64::from(u32_at(head, at + 12))) != (start, sectors)
        || EXTENDED.contains(&head[at + 4])
    {
        return Err(Unchanged::Different);
    }
    let follows = |index| {
        let entry = mbr_entry(index);
        head[entry + 4] != 0 && u64::from(u32_at(head, entry + 8)) > start
    };
    if (0..4).any(follows) {
        return Err(Unchanged::Followed);
    }
    // An MBR counts sectors in 32 bits.
    let end = disk_sectors.min(start + u64::from(u32::MAX)) / ALIGNMENT * ALIGNMENT;
    let Some(length) = grown(partition, end) else { return Ok(None) };
    let mut head = head[..WRITTEN_BYTES].to_vec();
    // Cylinder, head and sector of an end that they cannot express.
    head[at + 5..at + 8].copy_from_slice(&[0xFE, 0xFF, 0xFF]);
    let narrow = u32::try_from(length).map_err(|_| Unchanged::Unusual)?;
    head[at + 12..at + 16].copy_from_slice(&narrow.to_le_bytes());
    Ok(Some(Change { backup: None, head, sectors: length }))
}

/// Returns the new length of a partition that is to end before `end`.
fn grown(partition: Partition, end: u64) -> Option<u64> {
    let length = end.checked_sub(partition.start)?;
    (length >= partition.sectors + ALIGNMENT).then_some(length)
}

/// Header of a GPT (UEFI specification, 5.3.2), and its entries.
struct Gpt<'a> {
    header: &'a [u8],
    entries: &'a [u8],
    entry_bytes: usize,
    first_usable: u64,
}

/// Offsets in the header.
const HEADER_CRC: usize = 16;
const OWN_SECTOR: usize = 24;
const OTHER_SECTOR: usize = 32;
const FIRST_USABLE: usize = 40;
const LAST_USABLE: usize = 48;
const ENTRIES_SECTOR: usize = 72;
const ENTRIES_CRC: usize = 88;
/// Offsets in an entry.
const FIRST: usize = 32;
const LAST: usize = 40;

impl<'a> Gpt<'a> {
    /// Parses the primary table, which must be whole.
    fn parse(head: &'a [u8]) -> Option<Self> {
        let sector = head.get(SECTOR..2 * SECTOR)?;
        let header = sector.get(..usize::try_from(u32_at(sector, 12)).ok()?)?;
        if !header.starts_with(b"EFI PART") || header.len() < 92 {
            return None;
        }
        let mut zeroed = header.to_vec();
        zeroed[HEADER_CRC..HEADER_CRC + 4].fill(0);
        let (count, entry_bytes) = (u32_at(header, 80), u32_at(header, 84));
        let entry_bytes = usize::try_from(entry_bytes).ok()?;
        let bytes = usize::try_from(count).ok()?.checked_mul(entry_bytes)?;
        let at = usize::try_from(u64_at(header, ENTRIES_SECTOR)).ok()?.checked_mul(SECTOR)?;
        let entries = head.get(at..at.checked_add(bytes)?)?;
        let is_whole = crc32(&zeroed) == u32_at(header, HEADER_CRC)
            && crc32(entries) == u32_at(header, ENTRIES_CRC)
            && u64_at(header, OWN_SECTOR) == 1
            && entry_bytes >= 128;
        let first_usable = u64_at(header, FIRST_USABLE);
        is_whole.then_some(Self { header, entries, entry_bytes, first_usable })
    }

    fn grow(
        &self,
        head: &[u8],
        disk_sectors: u64,
        partition: Partition,
    ) -> Result<Option<Change>, Unchanged> {
        let Partition { number, start, sectors } = partition;
        let number = usize::try_from(number).map_err(|_| Unchanged::Different)?;
        let index = number.checked_sub(1).ok_or(Unchanged::Different)?;
        let used = |entry: &[u8]| entry[..16] != [0; 16];
        let own = self.entries.chunks_exact(self.entry_bytes).nth(index);
        let own = own.filter(|entry| used(entry)).ok_or(Unchanged::Different)?;
        if u64_at(own, FIRST) != start || u64_at(own, LAST).checked_add(1) != Some(start + sectors)
        {
            return Err(Unchanged::Different);
        }
        let mut entries = self.entries.chunks_exact(self.entry_bytes);
        if entries.any(|entry| used(entry) && u64_at(entry, FIRST) > start) {
            return Err(Unchanged::Followed);
        }
        let entries_at = u64_at(self.header, ENTRIES_SECTOR) * SECTOR as u64;
        let own_at = usize::try_from(entries_at).map_err(|_| Unchanged::Unusual)?
            + index * self.entry_bytes
            + LAST;
        // Other places would take several requests.
        if own_at + 8 > WRITTEN_BYTES || start < self.first_usable {
            return Err(Unchanged::Unusual);
        }
        let last = disk_sectors - 1;
        let entries_sectors = self.entries.len().div_ceil(SECTOR) as u64;
        let last_usable = last.checked_sub(entries_sectors + 1).ok_or(Unchanged::Unusual)?;
        let end = (last_usable + 1) / ALIGNMENT * ALIGNMENT;
        let Some(length) = grown(partition, end) else { return Ok(None) };

        let mut entries = self.entries.to_vec();
        let in_entries = index * self.entry_bytes + LAST;
        set_u64(&mut entries, in_entries, start + length - 1);
        let header = |own, other, entries_sector| {
            let mut header = self.header.to_vec();
            set_u64(&mut header, OWN_SECTOR, own);
            set_u64(&mut header, OTHER_SECTOR, other);
            set_u64(&mut header, LAST_USABLE, last_usable);
            set_u64(&mut header, ENTRIES_SECTOR, entries_sector);
            set_u32(&mut header, ENTRIES_CRC, crc32(&entries));
            set_u32(&mut header, HEADER_CRC, 0);
            let crc = crc32(&header);
            set_u32(&mut header, HEADER_CRC, crc);
            header
        };
        let mut backup = entries.clone();
        backup.resize(usize::try_from(entries_sectors).unwrap_or_default() * SECTOR, 0);
        backup.extend(header(last, 1, last - entries_sectors));
        backup.resize(backup.len().next_multiple_of(SECTOR), 0);
        let mut head = head[..WRITTEN_BYTES].to_vec();
        let primary = header(1, last, u64_at(self.header, ENTRIES_SECTOR));
        head[SECTOR..SECTOR + primary.len()].copy_from_slice(&primary);
        set_u64(&mut head, own_at, start + length - 1);
        cover(&mut head, last);
        let place = (last - entries_sectors) * SECTOR as u64;
        Ok(Some(Change { backup: Some((place, backup)), head, sectors: length }))
    }
}

/// Has the protective MBR cover the whole disk. A hybrid MBR has other entries, and keeps all.
fn cover(head: &mut [u8], last: u64) {
    let is_empty = |index| head[mbr_entry(index)..mbr_entry(index) + 16] == [0; 16];
    let protective = (0..4).find(|index| head[mbr_entry(*index) + 4] == PROTECTIVE);
    let Some(own) = protective.filter(|own| (0..4).all(|i| i == *own || is_empty(i))) else {
        return;
    };
    set_u32(head, mbr_entry(own) + 12, u32::try_from(last).unwrap_or(u32::MAX));
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let number = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    u32::from_le_bytes(number.unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let number = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    u64::from_le_bytes(number.unwrap_or_default())
}

fn set_u32(bytes: &mut [u8], at: usize, number: u32) {
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
}

fn set_u64(bytes: &mut [u8], at: usize, number: u64) {
    bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
