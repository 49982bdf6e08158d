//! What each operation does to the directory, and answers.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::guest::{
    EEXIST, EINVAL, EISDIR, ENOENT, ENOSYS, ENOTDIR, ENOTEMPTY, EOPNOTSUPP, EPERM, EPROTO, Guest,
    OWNER, body, u32_at, u64_at,
};
use crate::abi::{ROOT, opcode, open};
use crate::{MAX_REQUEST, MAX_WRITE};

#[test]
fn init_negotiates_what_the_kernel_offers() {
    let guest = Guest::new();
    let init = |major: u32, minor: u32, features: u32| {
        let request = body().u32(major).u32(minor).u32(128 << 10).u32(features).u32(0);
        guest.call(opcode::INIT, 0, (0..11).fold(request, |request, _| request.u32(0)))
    };
    let reply = init(7, 45, u32::MAX).expect("served");
    assert_eq!(reply.len(), 64);
    assert_eq!((u32_at(&reply, 0), u32_at(&reply, 4)), (7, 38));
    let features = u32_at(&reply, 12);
    let all = [0, 3, 5, 12, 13, 14, 15, 18, 19, 22, 28];
    for bit in all {
        assert!(features & 1 << bit != 0, "bit {bit}");
    }
    // Neither locks of the host, nor a cache of writes, nor files without handles.
    for bit in [1, 10, 16, 17, 24] {
        assert!(features & 1 << bit == 0, "bit {bit}");
    }
    assert_eq!(u32_at(&reply, 20), MAX_WRITE);
    assert_eq!(u32_at(&reply, 28) & 0xffff, MAX_WRITE / 4096);
    assert!(MAX_REQUEST >= MAX_WRITE as usize + 80);
    let reply = init(7, 31, 1).expect("served");
    assert_eq!(u32_at(&reply, 12), 1, "nothing that was not offered");
    assert_eq!(init(7, 30, 0), Err(EPROTO));
    assert_eq!(u32_at(&init(8, 0, 0).expect("another INIT follows"), 0), 7);
}

#[test]
fn files_are_made_written_and_read() {
    let guest = Guest::new();
    let (entry, handle) = guest.create(ROOT, "a", open::READ_WRITE, 0o100_640).expect("made");
    assert_eq!(entry.attributes.mode, 0o100_640);
    assert_eq!(entry.attributes.owner, (OWNER.uid, OWNER.gid));
    assert_eq!(guest.write(entry.node, handle, 0, 0, b"hello").expect("written"), 5);
    let far = 5 << 30;
    assert_eq!(guest.write(entry.node, handle, far, 0, b"end").expect("written"), 3);
    assert_eq!(guest.get_attributes(entry.node).expect("there").size, far + 3);
    assert_eq!(guest.read(entry.node, handle, far - 1, 100).expect("read"), b"\0end");
    assert_eq!(guest.read(entry.node, handle, far + 3, 100).expect("read"), b"");
    let sought = |offset: u64, whence: u32| {
        let request = body().u64(handle).u64(offset).u32(whence).u32(0);
        guest.call(opcode::LSEEK, entry.node, request).map(|reply| u64_at(&reply, 0))
    };
    assert!(sought(0, 4).expect("a hole") < 1 << 20);
    assert!(sought(1 << 20, 3).expect("data") > 4 << 30);
    assert_eq!(sought(0, 0), Err(EINVAL));
    guest.release(entry.node, handle).expect("closed");
    let metadata = fs::metadata(guest.host.join("a")).expect("there");
    assert_eq!((metadata.len(), metadata.mode()), (far + 3, 0o100_640));
    assert!(metadata.blocks() < 1000);
}

#[test]
fn appends_go_to_the_end_as_it_is_now() {
    let guest = Guest::new();
    let path = guest.host.join("log");
    let flags = open::WRITE_ONLY | open::APPEND;
    let (entry, handle) = guest.create(ROOT, "log", flags, 0o644).expect("made");
    fs::write(&path, "of the host;").expect("written");
    guest.write(entry.node, handle, 0, open::APPEND, b"of the guest").expect("written");
    assert_eq!(fs::read(&path).expect("read"), b"of the host;of the guest");
    // A program may change the flag after it has opened the file.
    guest.write(entry.node, handle, 0, 0, b"OF").expect("written");
    assert_eq!(fs::read(&path).expect("read"), b"OF the host;of the guest");
}

#[test]
fn modes_do_not_depend_on_the_umask_of_the_host() {
    let guest = Guest::new();
    let (entry, _) = guest.create(ROOT, "a", open::WRITE_ONLY, 0o666).expect("made");
    assert_eq!(entry.attributes.mode, 0o100_666);
    let request = body().u32(0o777).u32(0).name("d");
    guest.call(opcode::MKDIR, ROOT, request).expect("made");
    let request = body().u32(0o010_622).u32(0).u32(0).u32(0).name("f");
    guest.call(opcode::MKNOD, ROOT, request).expect("made");
    let mode = |name| fs::symlink_metadata(guest.host.join(name)).expect("there").mode();
    assert_eq!((mode("a"), mode("d"), mode("f")), (0o100_666, 0o040_777, 0o010_622));
}

#[test]
fn attributes_are_set() {
    let guest = Guest::new();
    fs::write(guest.host.join("a"), "0123456789").expect("written");
    let node = guest.walk("a").expect("there").node;
    assert_eq!(guest.truncate(node, 4).expect("set").size, 4);
    assert_eq!(guest.set_mode(node, 0o400).expect("set").mode, 0o100_400);
    let time = (981_173_106, 123_456_789);
    let set = guest.set(node, 32, (0, 0), time, (0, (0, 0))).expect("set");
    assert_eq!(set.modified, time);
    let metadata = fs::metadata(guest.host.join("a")).expect("there");
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (981_173_106, 123_456_789));
    // Of a link, not of what it leads to.
    let link = guest.make_link(ROOT, "l", "a").expect("made");
    guest.set(link.node, 32, (0, 0), (5, 6), (0, (0, 0))).expect("set");
    let metadata = fs::symlink_metadata(guest.host.join("l")).expect("there");
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (5, 6));
    assert_eq!(guest.get_attributes(node).expect("there").modified, time);
    assert_eq!(guest.set_mode(link.node, 0o777), Err(EOPNOTSUPP));
    // All files have one owner.
    let to = |uid, gid| guest.set(node, 6, (0, 0), (0, 0), (0, (uid, gid)));
    assert!(to(OWNER.uid, OWNER.gid).is_ok());
    assert_eq!(to(OWNER.uid, 0), Err(EPERM));
}

#[test]
fn hard_links_are_one_file() {
    let guest = Guest::new();
    let (a, handle) = guest.create(ROOT, "a", open::WRITE_ONLY, 0o644).expect("made");
    let directory = guest.make_directory(ROOT, "d").expect("made");
    let b = guest.link(a.node, directory.node, "b").expect("linked");
    assert_eq!((b.node, b.attributes.inode), (a.node, a.attributes.inode));
    assert_eq!(b.attributes.links, 2);
    guest.unlink(ROOT, "a").expect("gone");
    guest.release(a.node, handle).expect("closed");
    assert_eq!(guest.get_attributes(a.node).expect("has another name").links, 1);
    // One that the guest has not seen.
    fs::hard_link(guest.host.join("d/b"), guest.host.join("c")).expect("linked");
    assert_eq!(guest.walk("c").expect("there").node, a.node);
    fs::remove_file(guest.host.join("d/b")).expect("gone");
    assert_eq!(guest.get_attributes(a.node).expect("has another name").links, 1);
}

#[test]
fn an_open_file_outlives_its_name() {
    let guest = Guest::new();
    let (a, handle) = guest.create(ROOT, "a", open::READ_WRITE, 0o600).expect("made");
    guest.write(a.node, handle, 0, 0, b"old").expect("written");
    let (b, other) = guest.create(ROOT, "b", open::READ_WRITE, 0o600).expect("made");
    guest.write(b.node, other, 0, 0, b"replacing").expect("written");
    guest.rename((ROOT, "b"), (ROOT, "a"), 0).expect("renamed");
    assert_eq!(guest.read(a.node, handle, 0, 10).expect("read"), b"old");
    assert_eq!(guest.get_attributes(a.node).expect("open").links, 0);
    assert_eq!(guest.set_mode(a.node, 0o640).expect("open").mode, 0o100_640);
    assert_eq!(guest.truncate(a.node, 1).expect("open").size, 1);
    assert_eq!(guest.walk("a").expect("there").node, b.node);
    guest.unlink(ROOT, "a").expect("gone");
    assert_eq!(guest.read(b.node, other, 0, 10).expect("read"), b"replacing");
    guest.release(a.node, handle).expect("closed");
    // Until the kernel forgets it, another process may be about to open it.
    assert_eq!(guest.get_attributes(a.node).expect("known").links, 0);
    guest.forget(a.node, 1);
    assert!(guest.get_attributes(a.node).is_err());
}

#[test]
fn names_are_bytes() {
    let guest = Guest::new();
    let name: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    guest.create(ROOT, &name, open::WRITE_ONLY, 0o644).expect("made");
    guest.look_up(ROOT, &name).expect("there");
    assert!(guest.list(ROOT, 4096).expect("listed").iter().any(|entry| entry.0 == name));
    guest.unlink(ROOT, &name).expect("gone");
}

#[test]
fn directories_are_listed_in_parts() {
    let guest = Guest::new();
    for number in 0..300 {
        fs::write(guest.host.join(format!("file-{number}")), "").expect("written");
    }
    let all = guest.list(ROOT, 1 << 20).expect("listed");
    assert_eq!(all.len(), 302);
    assert_eq!(guest.list(ROOT, 100).expect("listed"), all);
    let (_, inode) = &all[5];
    let name = String::from_utf8(all[5].0.clone()).expect("text");
    assert_eq!(guest.walk(&name).expect("there").attributes.inode, *inode);
    assert_eq!(guest.names(guest.walk("file-1").expect("there").node), Err(ENOTDIR));
}

#[test]
fn a_listing_with_attributes_counts_as_look_ups() {
    let guest = Guest::new();
    fs::write(guest.host.join("a"), "four").expect("written");
    let handle = guest.open_directory(ROOT).expect("opened");
    let request = body().u64(handle).u64(0).u32(4096).u32(0).u64(0).u32(0).u32(0);
    let reply = guest.call(opcode::READDIRPLUS, ROOT, request).expect("listed");
    assert_eq!(reply.len(), 3 * (128 + 32));
    let entries = reply.chunks(128 + 32);
    let node = entries.map(|entry| u64_at(entry, 0)).find(|node| *node != 0).expect("a node");
    assert_eq!(guest.get_attributes(node).expect("known").size, 4);
    assert_eq!(guest.look_up(ROOT, "a").expect("there").node, node);
    guest.forget(node, 1);
    assert!(guest.get_attributes(node).is_ok());
    guest.forget(node, 1);
    assert!(guest.get_attributes(node).is_err());
}

#[test]
fn directories_and_renames() {
    let guest = Guest::new();
    let d = guest.make_directory(ROOT, "d").expect("made");
    assert_eq!(guest.make_directory(ROOT, "d"), Err(EEXIST));
    let (file, _) = guest.create(d.node, "x", open::WRITE_ONLY, 0o644).expect("made");
    assert_eq!(guest.remove_directory(ROOT, "d"), Err(ENOTEMPTY));
    assert_eq!(guest.unlink(ROOT, "d"), Err(EISDIR));
    assert_eq!(guest.remove_directory(d.node, "x"), Err(ENOTDIR));
    guest.rename((ROOT, "d"), (ROOT, "e"), 0).expect("renamed");
    assert_eq!(guest.get_attributes(file.node).expect("moved").inode, file.attributes.inode);
    assert_eq!(guest.rename((ROOT, "e"), (d.node, "into-itself"), 0), Err(EINVAL));
    let other = guest.make_directory(ROOT, "f").expect("made");
    assert_eq!(guest.rename((ROOT, "e"), (ROOT, "f"), 1), Err(EEXIST));
    guest.rename((ROOT, "e"), (ROOT, "f"), 2).expect("exchanged");
    assert_eq!(guest.walk("f/x").expect("there").node, file.node);
    assert_eq!(guest.walk("e").expect("there").node, other.node);
    assert_eq!(guest.names(d.node).expect("listed"), ["x"]);
    assert_eq!(guest.rename((ROOT, "e"), (ROOT, "g"), 4), Err(EINVAL), "no whiteouts");
    assert_eq!(guest.look_up(file.node, "x").map(|_| ()), Err(ENOTDIR));
}

#[test]
fn links_are_read_and_not_followed() {
    let guest = Guest::new();
    let link = guest.make_link(ROOT, "l", "/etc/passwd").expect("made");
    let target = guest.call(opcode::READLINK, link.node, body()).expect("read");
    assert_eq!(target, b"/etc/passwd");
    assert!(guest.open(link.node, 0).is_err());
    let hard = guest.link(link.node, ROOT, "hard").expect("linked");
    assert_eq!(hard.attributes.mode & 0o170_000, 0o120_000);
}

#[test]
fn ranges_are_allocated_and_copied() {
    let guest = Guest::new();
    let (a, from) = guest.create(ROOT, "a", open::READ_WRITE, 0o644).expect("made");
    let (b, to) = guest.create(ROOT, "b", open::READ_WRITE, 0o644).expect("made");
    guest.write(a.node, from, 0, 0, b"0123456789").expect("written");
    let request = body().u64(from).u64(2).u64(b.node).u64(to).u64(1).u64(u64::MAX).u64(0);
    let reply = guest.call(opcode::COPY_FILE_RANGE, a.node, request).expect("copied");
    assert_eq!(u32_at(&reply, 0), 8);
    assert_eq!(fs::read(guest.host.join("b")).expect("read"), b"\x0023456789");
    let allocate = |offset: u64, length: u64, mode: u32| {
        let request = body().u64(to).u64(offset).u64(length).u32(mode).u32(0);
        guest.call(opcode::FALLOCATE, b.node, request).map(|_| ())
    };
    allocate(0, 100, 0).expect("allocated");
    assert_eq!(guest.get_attributes(b.node).expect("there").size, 100);
    allocate(0, 4, 3).expect("freed");
    assert_eq!(guest.read(b.node, to, 0, 6).expect("read"), b"\0\0\0\x0056");
    assert_eq!(allocate(0, 4, 8), Err(EOPNOTSUPP), "no range is removed");
}

#[test]
fn the_rest_is_answered() {
    let guest = Guest::new();
    let (a, handle) = guest.create(ROOT, "a", open::READ_WRITE, 0o644).expect("made");
    let directory = guest.open_directory(ROOT).expect("opened");
    for data_only in [0, 1] {
        let sync = |handle| body().u64(handle).u32(data_only).u32(0);
        guest.call(opcode::FSYNC, a.node, sync(handle)).expect("synced");
        guest.call(opcode::FSYNCDIR, ROOT, sync(directory)).expect("synced");
    }
    let statistics = guest.call(opcode::STATFS, ROOT, body()).expect("answered");
    assert_eq!(statistics.len(), 80);
    assert_eq!(u32_at(&statistics, 44), 255);
    for mask in [0, 4, 6] {
        guest.call(opcode::ACCESS, a.node, body().u32(mask).u32(0)).expect("allowed");
    }
    // FLUSH, extended attributes, locks, IOCTL: the kernel does without them, or does them itself.
    for code in [21, 22, 23, 24, 25, 31, 32, 33, 37, 39, 40, 48, 51, 52, 4096, u32::MAX] {
        assert_eq!(guest.call(code, a.node, body().u64(handle)), Err(ENOSYS), "{code}");
    }
    guest.call(opcode::DESTROY, 0, body()).expect("answered");
    assert!(guest.get_attributes(a.node).is_err());
    assert!(guest.get_attributes(ROOT).is_ok());
}

#[test]
fn files_without_permissions_are_opened_by_none() {
    let guest = Guest::new();
    fs::create_dir(guest.host.join("d")).expect("made");
    fs::write(guest.host.join("a"), "").expect("written");
    fs::set_permissions(guest.host.join("a"), fs::Permissions::from_mode(0o000)).expect("set");
    let node = guest.walk("a").expect("there").node;
    if !rustix::process::geteuid().is_root() {
        assert!(guest.open(node, 0).is_err());
    }
    assert_eq!(guest.open(guest.walk("d").expect("there").node, 0), Err(EISDIR));
    assert_eq!(guest.walk("nothing"), Err(ENOENT));
    let truncating = guest.open(node, open::READ_WRITE | open::TRUNCATE);
    assert!(truncating.is_ok() || !rustix::process::geteuid().is_root());
}
