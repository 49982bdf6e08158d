//! Each filesystem, as its own program makes it, with a system on it.

use std::fs;
use std::io::Read as _;

use castra_disk::{Content, Disk, Fault, FileKind, Kind, Limit, Limits, Place, Rule};
use castra_test_support::noise;

use crate::made::{self, INITRAMFS, KERNEL, UUID, VERSION};

/// Finds the system on a disk that is one filesystem.
#[track_caller]
fn finds_the_system(kind: Kind, with_links: bool) {
    let directory = tempfile::tempdir().expect("a directory");
    let tree = directory.path().join("tree");
    made::system(&tree);
    if with_links {
        made::links(&tree);
    }
    let image = made::filesystem(kind, &tree, &directory.path().join("disk"));
    let disk = made::disk(&image);
    let mut system = disk.find_system().unwrap_or_else(|error| panic!("{error}"));
    let uuid = if kind == Kind::Vfat { "C3D4-E5F6" } else { UUID };
    assert_eq!(system.rule, Rule::NewestKernel);
    assert_eq!((system.root.identity.kind, system.root.identity.uuid.as_str()), (kind, uuid));
    let label = system.root.identity.label.as_deref().unwrap_or_default();
    assert_eq!(label.to_ascii_lowercase(), "made");
    assert_eq!(system.root.place, Place::WholeDisk);
    assert_eq!(system.os.pretty_name.as_deref(), Some("Debian 12"));
    assert_eq!(system.kernel_version.as_deref(), Some(VERSION));
    assert_eq!(system.command_line.as_str(), format!("root=UUID={uuid} ro"));
    assert!(system.kernel == fs::read(tree.join(KERNEL)).expect("read"), "the same kernel");
    assert!(system.initramfs == fs::read(tree.join(INITRAMFS)).expect("read"));
    let files = &mut system.files;
    let many = files.list("/usr/lib/many").expect("listed");
    assert_eq!(many.len(), 600);
    assert!(many.iter().all(|entry| entry.kind == FileKind::File));
    let mut top: Vec<_> = files.list("/").expect("listed").into_iter().map(|it| it.name).collect();
    top.retain(|name| name != b"lost+found" && name != b"lib");
    top.sort();
    assert_eq!(top, [&b"boot"[..], b"etc", b"usr"]);
    assert_eq!(files.read("usr/lib/many/file-599", 599).expect("read"), noise(599));
    let too_large = Err(Fault::TooLarge(Limit::Bytes(598)));
    assert_eq!(files.read("usr/lib/many/file-599", 598), too_large);
    assert_eq!(files.read("/usr/lib/many/file-600", 9), Err(Fault::NotFound));
    assert_eq!(files.read("/usr/lib/many", 9), Err(Fault::IsNot("regular file")));
    assert_eq!(files.list("/usr/lib/os-release"), Err(Fault::IsNot("directory")));
    assert_eq!(files.read("/usr/lib/os-release/x", 9), Err(Fault::IsNot("directory")));
    if with_links {
        follows_links_inside(files, &tree);
    }
}

fn follows_links_inside(files: &mut castra_disk::FileTree, tree: &std::path::Path) {
    let release = fs::read(tree.join("usr/lib/os-release")).expect("read");
    for path in ["/etc/os-release", "etc/absolute", "/lib/os-release", "/../..//lib/./os-release"] {
        assert_eq!(files.read(path, 1000), Ok(release.clone()), "{path}");
    }
    for path in ["/etc/loop", "/etc/ping"] {
        assert_eq!(files.read(path, 1000), Err(Fault::TooManyLinks), "{path}");
    }
    // The host has a file of this name, the system has none.
    for path in ["/etc/outside", "/etc/dangling", "/etc/long", "/etc/passwd"] {
        assert_eq!(files.read(path, 1 << 20), Err(Fault::NotFound), "{path}");
    }
    assert_eq!(files.read("/etc/through", 9), Err(Fault::IsNot("directory")));
    let entries = files.list("/etc").expect("listed");
    assert!(entries.iter().all(|entry| entry.kind == FileKind::Link));
    let modules = format!("/lib/modules/{VERSION}/modules.dep");
    assert_eq!(files.read(&modules, 100).expect("read"), b"kernel/a.ko:\n");
}

#[test]
fn ext2() {
    finds_the_system(Kind::Ext2, true);
}

#[test]
fn ext3() {
    finds_the_system(Kind::Ext3, true);
}

#[test]
fn ext4() {
    finds_the_system(Kind::Ext4, true);
}

#[test]
fn xfs() {
    finds_the_system(Kind::Xfs, true);
}

#[test]
fn btrfs() {
    finds_the_system(Kind::Btrfs, true);
}

#[test]
fn vfat() {
    finds_the_system(Kind::Vfat, false);
}

#[test]
fn other_content_is_named() {
    let swap = tempfile::NamedTempFile::new().expect("a file");
    swap.as_file().set_len(1 << 20).expect("sized");
    castra_test_support::tool("mkswap", &[made::text(swap.path())]);
    let disk = made::disk(swap.path());
    assert_eq!(disk.volumes()[0].content, Content::Foreign("swap space"));
    let error = disk.find_system().err().expect("no system").to_string();
    let expected = "no Linux system that can be booted was found on the disk: the whole disk: swap \
        space";
    assert_eq!(error, expected);
    for (offset, magic, name) in [
        (0, &b"LUKS\xba\xbe\0\x02"[..], "LUKS encryption"),
        (200 << 10, b"\x0c\xb1\xba\0\0\0\0\0", "ZFS"),
        (3, b"NTFS    ", "NTFS"),
    ] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 20).expect("sized");
        made::write_at(file.path(), offset, magic);
        assert_eq!(made::disk(file.path()).volumes()[0].content, Content::Foreign(name));
    }
}

/// A btrfs with the subvolumes `@` and `@home`, its files compressed by zstd: `mkfs.btrfs
/// --rootdir TREE --subvol @ --subvol @home --compress zstd --nodesize 4k` of btrfs-progs 6.14,
/// which is newer than that of many distributions.
const SUBVOLUMES: &[u8] = include_bytes!("fixtures/subvolumes.btrfs.zst");

#[test]
fn btrfs_subvolumes_are_read_by_paths_from_the_top_level() {
    let mut image = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(SUBVOLUMES).expect("a frame");
    decoder.read_to_end(&mut image).expect("inflated");
    let disk = Disk::open(image, Limits::default()).expect("a disk");
    let mut system = disk.find_system().unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(system.rule, Rule::Grub);
    assert_eq!(system.root.subvolume.as_deref(), Some("@"));
    assert_eq!((system.root.identity.kind, system.os.id.as_str()), (Kind::Btrfs, "fixture"));
    assert!(system.command_line.as_str().ends_with(" ro rootflags=subvol=@"));
    assert_eq!(system.kernel, [b'k'; 1000]);
    assert!(system.initramfs == [b'i'; 300_000], "the initramfs");
    let release = system.files.read("/etc/os-release", 100);
    assert_eq!(release.expect("read"), b"ID=fixture\n");
}
