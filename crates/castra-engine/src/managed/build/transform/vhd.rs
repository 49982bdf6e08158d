//! Fixed VHDs: a raw disk followed by a 512-byte footer ("Virtual Hard Disk Image Format
//! Specification", Microsoft, 2006).

use std::os::unix::fs::FileExt;

use super::{Material, TransformError};
use crate::files::{self, At};
use crate::managed::error::ImageError;

/// Size of the footer, in bytes.
const FOOTER_BYTES: usize = 512;
/// First bytes of the footer.
const COOKIE: &[u8; 8] = b"conectix";
/// Place of the footer's checksum: the ones' complement of the sum of all its other bytes.
const CHECKSUM: std::ops::Range<usize> = 64..68;
/// Place of the kind of disk in the footer.
const DISK_TYPE: std::ops::Range<usize> = 60..64;

/// Kinds of VHD, by their number in the footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VhdKind {
    /// A raw disk followed by the footer.
    Fixed = 2,
    /// Blocks that are allocated when they are written to.
    Dynamic = 3,
    /// Differences from another VHD.
    Differencing = 4,
}

/// Returns the kind of VHD that this is the footer of.
///
/// # Errors
/// Returns the problem of the footer, as half a sentence.
pub fn parse_vhd_footer(footer: &[u8; 512]) -> Result<VhdKind, &'static str> {
    if !footer.starts_with(COOKIE) {
        return Err("it has no footer");
    }
    if number_at(footer, CHECKSUM) != checksum(footer) {
        return Err("its footer is damaged");
    }
    match number_at(footer, DISK_TYPE) {
        2 => Ok(VhdKind::Fixed),
        3 => Ok(VhdKind::Dynamic),
        4 => Ok(VhdKind::Differencing),
        _ => Err("its footer has an unknown disk type"),
    }
}

/// Returns the raw disk inside a fixed VHD: a view of the same file.
pub(super) fn strip_footer(material: &Material) -> Result<Material, ImageError> {
    let not_vhd = |problem| TransformError::NotVhd { path: material.path.clone(), problem };
    let disk_bytes = material.length.checked_sub(FOOTER_BYTES as u64);
    let disk_bytes =
        disk_bytes.filter(|bytes| *bytes > 0).ok_or_else(|| not_vhd("it is too short"))?;
    let mut footer = [0; FOOTER_BYTES];
    files::open(&material.path)?
        .read_exact_at(&mut footer, disk_bytes)
        .at("read", &material.path)?;
    let not_fixed = |kind| TransformError::NotFixedVhd { path: material.path.clone(), kind };
    match parse_vhd_footer(&footer).map_err(not_vhd)? {
        VhdKind::Fixed => Ok(Material {
            path: material.path.clone(),
            length: disk_bytes,
            whole: false,
            sha256: None,
        }),
        VhdKind::Dynamic => Err(not_fixed("dynamic").into()),
        VhdKind::Differencing => Err(not_fixed("differencing").into()),
    }
}

fn number_at(footer: &[u8; FOOTER_BYTES], range: std::ops::Range<usize>) -> u32 {
    footer[range].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn checksum(footer: &[u8; FOOTER_BYTES]) -> u32 {
    let others = footer.iter().enumerate().filter(|(index, _)| !CHECKSUM.contains(index));
    !others.map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}
