//! Disks that were made to break their reader.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use castra_disk::{Disk, Fault, Kind, Limits};
use castra_test_support::tool;

use crate::made::{self, KERNEL, VERSION, text};

/// Time within which each disk is refused, on a busy machine: that of the default limits.
const MAX_TIME: Duration = Duration::from_secs(30);

/// Asks for the system of a disk that has none. Returns the reasons.
#[track_caller]
fn refused(bytes: Vec<u8>) -> String {
    let start = Instant::now();
    let disk = Disk::open(bytes, Limits::default()).expect("a disk");
    let error = disk.find_system().err().expect("no system").to_string();
    assert!(start.elapsed() < MAX_TIME, "{:?}", start.elapsed());
    error
}

/// Puts bytes into a disk.
fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
    disk[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn extended_partitions_may_lead_to_each_other() {
    let mut disk = vec![0; 1 << 20];
    // Sector 0 has an extended partition at 10, and the records there and at 11 lead to 11.
    for (sector, entries) in [(0, [5, 10, 0, 0]), (10, [0, 0, 5, 1]), (11, [0x83, 1, 5, 1])] {
        let at = sector * 512;
        for (entry, pair) in entries.chunks(2).enumerate() {
            let at = at + 446 + 16 * entry;
            put(&mut disk, at + 4, &pair[..1]);
            put(&mut disk, at + 8, &pair[1..]);
            put(&mut disk, at + 12, &pair[1..]);
        }
        put(&mut disk, at + 510, &[0x55, 0xaa]);
    }
    let disk = Disk::open(disk, Limits::default()).expect("a disk");
    assert!((100..=128).contains(&disk.volumes().len()), "{}", disk.volumes().len());
}

#[test]
fn tables_of_absurd_sizes_are_refused() {
    let mut disk = vec![0; 1 << 20];
    put(&mut disk, 446 + 4, &[0xee, 0, 0, 0, 1, 0, 0, 0, 0xff]);
    put(&mut disk, 510, &[0x55, 0xaa]);
    put(&mut disk, 512, b"EFI PART\0\0\x01\0\xff\xff\xff\xff");
    put(&mut disk, 512 + 24, &[1]);
    put(&mut disk, 512 + 72, &[0xff; 20]);
    assert!(refused(disk).ends_with("the whole disk: unknown content"));
    // A physical volume whose metadata is nearly everywhere.
    let mut disk = vec![0; 1 << 20];
    put(&mut disk, 512, b"LABELONE");
    put(&mut disk, 512 + 20, &[32]);
    put(&mut disk, 512 + 24, b"LVM2 001");
    put(&mut disk, 512 + 32 + 40 + 16, &[0xff; 16]);
    assert!(refused(disk).ends_with("the whole disk: LVM physical volume"));
}

#[test]
fn a_directory_without_an_end_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image");
    File::create(&image).and_then(|file| file.set_len(34 << 20)).expect("a file");
    tool("mkfs.fat", &["-F", "32", "-s", "1", text(&image)]);
    for number in 10..34 {
        let file = directory.path().join(format!("FILE{number}.TXT"));
        fs::write(&file, "").expect("written");
        tool("mcopy", &["-Qi", text(&image), text(&file), "::"]);
    }
    // The first cluster of the root, which 16 files fill, is followed by itself.
    made::write_at(&image, 32 * 512 + 2 * 4, &[2, 0, 0, 0]);
    let error = refused(fs::read(&image).expect("read"));
    assert!(error.ends_with("reading it takes more reads than any sound disk needs"), "{error}");
}

#[test]
fn files_of_absurd_sizes_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = directory.path().join("tree");
    made::system(&tree);
    // Holes: they need no space on the disk, and would need memory here.
    let kernel = File::options().write(true).open(tree.join(KERNEL)).expect("opened");
    kernel.set_len((256 << 20) + 1).expect("sized");
    let image = made::filesystem(Kind::Ext4, &tree, &directory.path().join("image"));
    let error = refused(fs::read(&image).expect("read"));
    let expected = format!("/boot/vmlinuz-{VERSION} is larger than 256 MiB");
    assert!(error.ends_with(&expected), "{error}");
}

#[test]
fn filesystems_of_absurd_sizes_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("image");
    File::create(&image).and_then(|file| file.set_len(4 << 20)).expect("a file");
    tool("mke2fs", &["-qF", "-t", "ext4", "-O", "^metadata_csum", text(&image)]);
    // Number of blocks, and of those of a group.
    for (offset, number) in [(0x150, 1_u32 << 10), (0x4, u32::MAX), (0x20, 0)] {
        let mut disk = fs::read(&image).expect("read");
        put(&mut disk, 1024 + offset, &number.to_le_bytes());
        let error = refused(disk);
        assert!(error.contains("ext4, which cannot be read"), "{offset:#x}: {error}");
    }
}

#[test]
fn a_question_ends_with_its_budget() {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = directory.path().join("tree");
    made::system(&tree);
    let image = made::filesystem(Kind::Ext4, &tree, &directory.path().join("image"));
    let image = fs::read(&image).expect("read");
    let limits = Limits { bytes: 3 << 20, ..Limits::default() };
    let disk = Disk::open(image.clone(), limits).expect("a disk");
    let error = disk.find_system().err().expect("no system").to_string();
    assert!(error.ends_with("reading it takes more bytes than any sound disk needs"), "{error}");
    // Each question has its own: the second one may read as much as the first.
    let limits = Limits { bytes: 6 << 20, ..Limits::default() };
    let disk = Disk::open(image, limits).expect("a disk");
    for _ in 0..3 {
        let mut system = disk.find_system().unwrap_or_else(|error| panic!("{error}"));
        assert_ne!(system.files.read(format!("/{KERNEL}"), 2 << 20), Err(Fault::NotFound));
    }
}

#[test]
fn a_kernel_that_is_too_large_for_its_machine_is_not_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = directory.path().join("tree");
    made::system(&tree);
    let image = made::filesystem(Kind::Ext4, &tree, &directory.path().join("image"));
    let image = fs::read(&image).expect("read");
    let find = |kernel_bytes| {
        let limits = Limits { kernel_bytes, ..Limits::default() };
        Disk::open(image.clone(), limits).expect("a disk").find_system()
    };
    // The kernel has 1,500,000 bytes, and its initramfs 3,000,001.
    assert!(find(4_500_001).is_ok());
    for tight in [4 << 20, 1 << 20] {
        let error = find(tight).err().expect("no system").to_string();
        let limit = format!("is larger than {} MiB, the limit for kernel and", tight >> 20);
        assert!(error.contains(&limit), "{error}");
    }
}
