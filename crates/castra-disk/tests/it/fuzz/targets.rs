//! Fuzz targets: disks of any bytes. Reading them ends, in bounded memory, and without a panic.
//! `fuzz/` runs the same functions under libFuzzer.

use std::io::Write as _;
use std::time::{Duration, Instant};

use castra_disk::{Disk, FileKind, Format, Image, Layer, Limits, Source};

use super::sparse::Sparse;

/// UUID that the seeds of btrfs have: each of their tree blocks begins with it, after the checksum.
const UUID: [u8; 16] = *b"\x0f\x0e\x0d\x0c\x12\x34\x43\x21\x88\x88\xa1\xb2\xc3\xd4\xe5\xf6";
/// Limits under which an input takes at most a second or two.
const LIMITS: Limits = Limits {
    reads: 200_000,
    bytes: 256 << 20,
    time: Duration::from_secs(2),
    kernel_bytes: 256 << 20,
};
/// Time after which no more files are read: each has limits of its own.
const MAX_LISTING: Duration = Duration::from_secs(1);
/// Maximum number of directories that are listed.
const MAX_DIRECTORIES: usize = 50;

/// Reads a partition table, or the metadata of a volume group.
pub(crate) fn tables(data: &[u8]) {
    let mut disk = Sparse::decode(data);
    reseal_gpt(&mut disk);
    let Ok(disk) = Disk::open(disk, LIMITS) else { return };
    assert!(disk.volumes().len() <= 1000);
    let _ = disk.find_system();
    let _ = disk.inspect();
}

/// Reads a filesystem on the whole disk: finds its system and lists everything.
pub(crate) fn filesystem(data: &[u8]) {
    let mut disk = Sparse::decode(data);
    reseal_btrfs(&mut disk);
    let Ok(disk) = Disk::open(disk, LIMITS) else { return };
    let _ = disk.inspect();
    let Ok(mut system) = disk.find_system() else { return };
    let mut directories = vec![b"/".to_vec()];
    let start = Instant::now();
    for at in 0..MAX_DIRECTORIES {
        let Some(directory) = directories.get(at).cloned() else { break };
        for entry in system.files.list(&directory).unwrap_or_default() {
            let path = [&directory[..], b"/", &entry.name].concat();
            match entry.kind {
                FileKind::Directory => directories.push(path),
                _ if start.elapsed() < MAX_LISTING => drop(system.files.read(path, 1 << 16)),
                _ => return,
            }
        }
    }
}

/// Reads a qcow2.
pub(crate) fn qcow2(data: &[u8]) {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(data).expect("written");
    let Ok(image) = Image::open([Layer { file, format: Format::Qcow2 }]) else { return };
    let mut buffer = vec![0; 1 << 20];
    for offset in [0, 1 << 20, image.length().saturating_sub(buffer.len() as u64)] {
        let _ = image.read_at(offset, &mut buffer);
    }
}

/// Corrects the checksums of a btrfs, so that spoilt content is looked at.
fn reseal_btrfs(disk: &mut Sparse) {
    for (_, block) in disk.blocks().filter(|(_, block)| block[32..48] == UUID) {
        let sum = checksum(0x82f6_3b78, &block[32..]);
        block[..4].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Corrects the checksums of a GPT whose table is in the five blocks at the beginning.
fn reseal_gpt(disk: &mut Sparse) {
    let mut beginning = vec![0; 5 * 4096];
    for (index, block) in disk.blocks().filter(|(index, _)| **index < 5) {
        beginning[*index as usize * 4096..][..4096].copy_from_slice(block);
    }
    if !beginning[512..].starts_with(b"EFI PART") {
        return;
    }
    let sum = checksum(0xedb8_8320, &beginning[1024..1024 + 128 * 128]);
    beginning[512 + 88..512 + 92].copy_from_slice(&sum.to_le_bytes());
    beginning[512 + 16..512 + 20].fill(0);
    let sum = checksum(0xedb8_8320, &beginning[512..512 + 92]);
    beginning[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
    for (_, block) in disk.blocks().filter(|(index, _)| **index == 0) {
        block.copy_from_slice(&beginning[..4096]);
    }
}

/// Returns the CRC-32 of this reflected polynomial.
fn checksum(polynomial: u32, bytes: &[u8]) -> u32 {
    let mut sum = !0;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 0 { sum >> 1 } else { sum >> 1 ^ polynomial };
        }
    }
    !sum
}
