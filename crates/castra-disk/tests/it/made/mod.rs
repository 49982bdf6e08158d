//! Disks and their parts, made by the usual programs in a directory of the test.

mod lvm;
mod partitions;
mod system;
mod uki;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use castra_disk::{Disk, Format, Image, Kind, Layer, Limits};
use castra_test_support::tool;

pub(crate) use lvm::physical_volume;
pub(crate) use partitions::{GPT, MBR, partitioned};
pub(crate) use system::{INITRAMFS, KERNEL, VERSION, kernel, links, system};
pub(crate) use uki::unified;

/// UUID of each made filesystem; FAT has the last eight digits.
pub(crate) const UUID: &str = "0f0e0d0c-1234-4321-8888-a1b2c3d4e5f6";

/// Returns a path as programs take it.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Makes a filesystem of a directory's files.
pub(crate) fn filesystem(kind: Kind, tree: &Path, image: &Path) -> PathBuf {
    let mib = match kind {
        Kind::Xfs => 320,
        Kind::Btrfs => 160,
        _ => 64,
    };
    File::create(image).and_then(|file| file.set_len(mib << 20)).expect("a file");
    let (tree, path) = (text(tree), text(image));
    match kind {
        Kind::Ext2 | Kind::Ext3 | Kind::Ext4 => {
            tool("mke2fs", &["-qF", "-t", kind.name(), "-U", UUID, "-L", "made", "-d", tree, path]);
        }
        Kind::Xfs => {
            let prototype = image.with_extension("prototype");
            fs::write(&prototype, prototype_of(Path::new(tree))).expect("written");
            let uuid = format!("uuid={UUID}");
            let label = ["-L", "made", "-p", text(&prototype), path];
            tool("mkfs.xfs", &[&["-q", "-m", &uuid], &label[..]].concat());
        }
        Kind::Btrfs => {
            tool("mkfs.btrfs", &["-q", "-U", UUID, "-L", "made", "--rootdir", tree, path]);
        }
        Kind::Vfat => {
            tool("mkfs.fat", &["-F", "32", "-i", &UUID[28..], "-n", "MADE", path]);
            for entry in fs::read_dir(tree).expect("a directory") {
                let entry = entry.expect("an entry").path();
                tool("mcopy", &["-Qsi", path, text(&entry), "::"]);
            }
        }
        other => panic!("{other} is not made"),
    }
    image.to_owned()
}

/// Describes a directory as mkfs.xfs(8) wants it.
pub(crate) fn prototype_of(tree: &Path) -> String {
    fn entries(directory: &Path, text: &mut String) {
        let mut paths: Vec<PathBuf> = fs::read_dir(directory)
            .expect("read")
            .map(|entry| entry.expect("read").path())
            .collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().expect("a name").to_string_lossy();
            let metadata = path.symlink_metadata().expect("metadata");
            let mode = metadata.mode() & 0o777;
            let _ = if metadata.is_dir() {
                let _ = writeln!(text, "{name} d--{mode:03o} 0 0");
                entries(&path, text);
                writeln!(text, "$")
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).expect("a link");
                writeln!(text, "{name} l--{mode:03o} 0 0 {}", target.display())
            } else if metadata.file_type().is_fifo() {
                writeln!(text, "{name} p--{mode:03o} 0 0")
            } else {
                writeln!(text, "{name} ---{mode:03o} 0 0 {}", path.display())
            };
        }
    }
    let mut text = "/none\n0 0\nd--755 0 0\n".to_owned();
    entries(tree, &mut text);
    text + "$\n"
}

/// Opens a raw file as a disk.
pub(crate) fn disk(path: &Path) -> Disk {
    let file = File::open(path).expect("opened");
    let image = Image::open([Layer { file, format: Format::Raw }]).expect("an image");
    Disk::open(image, Limits::default()).expect("a disk")
}

/// Writes bytes into a file.
pub(crate) fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).expect("opened");
    file.write_all_at(bytes, offset).expect("written");
}
