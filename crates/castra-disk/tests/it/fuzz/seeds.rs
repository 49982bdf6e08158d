//! Valid disks, from which spoilt ones are made.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use castra_disk::Kind;
use castra_test_support::{noise, tool};

use super::sparse::BLOCK;
use crate::made::{self, GPT, MBR, UUID, text};

/// Longest input that spoilt ones are made of.
const MAX_BYTES: usize = 256 << 10;

/// Returns the input that is interpreted as the disk in this file.
fn encoded(path: &Path) -> Vec<u8> {
    let disk = fs::read(path).expect("read");
    let mut input = (disk.len().div_ceil(BLOCK) as u32).to_le_bytes().to_vec();
    for (block, index) in disk.chunks(BLOCK).zip(0_u32..) {
        if block.iter().any(|byte| *byte != 0) {
            input.extend(index.to_le_bytes());
            input.extend(block);
        }
    }
    assert!(input.len() <= MAX_BYTES, "{} needs {} bytes", path.display(), input.len());
    input
}

/// Makes the files of a small system.
fn small_system(root: &Path) {
    for directory in ["boot", "etc", "usr/lib"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    fs::write(root.join("usr/lib/os-release"), "ID=a\n").expect("written");
    fs::write(root.join("boot/vmlinuz-1"), noise(5000)).expect("written");
    fs::write(root.join("boot/initrd.img-1"), b"x".repeat(20_000)).expect("written");
    for number in 0..40 {
        fs::write(root.join(format!("etc/a-file-{number}")), "").expect("written");
    }
}

/// Returns a filesystem without checksums where it can be without them, and one with them.
pub(super) fn filesystem(kind: Kind) -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = directory.path().join("tree");
    small_system(&tree);
    if kind != Kind::Vfat {
        symlink("../usr/lib/os-release", tree.join("etc/os-release")).expect("a link");
    }
    let image = directory.path().join("image");
    let sized = |bytes| File::create(&image).and_then(|file| file.set_len(bytes)).expect("a file");
    let path = text(&image);
    let ext = |features: &str, options: &[&str]| {
        sized(4 << 20);
        let common = ["-qF", "-t", "ext4", "-b", "1024", "-N", "128", "-O", features];
        tool("mke2fs", &[&common, options, &["-d", text(&tree), path]].concat());
        encoded(&image)
    };
    match kind {
        Kind::Ext4 => vec![
            ext("^metadata_csum,^has_journal", &[]),
            ext("^metadata_csum", &["-J", "size=1"]),
            ext("^metadata_csum,^extents,^64bit,^has_journal", &[]),
            ext("metadata_csum,inline_data", &["-J", "size=1"]),
        ],
        Kind::Xfs => ["crc=0,finobt=0,rmapbt=0,reflink=0", "crc=1"]
            .map(|options| {
                let prototype = directory.path().join("prototype");
                fs::write(&prototype, made::prototype_of(&tree)).expect("written");
                sized(320 << 20);
                let options = ["-q", "-f", "-d", "agcount=2", "-m", options];
                tool("mkfs.xfs", &[&options[..], &["-p", text(&prototype), path]].concat());
                encoded(&image)
            })
            .to_vec(),
        Kind::Btrfs => {
            sized(112 << 20);
            let options = ["-q", "-m", "single", "-d", "single", "-n", "4096", "-U", UUID];
            tool("mkfs.btrfs", &[&options[..], &["--rootdir", text(&tree), path]].concat());
            vec![encoded(&image)]
        }
        Kind::Vfat => {
            let seeds = [("12", 1), ("16", 8), ("32", 34)].map(|(bits, mib)| {
                sized(mib << 20);
                tool("mkfs.fat", &["-F", bits, "-s", "1", "-S", "512", path]);
                for entry in ["boot", "etc", "usr"] {
                    tool("mcopy", &["-Qsi", path, text(&tree.join(entry)), "::"]);
                }
                encoded(&image)
            });
            seeds.to_vec()
        }
        other => panic!("{other} is no seed"),
    }
}

/// Returns disks with a GPT, and with an MBR that has logical partitions.
pub(super) fn tables() -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().expect("a directory");
    let part = directory.path().join("part");
    fs::write(&part, b"XFSB").expect("written");
    let disk = directory.path().join("disk");
    let tables = [(GPT, 3), (MBR, 3), (MBR, 6)];
    let seeds = tables.map(|(label, count)| {
        made::partitioned(label, &vec![part.as_path(); count], &disk);
        encoded(&disk)
    });
    seeds.to_vec()
}

/// Returns a physical volume.
pub(super) fn volume_groups() -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().expect("a directory");
    let (content, volume) = (directory.path().join("content"), directory.path().join("volume"));
    fs::write(&content, vec![0; 5 << 20]).expect("written");
    vec![encoded(&made::physical_volume(&content, &volume))]
}

/// Returns qcow2 files with plain and compressed clusters, and with subclusters.
pub(super) fn qcow2_images() -> Vec<Vec<u8>> {
    let directory = tempfile::tempdir().expect("a directory");
    let (raw, qcow2) = (directory.path().join("raw"), directory.path().join("qcow2"));
    let bytes = [noise(10_000), b"castra! ".repeat(1000), vec![0; 100_000]].concat();
    fs::write(&raw, bytes).expect("written");
    let kinds = ["cluster_size=512", "cluster_size=4k", "extended_l2=on,cluster_size=16k"];
    let mut seeds = Vec::new();
    for options in kinds {
        for compress in [&[][..], &["-c"], &["-c", "-o", "compression_type=zstd"]] {
            let convert = ["convert", "-f", "raw", "-O", "qcow2", "-o", options];
            tool("qemu-img", &[&convert, compress, &[text(&raw), text(&qcow2)]].concat());
            seeds.push(fs::read(&qcow2).expect("read"));
        }
    }
    seeds.retain(|seed| seed.len() <= MAX_BYTES);
    seeds
}
