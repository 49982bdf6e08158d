//! Partition tables and volume groups.

use std::path::{Path, PathBuf};

use castra_disk::{Content, Kind, Place};

use crate::made::{self, GPT, MBR, UUID};

/// Returns small images: a FAT, a swap space, and a system on ext4.
fn parts(directory: &Path) -> [PathBuf; 3] {
    let tree = directory.join("tree");
    made::system(&tree);
    let empty = directory.join("empty");
    std::fs::create_dir(&empty).expect("a directory");
    let swap = directory.join("swap");
    std::fs::File::create(&swap).and_then(|file| file.set_len(1 << 20)).expect("a file");
    castra_test_support::tool("mkswap", &[made::text(&swap)]);
    [
        made::filesystem(Kind::Vfat, &empty, &directory.join("vfat")),
        swap,
        made::filesystem(Kind::Ext4, &tree, &directory.join("ext4")),
    ]
}

#[track_caller]
fn has_its_root_on(disk: &Path, place: Place) {
    let disk = made::disk(disk);
    let system = disk.find_system().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(system.root.place, place);
    assert_eq!(system.root.identity.uuid, UUID);
}

#[test]
fn gpt_is_read_even_if_one_of_its_headers_is_damaged() {
    let directory = tempfile::tempdir().expect("a directory");
    let [vfat, swap, ext4] = parts(directory.path());
    let path = made::partitioned(GPT, &[&vfat, &swap, &ext4], &directory.path().join("disk"));
    let disk = made::disk(&path);
    let contents = disk.volumes().iter().map(|volume| volume.content.to_string());
    assert_eq!(contents.collect::<Vec<_>>(), ["vfat", "swap space", "ext4"]);
    has_its_root_on(&path, Place::Partition(3));
    // First the header itself, then an entry of the other table, found by its checksum.
    made::write_at(&path, 512 + 40, b"x");
    has_its_root_on(&path, Place::Partition(3));
    let end = std::fs::metadata(&path).expect("a file").len();
    made::write_at(&path, end - 33 * 512, b"x");
    assert_eq!(made::disk(&path).volumes().len(), 1, "no header is left");
}

#[test]
fn gpt_of_a_disk_that_grew_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let [vfat, swap, ext4] = parts(directory.path());
    let path = made::partitioned(GPT, &[&vfat, &swap, &ext4], &directory.path().join("disk"));
    let file = std::fs::File::options().write(true).open(&path).expect("opened");
    file.set_len(10 << 30).expect("grown");
    has_its_root_on(&path, Place::Partition(3));
}

#[test]
fn mbr_is_read_with_its_logical_partitions() {
    let directory = tempfile::tempdir().expect("a directory");
    let [vfat, swap, ext4] = parts(directory.path());
    let path = directory.path().join("disk");
    made::partitioned(MBR, &[&swap, &ext4], &path);
    has_its_root_on(&path, Place::Partition(2));
    made::partitioned(MBR, &[&vfat, &swap, &swap, &swap, &vfat, &ext4], &path);
    has_its_root_on(&path, Place::Partition(7));
    let disk = made::disk(&path);
    let places: Vec<_> = disk.volumes().iter().map(|volume| volume.place.clone()).collect();
    assert_eq!(places, [1, 2, 3, 5, 6, 7].map(Place::Partition));
}

#[test]
fn linear_volumes_are_put_together() {
    let directory = tempfile::tempdir().expect("a directory");
    let [vfat, _, ext4] = parts(directory.path());
    let volume = made::physical_volume(&ext4, &directory.path().join("pv"));
    let place = || Place::LogicalVolume { group: "vg-0".to_owned(), name: "root".to_owned() };
    has_its_root_on(&volume, place());
    let path = made::partitioned(GPT, &[&vfat, &volume], &directory.path().join("disk"));
    has_its_root_on(&path, place());
    let disk = made::disk(&path);
    assert_eq!(disk.volumes()[1].content, Content::PhysicalVolume);
    let system = disk.find_system().unwrap_or_else(|error| panic!("{error}"));
    let expected = "root=/dev/mapper/vg--0-root rd.lvm.lv=vg-0/root ro";
    assert_eq!(system.command_line.as_str(), expected);
}
