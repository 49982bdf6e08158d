//! Content of a disk, as far as it decides whether the disk is formatted or mounted.

use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::OFlags;

use super::device::Device;
use super::format;
use crate::kernel_fs::KernelFs;

/// Bytes at the beginning and at the end of a disk in which everything leaves a trace that is meant
/// to be found again: filesystems, partition tables, RAID members, volumes, encryption.
const EDGE_BYTES: u64 = 1 << 20;

/// Bytes at the beginning of a disk that have the superblock of each filesystem that is mounted.
const SUPERBLOCK_BYTES: u64 = 128 << 10;

/// Content of a disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing but zeros at both ends.
    Blank,
    /// A filesystem.
    Filesystem {
        /// Name of its type, for `mount(2)`.
        kind: &'static str,
        /// Size of the filesystem, if it is known.
        bytes: Option<u64>,
    },
    /// Something else, named for a message.
    Other(&'static str),
}

impl Content {
    /// Looks at a disk.
    pub(super) fn of(device: &Device, kernel_fs: &KernelFs) -> io::Result<Self> {
        let disk = device.open(kernel_fs, OFlags::RDONLY)?;
        let size = device.bytes(kernel_fs)?;
        let edges = |head_bytes: u64, tail_bytes: u64| -> io::Result<Self> {
            let length = |bytes: u64| usize::try_from(size.min(bytes)).map_err(io::Error::other);
            let (mut head, mut tail) = (vec![0; length(head_bytes)?], vec![0; length(tail_bytes)?]);
            let tail_at = size.saturating_sub(tail_bytes);
            disk.read_exact_at(&mut head, 0)?;
            disk.read_exact_at(&mut tail, tail_at)?;
            Ok(Self::of_edges(&head, &tail))
        };
        // What there is to be found usually says so soon.
        match edges(SUPERBLOCK_BYTES, format::MARK_BYTES)? {
            found @ Self::Filesystem { .. } => Ok(found),
            Self::Blank | Self::Other(_) => edges(EDGE_BYTES, EDGE_BYTES),
        }
    }

    fn of_edges(head: &[u8], tail: &[u8]) -> Self {
        let has = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
        // Offsets of magic numbers: libblkid's `superblocks/` and `partitions/`.
        if has(0, b"LUKS\xba\xbe") {
            return Self::Other("encrypted data (LUKS)");
        }
        if [0, 512, 1024, 1536].iter().any(|at| has(*at, b"LABELONE")) {
            return Self::Other("a physical volume of LVM");
        }
        if has(512, b"EFI PART") {
            return Self::Other("a partition table");
        }
        if has(1024 + 56, &[0x53, 0xEF]) {
            return Self::Filesystem { kind: "ext4", bytes: ext_bytes(head) };
        }
        if has(0, b"XFSB") {
            return Self::Filesystem { kind: "xfs", bytes: None };
        }
        if has(0x10040, b"_BHRfS_M") {
            return Self::Filesystem { kind: "btrfs", bytes: None };
        }
        if has(1024, &[0x10, 0x20, 0xF5, 0xF2]) {
            return Self::Filesystem { kind: "f2fs", bytes: Some(u64::MAX) };
        }
        if has(54, b"FAT1") || has(82, b"FAT32") {
            return Self::Filesystem { kind: "vfat", bytes: Some(u64::MAX) };
        }
        if has(510, &[0x55, 0xAA]) {
            return Self::Other("a partition table");
        }
        let is_marked = format::is_marked(tail);
        let unmarked = tail.len() - if is_marked { format::MARK_BYTES as usize } else { 0 };
        if head.iter().chain(&tail[..unmarked]).all(|byte| *byte == 0) {
            return Self::Blank;
        }
        if is_marked {
            return Self::Other("the remains of a formatting that was interrupted");
        }
        Self::Other("data that castra does not know")
    }
}

/// Returns the size of an ext2, ext3 or ext4, from its superblock (`fs/ext4/ext4.h`).
fn ext_bytes(head: &[u8]) -> Option<u64> {
    let field = |at: usize| {
        let bytes = head.get(1024 + at..1024 + at + 4)?;
        Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?)))
    };
    const FEATURE_64_BITS: u64 = 0x80;
    let high = if field(0x60)? & FEATURE_64_BITS != 0 { field(0x150)? } else { 0 };
    let blocks = high << 32 | field(0x4)?;
    let block_bytes = 1024_u64.checked_shl(u32::try_from(field(0x18)?).ok()?)?;
    blocks.checked_mul(block_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a disk at an offset.
    type Part<'a> = (usize, &'a [u8]);

    fn disk(parts: &[Part<'_>]) -> Content {
        let (mut head, tail) = (vec![0; EDGE_BYTES as usize], vec![0; EDGE_BYTES as usize]);
        for (at, bytes) in parts {
            head[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        Content::of_edges(&head, &tail)
    }

    #[test]
    fn only_zeros_are_blank() {
        assert_eq!(disk(&[]), Content::Blank);
        let size = EDGE_BYTES as usize;
        for at in [0, 511, 4096, 70_000, size - 1] {
            assert!(matches!(disk(&[(at, &[1])]), Content::Other(_)), "{at}");
            let (head, mut tail) = (vec![0; size], vec![0; size]);
            tail[at] = 1;
            assert!(matches!(Content::of_edges(&head, &tail), Content::Other(_)), "{at}");
        }
    }

    #[test]
    fn filesystems_are_known_and_partitions_are_not_mounted() {
        let kind = |content| match content {
            Content::Filesystem { kind, .. } => kind,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind(disk(&[(1080, &[0x53, 0xEF])])), "ext4");
        assert_eq!(kind(disk(&[(0, b"XFSB")])), "xfs");
        assert_eq!(kind(disk(&[(65600, b"_BHRfS_M")])), "btrfs");
        assert_eq!(kind(disk(&[(82, b"FAT32   "), (510, &[0x55, 0xAA])])), "vfat");
        let table = Content::Other("a partition table");
        assert_eq!(disk(&[(510, &[0x55, 0xAA])]), table);
        // A table may be written over an old filesystem, and that never counts.
        assert_eq!(disk(&[(512, b"EFI PART"), (1080, &[0x53, 0xEF])]), table);
    }

    #[test]
    fn an_ext4_says_how_large_it_is() {
        let ext = |parts: &[Part<'_>]| match disk(parts) {
            Content::Filesystem { bytes, .. } => bytes,
            other => panic!("{other:?}"),
        };
        let magic: Part<'_> = (1080, &[0x53, 0xEF]);
        let (blocks, log): (Part<'_>, Part<'_>) = ((1028, &[0, 0, 4, 0]), (1048, &[2, 0, 0, 0]));
        assert_eq!(ext(&[magic, blocks, log]), Some(1 << 30));
        let (wide, high): (Part<'_>, Part<'_>) = ((1120, &[0x80, 0, 0, 0]), (1360, &[1, 0, 0, 0]));
        assert_eq!(ext(&[magic, blocks, log, wide, high]), Some((1 << 44) + (1 << 30)));
        let silly: Part<'_> = (1048, &[255, 255, 255, 255]);
        assert_eq!(ext(&[magic, blocks, silly]), None);
    }
}
