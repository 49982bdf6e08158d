//! Fixed VHDs: a raw disk and 512 bytes about it ("Virtual Hard Disk Image Format Specification", Microsoft, 2006).

use std::os::unix::fs::FileExt;

use super::{Material, TransformError};
use crate::managed::error::{At, ImageError};
use crate::managed::files;

/// Size of the footer, in bytes.
const FOOTER_BYTES: usize = 512;
/// How the footer starts.
const COOKIE: &[u8; 8] = b"conectix";
/// Where the footer keeps its checksum: the ones' complement of the sum of all its other bytes.
const CHECKSUM: std::ops::Range<usize> = 64..68;
/// Where the footer keeps the kind of disk.
const DISK_TYPE: std::ops::Range<usize> = 60..64;

/// The raw disk inside a fixed VHD: a view of the same file.
pub(super) fn strip_footer(material: &Material) -> Result<Material, ImageError> {
    let not_vhd = |problem| TransformError::NotVhd { path: material.path.clone(), problem };
    let disk_bytes = material.length.checked_sub(FOOTER_BYTES as u64);
    let disk_bytes = disk_bytes.filter(|bytes| *bytes > 0).ok_or_else(|| not_vhd("it is too short"))?;
    let mut footer = [0; FOOTER_BYTES];
    files::open(&material.path)?.read_exact_at(&mut footer, disk_bytes).at("read", &material.path)?;
    if !footer.starts_with(COOKIE) {
        return Err(not_vhd("it has no footer").into());
    }
    if number_at(&footer, CHECKSUM) != checksum(&footer) {
        return Err(not_vhd("its footer is damaged").into());
    }
    let not_fixed = |kind| TransformError::NotFixedVhd { path: material.path.clone(), kind };
    match number_at(&footer, DISK_TYPE) {
        2 => Ok(Material { path: material.path.clone(), length: disk_bytes, whole: false, sha256: None }),
        3 => Err(not_fixed("dynamic").into()),
        4 => Err(not_fixed("differencing").into()),
        _ => Err(not_vhd("its footer names no known kind of disk").into()),
    }
}

fn number_at(footer: &[u8; FOOTER_BYTES], range: std::ops::Range<usize>) -> u32 {
    footer[range].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn checksum(footer: &[u8; FOOTER_BYTES]) -> u32 {
    let others = footer.iter().enumerate().filter(|(index, _)| !CHECKSUM.contains(index));
    !others.map(|(_, byte)| u32::from(*byte)).sum::<u32>()
}
