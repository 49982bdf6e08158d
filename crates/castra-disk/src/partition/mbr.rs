//! Master boot records, with logical partitions in a chain of extended ones.

use std::io;

use super::{MAX_PARTITIONS, Partition};
use crate::fields::{le16, le32};
use crate::source::{Source, read_up_to};

/// Last two bytes of the sector, little-endian.
const SIGNATURE: u16 = 0xaa55;
/// Type of the partition that covers a disk with a GPT.
const PROTECTIVE: u8 = 0xee;
/// Type of an EFI system partition.
const EFI_SYSTEM: u8 = 0xef;
/// Types of extended partitions.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// Size of the sectors that are counted: the table does not say it, and a VM's disk has these.
const SECTOR: u64 = 512;
/// Number of the first logical partition.
const FIRST_LOGICAL: u32 = 5;

/// Four entries of a boot record.
pub(super) struct Mbr {
    serial: u32,
    entries: [Entry; 4],
}

#[derive(Clone, Copy)]
struct Entry {
    kind: u8,
    /// First sector.
    start: u64,
    /// Number of sectors.
    count: u64,
}

impl Mbr {
    /// Parses a sector; `None` if it is no boot record with a partition. The boot sectors of
    /// filesystems end in the same signature, with code where the entries would be.
    pub(super) fn parse(sector: &[u8]) -> Option<Self> {
        if le16(sector, 510)? != SIGNATURE {
            return None;
        }
        let mut entries = [Entry { kind: 0, start: 0, count: 0 }; 4];
        for (index, entry) in entries.iter_mut().enumerate() {
            let bytes = sector.get(446 + 16 * index..)?.first_chunk::<16>()?;
            if bytes[0] & 0x7f != 0 {
                return None;
            }
            let (start, count) = (le32(bytes, 8)?.into(), le32(bytes, 12)?.into());
            *entry = Entry { kind: bytes[4], start, count };
        }
        let is_used = entries.iter().any(Entry::is_used);
        is_used.then_some(Self { serial: le32(sector, 440)?, entries })
    }

    /// Returns `true` if the record only protects a GPT, or repeats some of it.
    pub(super) fn is_protective(&self) -> bool {
        self.entries.iter().any(|entry| entry.kind == PROTECTIVE)
    }

    /// Returns the primary partitions, and the logical ones of the first extended partition.
    pub(super) fn partitions(&self, disk: &dyn Source) -> io::Result<Vec<Partition>> {
        let primary = self.entries.iter().zip(1..).filter(|(entry, _)| entry.is_used());
        let mut found = Vec::new();
        let mut extended = None;
        for (entry, number) in primary {
            if EXTENDED.contains(&entry.kind) {
                extended = extended.or(Some(entry.start));
            } else if entry.kind != PROTECTIVE {
                found.extend(self.partition(entry.start, entry, number, disk));
            }
        }
        if let Some(start) = extended {
            self.logical(disk, start, &mut found)?;
        }
        Ok(found)
    }

    /// Follows the chain of extended boot records. A loop ends at the maximum of partitions.
    fn logical(
        &self,
        disk: &dyn Source,
        extended: u64,
        found: &mut Vec<Partition>,
    ) -> io::Result<()> {
        let mut record = extended;
        let mut number = FIRST_LOGICAL;
        for _ in 0..MAX_PARTITIONS {
            let sector = read_up_to(disk, record * SECTOR, SECTOR as usize)?;
            let Some(table) = Self::parse(&sector) else { break };
            let [partition, next, ..] = table.entries;
            if partition.is_used() {
                found.extend(self.partition(record + partition.start, &partition, number, disk));
                number += 1;
            }
            if !next.is_used() || !EXTENDED.contains(&next.kind) {
                break;
            }
            record = extended + next.start;
        }
        Ok(())
    }

    /// Returns the partition of an entry; `None` if it is not on the disk.
    fn partition(
        &self,
        start: u64,
        entry: &Entry,
        number: u32,
        disk: &dyn Source,
    ) -> Option<Partition> {
        let (start, length) = (start * SECTOR, entry.count * SECTOR);
        let uuid = Some(format!("{:08x}-{number:02x}", self.serial));
        let is_for_uefi = entry.kind == EFI_SYSTEM;
        let found = Partition { number, start, length, uuid, is_for_bios: true, is_for_uefi };
        (start < disk.length()).then_some(found)
    }
}

impl Entry {
    fn is_used(&self) -> bool {
        self.kind != 0 && self.start != 0 && self.count != 0
    }
}
