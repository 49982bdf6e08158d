//! A disk with the shape of the official image and the contents of the default one.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use super::castra::Castra;
use super::common::only_entry;
use super::plain::helper;

/// Size of a block of the filesystem, in bytes.
const BLOCK_BYTES: u64 = 4096;

/// Makes a fixed VHD that is one ext4 filesystem, as small as its files allow, and returns its
/// SHA-256. Leaves intermediate files in `directory`.
pub(super) fn make_vhd(directory: &Path, vhd: &Path) -> Result<String, String> {
    fs::create_dir_all(directory).map_err(|error| error.to_string())?;
    Castra::in_directory(directory).run(&["image", "pull"])?;
    let image = only_entry(&only_entry(&directory.join(".castra/images"))?)?;
    let (qcow2, raw) = (image.join("rootfs.qcow2"), vhd.to_string_lossy());
    helper("qemu-img", &["convert", "-O", "raw", &qcow2.to_string_lossy(), &raw])?;
    // Exit status 1 means that it has fixed something, such as a journal to replay.
    let _ = helper("e2fsck", &["-fy", &raw]);
    helper("resize2fs", &["-M", &raw])?;
    let described = helper("dumpe2fs", &["-h", &raw])?;
    let blocks = described.lines().find_map(|line| line.strip_prefix("Block count:"));
    let blocks: u64 =
        blocks.and_then(|text| text.trim().parse().ok()).ok_or("dumpe2fs names no block count")?;
    add_footer(vhd, blocks * BLOCK_BYTES).map_err(|error| error.to_string())?;
    let sum = helper("sha256sum", &[&raw])?;
    sum.split_whitespace()
        .next()
        .map(str::to_owned)
        .ok_or_else(|| "sha256sum says nothing".to_owned())
}

/// Truncates the disk to its length and appends the footer, as described in the Virtual Hard Disk
/// Image Format Specification 1.0.
fn add_footer(disk: &Path, length: u64) -> std::io::Result<()> {
    /// Type of a disk that is stored as plain bytes.
    const FIXED: u32 = 2;
    let mut footer = [0_u8; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[8..12].copy_from_slice(&2_u32.to_be_bytes());
    footer[12..16].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
    footer[16..24].copy_from_slice(&u64::MAX.to_be_bytes());
    footer[40..48].copy_from_slice(&length.to_be_bytes());
    footer[48..56].copy_from_slice(&length.to_be_bytes());
    footer[60..64].copy_from_slice(&FIXED.to_be_bytes());
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    let mut file = OpenOptions::new().append(true).open(disk)?;
    file.set_len(length)?;
    file.write_all(&footer)
}
