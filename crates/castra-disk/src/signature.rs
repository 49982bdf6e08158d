//! Signatures of filesystems and of other content.

use std::fmt;
use std::io;

use crate::fields::{be32, le16, le32, text, uuid};
use crate::lvm;
use crate::source::{Source, read_up_to};

/// Number of bytes that are searched: the superblock of btrfs is the last of them.
const BEGINNING_BYTES: usize = 68 << 10;
/// Place of the superblock of ext2, ext3 and ext4.
const EXT: usize = 1024;
/// Place of the superblock of btrfs.
const BTRFS: usize = 64 << 10;
/// Place of the uberblocks of ZFS, one of which is every KiB.
const ZFS: std::ops::Range<u64> = 128 << 10..256 << 10;
const ZFS_MAGIC: u32 = 0x00ba_b10c;

/// Kind of a filesystem that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Second extended filesystem.
    Ext2,
    /// Third extended filesystem, with a journal.
    Ext3,
    /// Fourth extended filesystem.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT with 12, 16 or 32 bits.
    Vfat,
}

impl Kind {
    /// Returns Linux's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A filesystem as it names itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Kind of the filesystem.
    pub kind: Kind,
    /// UUID as `blkid` shows it, as in `root=UUID=…`.
    pub uuid: String,
    /// Label, if there is one.
    pub label: Option<String>,
}

/// Content of a disk, a partition or a logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// A filesystem that can be read.
    Filesystem(Identity),
    /// A physical volume of LVM2, whose logical volumes are listed by themselves.
    PhysicalVolume,
    /// Content that cannot be read, by name.
    Foreign(&'static str),
    /// Nothing that is known.
    Unknown,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filesystem(identity) => identity.kind.fmt(f),
            Self::PhysicalVolume => f.write_str("LVM physical volume"),
            Self::Foreign(name) => f.write_str(name),
            Self::Unknown => f.write_str("unknown content"),
        }
    }
}

/// Content that is recognized and not read: offset, first bytes, name.
const FOREIGN: [(usize, &[u8], &str); 15] = [
    (0, b"LUKS\xba\xbe", "LUKS encryption"),
    (3, b"-FVE-FS-", "BitLocker encryption"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (3, b"ReFS\0\0\0\0", "ReFS"),
    (0, b"hsqs", "SquashFS"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (1024, b"H+\0\x04", "HFS+"),
    (32, b"NXSB", "APFS"),
    (4096, b"\xfc\x4e\x2b\xa9", "Linux software RAID"),
    (4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcachefs"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (32 << 10 | 1, b"CD001", "ISO 9660"),
];

/// Recognizes content.
///
/// # Errors
/// Those of the source.
pub(crate) fn recognize(source: &dyn Source) -> io::Result<Content> {
    let beginning = read_up_to(source, 0, BEGINNING_BYTES)?;
    if lvm::is_physical_volume(&beginning) {
        return Ok(Content::PhysicalVolume);
    }
    let foreign = FOREIGN
        .iter()
        .find(|(at, magic, _)| beginning.get(*at..).is_some_and(|bytes| bytes.starts_with(magic)));
    if let Some((_, _, name)) = foreign {
        return Ok(Content::Foreign(name));
    }
    let filesystem = xfs(&beginning)
        .or_else(|| btrfs(&beginning))
        .or_else(|| ext(&beginning))
        .or_else(|| vfat(&beginning));
    if let Some(identity) = filesystem {
        return Ok(Content::Filesystem(identity));
    }
    let blocks = read_up_to(source, ZFS.start, (ZFS.end - ZFS.start) as usize)?;
    let is_zfs = blocks
        .chunks(1024)
        .any(|block| le32(block, 0) == Some(ZFS_MAGIC) || be32(block, 0) == Some(ZFS_MAGIC));
    Ok(if is_zfs { Content::Foreign("ZFS") } else { Content::Unknown })
}

fn uuid_at(bytes: &[u8], at: usize) -> Option<String> {
    bytes.get(at..)?.first_chunk().map(uuid)
}

fn ext(bytes: &[u8]) -> Option<Identity> {
    let block = bytes.get(EXT..)?;
    if le16(block, 0x38)? != 0xef53 {
        return None;
    }
    let (compatible, incompatible) = (le32(block, 0x5c)?, le32(block, 0x60)?);
    let read_only = le32(block, 0x64)?;
    // Those of blkid: what neither ext2 nor ext3 knows makes an ext4.
    let (ext3_incompatible, ext3_read_only) = (0x16, 0x7);
    let kind = if incompatible & !ext3_incompatible != 0 || read_only & !ext3_read_only != 0 {
        Kind::Ext4
    } else if compatible & 0x4 != 0 {
        Kind::Ext3
    } else {
        Kind::Ext2
    };
    let label = text(block.get(0x78..0x88)?);
    Some(Identity { kind, uuid: uuid_at(block, 0x68)?, label })
}

fn xfs(bytes: &[u8]) -> Option<Identity> {
    bytes.starts_with(b"XFSB").then_some(())?;
    let label = text(bytes.get(108..120)?);
    Some(Identity { kind: Kind::Xfs, uuid: uuid_at(bytes, 32)?, label })
}

fn btrfs(bytes: &[u8]) -> Option<Identity> {
    let block = bytes.get(BTRFS..)?;
    (block.get(0x40..0x48)? == b"_BHRfS_M").then_some(())?;
    let label = text(block.get(0x12b..0x22b)?);
    Some(Identity { kind: Kind::Btrfs, uuid: uuid_at(block, 0x20)?, label })
}

fn vfat(bytes: &[u8]) -> Option<Identity> {
    let has = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|it| it.starts_with(magic));
    let is_boot_sector = le16(bytes, 510)? == 0xaa55;
    let fields = if is_boot_sector && has(82, b"FAT32") {
        67
    } else if is_boot_sector && has(54, b"FAT") {
        39
    } else {
        return None;
    };
    let serial = le32(bytes, fields)?;
    let label = text(bytes.get(fields + 4..fields + 15)?).filter(|label| label != "NO NAME");
    let uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff);
    Some(Identity { kind: Kind::Vfat, uuid, label })
}
