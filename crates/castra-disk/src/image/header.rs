//! Header of a qcow2. Source of all numbers: docs/interop/qcow2.rst of QEMU.

use crate::fields::{be32, be64};

/// First bytes of every qcow2.
const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
/// Length of the header of version 2.
const V2_BYTES: usize = 72;
/// Least length of the header of version 3.
const V3_BYTES: usize = 104;
/// Number of bytes in which all fields are.
pub(super) const MAX_BYTES: usize = 112;
/// Permitted cluster sizes: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Least cluster size with subclusters: they have at least 512 bytes.
const MIN_EXTENDED_CLUSTER_BITS: u32 = 14;
/// Largest level-1 table that QEMU accepts, in bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Mask of the offset in an entry of the level-1 table and of a standard level-2 entry.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Bits of "incompatible features".
mod feature {
    /// Reference counts may be stale: they only matter to a writer.
    pub(super) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}

/// A header that is invalid, or of a disk that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file is no qcow2.
    #[error("it is no qcow2")]
    NotQcow2,
    /// The version is neither 2 nor 3.
    #[error("qcow2 version {0} is not supported")]
    Version(u32),
    /// The disk is encrypted.
    #[error("it is encrypted")]
    Encrypted,
    /// The content is in another file.
    #[error("its data is in another file")]
    ExternalData,
    /// QEMU found the image inconsistent and marked it.
    #[error("it is marked as corrupt")]
    Corrupt,
    /// The image has features that are not known.
    #[error("it has unknown features ({0:#x})")]
    UnknownFeatures(u64),
    /// The method of compression is not known.
    #[error("its compression method {0} is not supported")]
    Compression(u8),
    /// Sizes contradict each other or exceed those of the format.
    #[error("its {0} is invalid")]
    Geometry(&'static str),
}

/// Method by which clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Deflate,
    Zstd,
}

/// Geometry of a qcow2, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) virtual_bytes: u64,
    pub(super) has_backing: bool,
    pub(super) cluster_bits: u32,
    pub(super) extended_l2: bool,
    pub(super) compression: Compression,
    pub(super) l1_offset: u64,
    /// Number of entries of the level-1 table that the disk needs.
    pub(super) l1_entries: usize,
}

impl Header {
    /// Parses the first bytes of a file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() < V2_BYTES || be32(bytes, 0) != Some(MAGIC) {
            return Err(HeaderError::NotQcow2);
        }
        let number = |at| be32(bytes, at).unwrap_or(0);
        let wide = |at| be64(bytes, at).unwrap_or(0);
        let version = number(4);
        // Fields that version 2 lacks have their default, zero.
        let (features, length) = match version {
            2 => (0, V2_BYTES),
            3 if bytes.len() < V3_BYTES => return Err(HeaderError::NotQcow2),
            3 => (wide(72), number(100) as usize),
            other => return Err(HeaderError::Version(other)),
        };
        if number(32) != 0 {
            return Err(HeaderError::Encrypted);
        }
        check_features(features)?;
        let extended_l2 = features & feature::EXTENDED_L2 != 0;
        let cluster_bits = number(20);
        if !CLUSTER_BITS.contains(&cluster_bits)
            || (extended_l2 && cluster_bits < MIN_EXTENDED_CLUSTER_BITS)
        {
            return Err(HeaderError::Geometry("cluster size"));
        }
        let cluster = 1_u64 << cluster_bits;
        if version == 3 && (length < V3_BYTES || length as u64 > cluster) {
            return Err(HeaderError::Geometry("header length"));
        }
        let kind = if length > V3_BYTES { bytes.get(V3_BYTES).copied().unwrap_or(0) } else { 0 };
        let compression = match (kind, features & feature::COMPRESSION != 0) {
            (0, false) => Compression::Deflate,
            (1, true) => Compression::Zstd,
            (kind, _) => return Err(HeaderError::Compression(kind)),
        };
        let l2_entries = cluster / if extended_l2 { 16 } else { 8 };
        let l1_entries = wide(24).div_ceil(l2_entries * cluster);
        if l1_entries * 8 > MAX_L1_BYTES || l1_entries > number(36).into() {
            return Err(HeaderError::Geometry("level-1 table"));
        }
        let l1_offset = wide(40);
        if l1_offset % cluster != 0 {
            return Err(HeaderError::Geometry("offset of the level-1 table"));
        }
        Ok(Self {
            virtual_bytes: wide(24),
            has_backing: wide(8) != 0 && number(16) != 0,
            cluster_bits,
            extended_l2,
            compression,
            l1_offset,
            l1_entries: l1_entries as usize,
        })
    }
}

fn check_features(features: u64) -> Result<(), HeaderError> {
    use feature::{COMPRESSION, CORRUPT, DIRTY, EXTENDED_L2, EXTERNAL_DATA};
    if features & EXTERNAL_DATA != 0 {
        return Err(HeaderError::ExternalData);
    }
    if features & CORRUPT != 0 {
        return Err(HeaderError::Corrupt);
    }
    match features & !(DIRTY | COMPRESSION | EXTENDED_L2) {
        0 => Ok(()),
        unknown => Err(HeaderError::UnknownFeatures(unknown)),
    }
}
