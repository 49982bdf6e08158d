//! Reads the header of a qcow2 without starting a process, and refuses disks that would lead QEMU
//! astray.
//!
//! A qcow2 may name other files: a backing file, and a file that holds its data. Anyone may have
//! written those names, and QEMU opens the files with all the rights of this user: a disk from
//! elsewhere could show the guest an SSH key. So disks that keep their data in another file are
//! refused, and the name of a backing file is only reported here: the caller decides whether to
//! open it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::disk_error::DiskError;
use super::error::QemuError;
use crate::files::open_regular;

/// First bytes of every qcow2. Source of all numbers below: docs/interop/qcow2.txt of QEMU.
pub const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
/// Length of the fixed part of the header that versions 2 and 3 share: the whole header of version
/// 2.
const FIXED_BYTES: usize = 72;
/// Least length of the header of version 3.
const FIXED_BYTES_V3: usize = 104;
/// Longest backing file name that the format allows, in bytes.
const MAX_BACKING_NAME_BYTES: u32 = 1023;
/// Permitted cluster sizes: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Largest level-1 table that QEMU accepts, in bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest size of a reference count: 2^6 bits.
const MAX_REFCOUNT_ORDER: u32 = 6;
/// Header extension: name of the backing file's format.
pub(super) const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Number of header bytes that are searched for extensions; QEMU's headers take a fraction of it.
const MAX_HEADER_BYTES: u64 = 64 << 10;

/// Bits of "incompatible features".
mod feature {
    /// Not all reference counts are up to date: QEMU repairs that.
    pub(super) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
}

/// Contents of a qcow2's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2Header {
    /// Virtual size of the disk.
    pub virtual_bytes: u64,
    /// Name of the backing file as it is written in the header: absolute, or relative to the
    /// qcow2's own directory.
    pub backing_file: Option<PathBuf>,
    /// Format of the backing file as it is written in the header.
    pub backing_format: Option<String>,
    level_1: Level1Table,
    /// Number of internal snapshots.
    snapshots: u32,
}

/// Place of the table that leads to all clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level1Table {
    offset: u64,
    /// Length, at most [`MAX_L1_BYTES`].
    bytes: usize,
}

impl Qcow2Header {
    /// Reads the header.
    ///
    /// # Errors
    /// [`QemuError::File`] if the file cannot be read, [`QemuError::NotQcow2`] if it is something
    /// else or inconsistent, [`QemuError::Disk`] for a disk that cannot or must not be used.
    pub fn read(path: &Path) -> Result<Self, QemuError> {
        let unreadable = |source| QemuError::File { action: "read", path: path.to_owned(), source };
        let refuse =
            |reason: &str| QemuError::NotQcow2 { path: path.to_owned(), reason: reason.to_owned() };
        let file = open_regular(path).map_err(unreadable)?;
        let fixed = fixed_part(&file).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => refuse("it is too short"),
            _ => unreadable(error),
        })?;
        if fixed[..4] != QCOW2_MAGIC {
            return Err(refuse("it does not start with the qcow2 magic"));
        }
        let features = check_features(path, &fixed)?;
        check_geometry(&fixed, features).map_err(refuse)?;
        let (offset, length) = (u64_at(&fixed, 8), u32_at(&fixed, 16));
        // The format requires the name within the first cluster.
        let end = (1_u64 << u32_at(&fixed, 20)).min(MAX_HEADER_BYTES);
        if length > MAX_BACKING_NAME_BYTES || offset.saturating_add(length.into()) > end {
            return Err(refuse("its backing file name is at an invalid offset"));
        }
        let mut name = vec![0; length as usize];
        file.read_exact_at(&mut name, offset)
            .map_err(|_| refuse("its backing file name is truncated"))?;
        let has_backing = offset != 0 && length != 0;
        let backing_format = if has_backing { backing_format(&file, &fixed, offset) } else { None };
        Ok(Self {
            virtual_bytes: u64_at(&fixed, 24),
            backing_file: has_backing.then(|| OsString::from_vec(name).into()),
            backing_format,
            level_1: Level1Table {
                offset: u64_at(&fixed, 40),
                bytes: u32_at(&fixed, 36) as usize * 8,
            },
            snapshots: u32_at(&fixed, 60),
        })
    }

    /// Returns `true` if no cluster of the qcow2 was ever allocated: its level-1 table is empty, and
    /// it has no snapshots.
    ///
    /// # Errors
    /// [`QemuError::NotQcow2`] for a file whose end is missing: what was there would read as zeros.
    pub fn has_no_clusters(&self, path: &Path) -> Result<bool, QemuError> {
        /// Offset of a level-2 table in an entry of the level-1 table.
        const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
        let unreadable = |source| QemuError::File { action: "read", path: path.to_owned(), source };
        let truncated = || {
            let reason = "its end is missing".to_owned();
            QemuError::NotQcow2 { path: path.to_owned(), reason }
        };
        let file = open_regular(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let mut table = vec![0; self.level_1.bytes];
        file.read_exact_at(&mut table, self.level_1.offset).map_err(|_| truncated())?;
        if table.chunks_exact(8).any(|entry| u64_at(entry, 0) & OFFSET >= length) {
            return Err(truncated());
        }
        Ok(self.snapshots == 0 && table.iter().all(|byte| *byte == 0))
    }

    /// Returns the path of the backing file, if there is one: a plain file's absolute path without
    /// `.` and `..`.
    ///
    /// # Errors
    /// [`DiskError::NotAPlainFile`] for a name that QEMU would interpret otherwise, such as
    /// `nbd://…` or `json:…`.
    pub fn backing_path(&self, disk: &Path) -> Result<Option<PathBuf>, DiskError> {
        let Some(name) = &self.backing_file else { return Ok(None) };
        let bytes = name.as_os_str().as_bytes();
        // QEMU's rule (path_has_protocol): a colon before the first slash.
        let colon = bytes.iter().position(|byte| *byte == b':');
        let slash = bytes.iter().position(|byte| *byte == b'/').unwrap_or(bytes.len());
        if colon.is_some_and(|colon| colon < slash) || bytes.contains(&0) {
            let (disk, name) = (disk.to_owned(), name.to_string_lossy().into_owned());
            return Err(DiskError::NotAPlainFile { disk, name });
        }
        Ok(Some(crate::files::normalise(&disk.parent().unwrap_or(Path::new("/")).join(name))))
    }
}

/// Reads the fixed part of the header; fields that version 2 lacks are zero, which is their
/// default.
fn fixed_part(file: &File) -> io::Result<[u8; FIXED_BYTES_V3]> {
    let mut fixed = [0; FIXED_BYTES_V3];
    file.read_exact_at(&mut fixed[..FIXED_BYTES], 0)?;
    if u32_at(&fixed, 4) != 2 {
        file.read_exact_at(&mut fixed[FIXED_BYTES..], FIXED_BYTES as u64)?;
    }
    Ok(fixed)
}

/// Refuses a disk with features that castra does not support, or does not permit. Returns its
/// incompatible features.
fn check_features(path: &Path, fixed: &[u8]) -> Result<u64, DiskError> {
    use feature::{COMPRESSION, CORRUPT, DIRTY, EXTENDED_L2, EXTERNAL_DATA};
    let disk = path.to_owned();
    let (encryption, features) = (u32_at(fixed, 32), u64_at(fixed, 72));
    let unknown = features & !(DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2);
    if encryption != 0 {
        return Err(DiskError::Encrypted { disk });
    }
    if features & EXTERNAL_DATA != 0 {
        return Err(DiskError::DataElsewhere { disk });
    }
    if features & CORRUPT != 0 {
        return Err(DiskError::Corrupt { disk });
    }
    if unknown != 0 {
        return Err(DiskError::UnknownFeatures { disk, features: unknown });
    }
    Ok(features)
}

/// Checks that the numbers are consistent; returns the reason if they are not.
fn check_geometry(fixed: &[u8], features: u64) -> Result<(), &'static str> {
    let (version, cluster_bits) = (u32_at(fixed, 4), u32_at(fixed, 20));
    if !matches!(version, 2 | 3) {
        return Err("its qcow2 version is not supported");
    }
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return Err("its cluster size is invalid");
    }
    let cluster_bytes = 1_u64 << cluster_bits;
    if version == 3 {
        let length = u64::from(u32_at(fixed, 100));
        if length < FIXED_BYTES_V3 as u64 || length > cluster_bytes {
            return Err("its header length is invalid");
        }
        if u32_at(fixed, 96) > MAX_REFCOUNT_ORDER {
            return Err("its refcount size is invalid");
        }
    }
    // The level-1 table must cover the whole disk.
    let entry_bytes = if features & feature::EXTENDED_L2 == 0 { 8 } else { 16 };
    let bytes_per_l1_entry = cluster_bytes / entry_bytes * cluster_bytes;
    let (has, needs) =
        (u64::from(u32_at(fixed, 36)), u64_at(fixed, 24).div_ceil(bytes_per_l1_entry));
    if has * 8 > MAX_L1_BYTES || has < needs {
        return Err("its table sizes are invalid");
    }
    Ok(())
}

/// Returns the backing file's format, from the extensions between the header and the backing file's
/// name.
fn backing_format(file: &File, fixed: &[u8], name_offset: u64) -> Option<String> {
    let mut offset =
        if u32_at(fixed, 4) == 2 { FIXED_BYTES as u64 } else { u32_at(fixed, 100).into() };
    while offset + 8 <= name_offset {
        let mut extension = [0; 8];
        file.read_exact_at(&mut extension, offset).ok()?;
        let (kind, length) = (u32_at(&extension, 0), u64::from(u32_at(&extension, 4)));
        let end = offset.checked_add(8 + length).filter(|end| *end <= name_offset)?;
        match kind {
            0 => return None,
            BACKING_FORMAT => {
                let mut name = vec![0; usize::try_from(length).ok()?];
                file.read_exact_at(&mut name, offset + 8).ok()?;
                return String::from_utf8(name).ok();
            }
            _ => offset = end.next_multiple_of(8),
        }
    }
    None
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes[offset..offset + 8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes[offset..offset + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}
