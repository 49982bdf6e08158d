//! Writes an empty qcow2, without starting a process: `qemu-img create` takes a tenth of a warm
//! start.
//!
//! The format is that of QEMU's docs/interop/qcow2.txt, version 3, with the defaults of qemu-img:
//! clusters of 64 KiB, reference counts of 16 bits.
//!
//! ```text
//! cluster 0  header, end of extensions; before and after those, if there is a backing file, its
//!            format and its name
//! cluster 1  reference count table, one entry: cluster 2
//! cluster 2  reference counts of the first 32768 clusters
//! cluster 3… level-1 table, all zero: nothing is allocated, and everything comes from the backing
//!            file or is zero
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::qcow2::QCOW2_MAGIC;

const VERSION: u32 = 3;
const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
/// Bytes of a disk per entry of the level-1 table: a level-2 table is one cluster of 8-byte
/// entries, each of one cluster.
const BYTES_PER_L1_ENTRY: u64 = CLUSTER_BYTES / 8 * CLUSTER_BYTES;
/// Size of a reference count: 2^4 bits.
const REFCOUNT_ORDER: u32 = 4;
/// Length of the version 3 header, without optional fields.
const HEADER_BYTES: u32 = 104;
/// Header extension: name of the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Longest backing file name that the format allows, in bytes.
const MAX_NAME_BYTES: usize = 1023;
/// Largest level-1 table, in bytes: larger ones leave no room in the single block of reference
/// counts, and QEMU itself refuses them (32 MiB).
const MAX_L1_BYTES: u64 = 32 << 20;

const REFCOUNT_TABLE: u64 = CLUSTER_BYTES;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER_BYTES;
const L1_TABLE: u64 = 3 * CLUSTER_BYTES;

/// Writes an empty overlay of `virtual_bytes` with a qcow2 as its backing file into an empty file.
/// The name is written as given.
///
/// # Errors
/// Those of writing; [`io::ErrorKind::InvalidInput`] for a name or a size that the format does not
/// allow.
pub(super) fn write(file: &mut File, backing_file: &Path, virtual_bytes: u64) -> io::Result<()> {
    let name = backing_file.as_os_str().as_bytes();
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    write_image(file, Some(name), virtual_bytes)
}

/// Writes an empty disk of `virtual_bytes`, all of it zero, into an empty file.
///
/// # Errors
/// As [`write`].
pub(super) fn write_blank(file: &mut File, virtual_bytes: u64) -> io::Result<()> {
    write_image(file, None, virtual_bytes)
}

fn write_image(file: &mut File, name: Option<&[u8]>, virtual_bytes: u64) -> io::Result<()> {
    let virtual_bytes = virtual_bytes.next_multiple_of(512);
    let l1_entries = virtual_bytes.div_ceil(BYTES_PER_L1_ENTRY);
    if l1_entries * 8 > MAX_L1_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER_BYTES);
    let mut image = header(name, virtual_bytes, l1_entries);
    image.resize(REFCOUNT_TABLE as usize, 0);
    image.extend(REFCOUNT_BLOCK.to_be_bytes());
    image.resize(REFCOUNT_BLOCK as usize, 0);
    let clusters = 3 + l1_clusters;
    image.extend((0..clusters).flat_map(|_| 1_u16.to_be_bytes()));
    file.write_all(&image)?;
    // The rest of the file is zero.
    file.set_len(clusters * CLUSTER_BYTES)
}

fn header(name: Option<&[u8]>, virtual_bytes: u64, l1_entries: u64) -> Vec<u8> {
    const FORMAT: &[u8; 5] = b"qcow2";
    // Extensions are padded to 8 bytes; the last one is empty.
    let name_offset = name.map_or(0, |_| u64::from(HEADER_BYTES) + 8 + 8 + 8);
    let name = name.unwrap_or_default();
    let mut header = Vec::new();
    header.extend(QCOW2_MAGIC);
    header.extend(VERSION.to_be_bytes());
    header.extend(name_offset.to_be_bytes());
    header.extend((name.len() as u32).to_be_bytes());
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(virtual_bytes.to_be_bytes());
    header.extend(0_u32.to_be_bytes()); // no encryption
    header.extend((l1_entries as u32).to_be_bytes());
    header.extend(L1_TABLE.to_be_bytes());
    header.extend(REFCOUNT_TABLE.to_be_bytes());
    header.extend(1_u32.to_be_bytes()); // clusters of the reference count table
    header.extend([0; 4 + 8]); // no snapshots
    header.extend([0; 3 * 8]); // no feature bits
    header.extend(REFCOUNT_ORDER.to_be_bytes());
    header.extend(HEADER_BYTES.to_be_bytes());
    if !name.is_empty() {
        header.extend(BACKING_FORMAT.to_be_bytes());
        header.extend((FORMAT.len() as u32).to_be_bytes());
        header.extend(FORMAT);
        header.extend([0; 3]);
    }
    header.extend([0; 8]); // end of extensions
    header.extend(name);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn qemu_img(arguments: &[&str]) -> String {
        let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img runs");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn qemu_takes_it_for_its_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let base = directory.path().join("base.qcow2");
        qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().expect("UTF-8"), "1M"]);
        for size in [1 << 20, 10 << 30, (10 << 30) + 512, 700 << 30, 9 << 40] {
            let path = directory.path().join("overlay.qcow2");
            let mut file = File::create(&path).expect("is made");
            write(&mut file, Path::new("base.qcow2"), size).expect("is written");
            let overlay = path.to_str().expect("UTF-8");
            assert!(qemu_img(&["check", overlay]).contains("No errors"), "{size}");
            let info: serde_json::Value =
                serde_json::from_str(&qemu_img(&["info", "--output=json", overlay])).expect("JSON");
            assert_eq!(info["virtual-size"], size);
            assert_eq!(info["backing-filename"], "base.qcow2");
            assert_eq!(info["backing-filename-format"], "qcow2");
            assert_eq!(crate::qemu::Qcow2Header::read(&path).expect("reads").virtual_bytes, size);
        }
    }

    #[test]
    fn a_blank_disk_is_one_for_qemu_too() {
        let directory = tempfile::tempdir().expect("a directory");
        for size in [1 << 20, (1 << 30) + 512, 8 << 40] {
            let path = directory.path().join("blank.qcow2");
            write_blank(&mut File::create(&path).expect("is made"), size).expect("is written");
            let blank = path.to_str().expect("UTF-8");
            let is_unwritten = || {
                crate::qemu::Qcow2Header::read(&path)
                    .and_then(|header| header.has_no_clusters(&path))
            };
            assert!(is_unwritten().expect("reads"));
            assert!(qemu_img(&["check", blank]).contains("No errors"), "{size}");
            let info: serde_json::Value =
                serde_json::from_str(&qemu_img(&["info", "--output=json", blank])).expect("JSON");
            assert_eq!(info["virtual-size"], size);
            assert_eq!(info["backing-filename"], serde_json::Value::Null);
            let header = crate::qemu::Qcow2Header::read(&path).expect("reads");
            assert_eq!((header.virtual_bytes, header.backing_file), (size, None));
            let middle = size / 2 / 512 * 512;
            let write = format!("write {middle} 512");
            let written = Command::new("qemu-io").args(["-c", &write, blank]).output();
            assert!(written.expect("qemu-io runs").status.success(), "{size}");
            assert!(!is_unwritten().expect("reads"), "{size}");
            File::options()
                .write(true)
                .open(&path)
                .expect("opens")
                .set_len(256 << 10)
                .expect("cut");
            assert!(is_unwritten().is_err(), "{size}: the level-2 table is missing");
        }
    }

    #[test]
    fn what_the_format_does_not_allow_is_refused() {
        let mut file = tempfile::tempfile().expect("a file");
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        assert!(write(&mut file, Path::new(&long), 1 << 20).is_err());
        assert!(write(&mut file, Path::new(""), 1 << 20).is_err());
        assert!(write(&mut file, Path::new("base"), u64::MAX / 2).is_err());
    }
}
