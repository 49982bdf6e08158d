//! Guests that lie, and hosts that move things about.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::guest::{
    EBADF, EINVAL, ENAMETOOLONG, ENFILE, ENOENT, ENOSYS, ENXIO, EPERM, EROFS, ESTALE, Guest, body,
    request, u32_at,
};
use crate::Access;
use crate::abi::{ROOT, opcode, open};

/// Both ways to walk.
fn both() -> [Guest; 2] {
    [Guest::new(), Guest::by_components()]
}

#[test]
fn a_link_in_place_of_a_directory_leads_nowhere() {
    for guest in both() {
        let outside = guest.outside("secret");
        fs::create_dir(&outside).expect("made");
        fs::write(outside.join("file"), "secret").expect("written");
        fs::create_dir(guest.host.join("d")).expect("made");
        fs::write(guest.host.join("d/file"), "").expect("written");
        let directory = guest.walk("d").expect("there").node;
        let file = guest.walk("d/file").expect("there").node;
        fs::rename(guest.host.join("d"), guest.outside("d")).expect("moved");
        symlink(&outside, guest.host.join("d")).expect("made");
        assert_eq!(guest.get_attributes(file).err(), Some(ESTALE));
        assert_eq!(guest.open(file, open::READ_WRITE), Err(ESTALE));
        assert_eq!(guest.look_up(directory, "file"), Err(ESTALE));
        assert_eq!(guest.names(directory), Err(ESTALE));
        let made = guest.create(directory, "new", open::WRITE_ONLY, 0o644);
        assert_eq!(made.err(), Some(ESTALE));
        assert_eq!(guest.unlink(directory, "file"), Err(ESTALE));
        assert!(!outside.join("new").exists());
        // The link itself is a link, which the guest follows in its own tree.
        let link = guest.walk("d").expect("there").node;
        assert_eq!(guest.look_up(link, "file").map(|_| ()), Err(super::guest::ENOTDIR));
    }
}

#[test]
fn links_that_are_swapped_in_while_paths_are_walked_lead_nowhere() {
    for guest in both() {
        let outside = guest.outside("secret");
        fs::create_dir(&outside).expect("made");
        fs::write(outside.join("file"), "secret").expect("written");
        let [d, kept, link] = ["d", "kept", "link"].map(|name| guest.host.join(name));
        fs::create_dir(&d).expect("made");
        fs::write(d.join("file"), "harmless").expect("written");
        symlink(&outside, &link).expect("made");
        let (directory, file) =
            (guest.walk("d").expect("there").node, guest.walk("d/file").expect("there").node);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    fs::rename(&d, &kept).expect("renamed");
                    fs::rename(&link, &d).expect("renamed");
                    fs::rename(&d, &link).expect("renamed");
                    fs::rename(&kept, &d).expect("renamed");
                }
            });
            for _ in 0..3000 {
                if let Ok(handle) = guest.open(file, 0) {
                    assert_eq!(guest.read(file, handle, 0, 100).expect("read"), b"harmless");
                    guest.release(file, handle).expect("closed");
                }
                if let Ok(found) = guest.look_up(directory, "file") {
                    assert_eq!(found.node, file);
                }
                let _ = guest.create(directory, "made", open::WRITE_ONLY, 0o644);
                let _ = guest.unlink(directory, "made");
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(&outside).expect("listed").count(), 1);
    }
}

#[test]
fn a_directory_that_is_moved_out_is_stale() {
    for guest in both() {
        fs::create_dir_all(guest.host.join("a/b")).expect("made");
        fs::write(guest.host.join("a/b/file"), "moved").expect("written");
        fs::write(guest.outside("file"), "outside").expect("written");
        let b = guest.walk("a/b").expect("there").node;
        let file = guest.walk("a/b/file").expect("there").node;
        let handle = guest.open(file, 0).expect("opened");
        let listing = guest.open_directory(b).expect("opened");
        fs::rename(guest.host.join("a"), guest.outside("a")).expect("moved");
        assert_eq!(guest.look_up(b, "file"), Err(ESTALE));
        assert_eq!(guest.create(b, "new", open::WRITE_ONLY, 0o644).err(), Some(ESTALE));
        assert_eq!(guest.open(file, 0), Err(ESTALE));
        for name in ["..", ".", "a/b", "../file", "/etc/passwd", ""] {
            assert_eq!(guest.look_up(b, name), Err(EINVAL), "{name}");
            assert_eq!(guest.look_up(ROOT, name), Err(EINVAL), "{name}");
            let made = guest.create(ROOT, name, open::WRITE_ONLY, 0o644);
            assert_eq!(made.err(), Some(EINVAL), "{name}");
            assert_eq!(guest.rename((ROOT, name), (ROOT, "x"), 0), Err(EINVAL), "{name}");
            assert_eq!(guest.rename((ROOT, "a"), (ROOT, name), 0), Err(EINVAL), "{name}");
        }
        // What is open stays open, as on every filesystem.
        assert_eq!(guest.read(file, handle, 0, 9).expect("read"), b"moved");
        guest.release(b, listing).expect("closed");
        // Back under another name, it is found again.
        fs::rename(guest.outside("a"), guest.host.join("c")).expect("moved");
        guest.walk("c").expect("there");
        assert_eq!(guest.get_attributes(file).expect("found again").size, 5);
    }
}

#[test]
fn the_served_directory_may_be_moved() {
    let guest = Guest::new();
    fs::write(guest.host.join("file"), "x").expect("written");
    let names = guest.list(ROOT, 4096).expect("listed");
    let inode = fs::metadata(&guest.host).expect("there").ino();
    fs::rename(&guest.host, guest.outside("elsewhere")).expect("moved");
    fs::create_dir(&guest.host).expect("made");
    assert_eq!(guest.list(ROOT, 4096).expect("listed"), names);
    let parent = names.iter().find(|(name, _)| name == b"..").expect("listed");
    assert_eq!(parent.1, inode, "nothing is said of the directory around it");
}

#[test]
fn a_replaced_file_is_never_read_as_another() {
    let guest = Guest::new();
    for round in 0..50 {
        fs::write(guest.host.join("a"), "old").expect("written");
        let old = guest.walk("a").expect("there").node;
        fs::remove_file(guest.host.join("a")).expect("gone");
        // With luck, it gets the inode number of the other.
        fs::write(guest.host.join("b"), "another file").expect("written");
        let new = guest.walk("b").expect("there").node;
        assert_ne!(old, new, "{round}");
        assert_eq!(guest.open(old, 0), Err(ESTALE));
        fs::rename(guest.host.join("b"), guest.host.join("a")).expect("renamed");
        assert_eq!(guest.open(old, 0), Err(ESTALE));
    }
}

#[test]
fn castras_own_directory_is_invisible() {
    let guest = Guest::new();
    fs::create_dir_all(guest.host.join(".castra/vms")).expect("made");
    fs::create_dir_all(guest.host.join("sub/.castra")).expect("made");
    let sub = guest.walk("sub").expect("there").node;
    fs::write(guest.host.join("file"), "").expect("written");
    let file = guest.walk("file").expect("there").node;
    for (parent, names) in [(ROOT, vec!["file", "sub"]), (sub, vec![])] {
        assert_eq!(guest.names(parent).expect("listed"), names);
        for name in [".castra", ".CASTRA", ".Castra", ".ca\u{17f}tra", ".cas\u{200d}tra"] {
            assert_eq!(guest.look_up(parent, name), Err(ENOENT), "{name}");
            assert_eq!(guest.make_directory(parent, name), Err(EPERM), "{name}");
            assert_eq!(guest.make_link(parent, name, "x"), Err(EPERM), "{name}");
            assert_eq!(guest.link(file, parent, name), Err(EPERM), "{name}");
            let made = guest.create(parent, name, open::WRITE_ONLY, 0o644);
            assert_eq!(made.err(), Some(EPERM), "{name}");
            assert_eq!(guest.rename((ROOT, "file"), (parent, name), 0), Err(EPERM), "{name}");
            assert_eq!(guest.rename((parent, name), (ROOT, "x"), 0), Err(ENOENT), "{name}");
            assert_eq!(guest.remove_directory(parent, name), Err(ENOENT), "{name}");
            assert_eq!(guest.unlink(parent, name), Err(ENOENT), "{name}");
        }
    }
    for name in [".castra2", "castra", ".castr", ".cästra"] {
        guest.make_directory(sub, name).expect("any other name");
    }
    assert!(guest.host.join(".castra/vms").exists());
}

#[test]
fn a_read_only_directory_is_changed_by_nothing() {
    let guest = Guest::read_only(|host| {
        fs::write(host.join("a"), "kept").expect("written");
        fs::create_dir(host.join("d")).expect("made");
    });
    let a = guest.walk("a").expect("there").node;
    let modified = fs::metadata(guest.host.join("a")).expect("there").modified().expect("known");
    let handle = guest.open(a, open::READ_ONLY).expect("opened");
    assert_eq!(guest.read(a, handle, 0, 10).expect("read"), b"kept");
    for flags in [open::WRITE_ONLY, open::READ_WRITE, open::READ_ONLY | open::TRUNCATE] {
        assert_eq!(guest.open(a, flags), Err(EROFS));
        assert_eq!(guest.create(ROOT, "a", flags, 0o644).err(), Some(EROFS));
    }
    assert_eq!(guest.create(ROOT, "a", open::READ_ONLY, 0o644).err(), Some(EROFS));
    assert_eq!(guest.write(a, handle, 0, 0, b"x"), Err(EROFS));
    assert_eq!(guest.truncate(a, 0).err(), Some(EROFS));
    assert_eq!(guest.set_mode(a, 0).err(), Some(EROFS));
    assert_eq!(guest.make_directory(ROOT, "n"), Err(EROFS));
    assert_eq!(guest.make_link(ROOT, "n", "x"), Err(EROFS));
    assert_eq!(guest.link(a, ROOT, "n"), Err(EROFS));
    assert_eq!(guest.unlink(ROOT, "a"), Err(EROFS));
    assert_eq!(guest.remove_directory(ROOT, "d"), Err(EROFS));
    for flags in [0, 1, 2] {
        assert_eq!(guest.rename((ROOT, "a"), (ROOT, "d"), flags), Err(EROFS));
    }
    let node = body().u32(0o100_644).u32(0).u32(0).u32(0).name("n");
    assert_eq!(guest.call(opcode::MKNOD, ROOT, node), Err(EROFS));
    let range = body().u64(handle).u64(0).u64(4).u32(3).u32(0);
    assert_eq!(guest.call(opcode::FALLOCATE, a, range), Err(EROFS));
    let copy = body().u64(handle).u64(0).u64(a).u64(handle).u64(2).u64(1).u64(0);
    assert_eq!(guest.call(opcode::COPY_FILE_RANGE, a, copy), Err(EROFS));
    assert_eq!(guest.call(opcode::ACCESS, a, body().u32(2).u32(0)), Err(EROFS));
    assert!(guest.call(opcode::ACCESS, a, body().u32(4).u32(0)).is_ok());
    let metadata = fs::metadata(guest.host.join("a")).expect("there");
    assert_eq!(metadata.modified().expect("known"), modified);
    assert_eq!(fs::read_dir(&guest.host).expect("listed").count(), 2);
}

#[test]
fn privileges_are_neither_shown_nor_set() {
    let guest = Guest::new();
    let path = guest.host.join("a");
    let (made, _) = guest.create(ROOT, "made", open::WRITE_ONLY, 0o106_755).expect("made");
    assert_eq!(made.attributes.mode, 0o100_755);
    assert_eq!(guest.set_mode(made.node, 0o6777).expect("set").mode, 0o100_777);
    assert_eq!(fs::metadata(guest.host.join("made")).expect("there").mode(), 0o100_777);
    let request = body().u32(0o7777).u32(0).name("d");
    guest.call(opcode::MKDIR, ROOT, request).expect("made");
    assert_eq!(fs::metadata(guest.host.join("d")).expect("there").mode() & 0o6000, 0);

    fs::write(&path, "").expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).expect("set");
    let found = guest.walk("a").expect("there");
    assert_eq!(found.attributes.mode, 0o100_755);
    guest.open(found.node, open::READ_ONLY).expect("opened");
    assert_eq!(fs::metadata(&path).expect("there").mode(), 0o106_755);
    guest.open(found.node, open::WRITE_ONLY).expect("opened");
    assert_eq!(fs::metadata(&path).expect("there").mode(), 0o100_755);
}

#[test]
fn devices_are_neither_made_nor_opened_nor_named() {
    let guest = Guest::new();
    for kind in [0o020_000, 0o060_000, 0o040_000, 0o120_000, 0] {
        let request = body().u32(kind | 0o666).u32(0x103).u32(0).u32(0).name("n");
        assert_eq!(guest.call(opcode::MKNOD, ROOT, request), Err(EPERM));
    }
    let mknod = |kind: u32| body().u32(kind | 0o666).u32(0x103).u32(0).u32(0).name("fifo");
    guest.call(opcode::MKNOD, ROOT, mknod(0o010_000)).expect("made");
    let fifo = guest.walk("fifo").expect("there");
    // Opening it would wait for a writer.
    assert_eq!(guest.open(fifo.node, open::READ_ONLY), Err(ENXIO));
    assert_eq!(guest.create(ROOT, "fifo", open::READ_ONLY, 0o644).err(), Some(ENXIO));
    let device = rustix::fs::mknodat(
        rustix::fs::CWD,
        guest.host.join("null"),
        rustix::fs::FileType::CharacterDevice,
        0o666.into(),
        rustix::fs::makedev(1, 3),
    );
    if device.is_ok() {
        let device = guest.walk("null").expect("there");
        assert_eq!(device.attributes.mode & 0o170_000, 0o020_000);
        assert_eq!(device.attributes.device, 0, "its numbers mean another device in the guest");
        assert_eq!(guest.open(device.node, open::READ_ONLY), Err(ENXIO));
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let guest = Guest::new();
    let name = [b'x'; 256];
    assert_eq!(guest.look_up(ROOT, name), Err(ENAMETOOLONG));
    assert_eq!(guest.make_directory(ROOT, name), Err(ENAMETOOLONG));
    let mut without_end = body().name("x");
    without_end.0.pop();
    assert_eq!(guest.call(opcode::LOOKUP, ROOT, without_end), Err(EINVAL));
    assert_eq!(guest.call(opcode::LOOKUP, ROOT, body().name("x").name("y")), Err(EINVAL));
    // Every operation, with every length.
    for code in 0..=60 {
        for length in 0..120 {
            let request = request(code, 7, ROOT, &vec![0; length]);
            if let Some(reply) = guest.server.answer(&request) {
                assert_eq!(u32_at(&reply, 0) as usize, reply.len());
            }
        }
    }
    // Lengths of the header that are not those of the request.
    let mut long = request(opcode::GETATTR, 7, ROOT, &[0; 16]);
    for length in [0_u32, 16, 40, 55, 57, u32::MAX] {
        long[..4].copy_from_slice(&length.to_le_bytes());
        let reply = guest.server.answer(&long).expect("an answer");
        assert_eq!(u32_at(&reply, 4).cast_signed(), -EINVAL, "{length}");
    }
    for length in 0..40 {
        assert!(guest.server.answer(&long[..length]).is_none());
    }
    assert_eq!(guest.call(9999, ROOT, body()), Err(ENOSYS));
}

#[test]
fn numbers_of_every_size_are_harmless() {
    let guest = Guest::new();
    let (a, handle) = guest.create(ROOT, "a", open::READ_WRITE, 0o644).expect("made");
    let numbers = [0, 1, 4096, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, u64::MAX];
    for offset in numbers {
        if let Ok(read) = guest.read(a.node, handle, offset, u32::MAX) {
            assert!(read.len() <= crate::MAX_WRITE as usize);
        }
        let _ = guest.write(a.node, handle, offset, 0, b"xy");
        let _ = guest.write(a.node, handle, offset, open::APPEND, b"xy");
        assert_eq!(guest.truncate(a.node, 0).expect("set").size, 0);
        let _ = guest.truncate(a.node, offset);
        assert_eq!(guest.truncate(a.node, 0).expect("set").size, 0);
        let directory = guest.open_directory(ROOT).expect("opened");
        let request = body().u64(directory).u64(offset).u32(4096).u32(0).u64(0).u32(0).u32(0);
        let _ = guest.call(opcode::READDIR, ROOT, request);
        guest.release(ROOT, directory).expect("closed");
        for length in numbers {
            let range = body().u64(handle).u64(offset).u64(length).u32(3).u32(0);
            let _ = guest.call(opcode::FALLOCATE, a.node, range);
            let copy = body().u64(handle).u64(offset).u64(a.node).u64(handle);
            let copy = copy.u64(length).u64(length).u64(0);
            let _ = guest.call(opcode::COPY_FILE_RANGE, a.node, copy);
            let request = body().u64(handle).u64(offset).u32(3).u32(0);
            let _ = guest.call(opcode::LSEEK, a.node, request);
        }
        for nanoseconds in [999_999_999, 1_000_000_000, (1 << 30) - 1, (1 << 30) - 2, u32::MAX] {
            let set = guest.set(a.node, 32, (0, 0), (offset, nanoseconds), (0, (0, 0)));
            assert_eq!(set.is_err() && nanoseconds > 999_999_999, nanoseconds > 999_999_999);
        }
    }
    // A count of forgotten nodes that the request does not have.
    let request = request(opcode::BATCH_FORGET, 0, 0, &body().u32(u32::MAX).u32(0).u64(1).0);
    assert!(guest.server.answer(&request).is_none());
}

#[test]
fn handles_are_bounded() {
    let guest = Guest::with(Access::ReadWrite, |_| {}, 20);
    let (a, first) = guest.create(ROOT, "a", open::READ_WRITE, 0o644).expect("made");
    let handles: Vec<_> = (0..19).map(|_| guest.open(a.node, 0).expect("opened")).collect();
    assert_eq!(guest.open(a.node, 0), Err(ENFILE));
    assert_eq!(guest.open_directory(ROOT), Err(ENFILE));
    assert_eq!(guest.create(ROOT, "b", open::WRITE_ONLY, 0o644).err(), Some(ENFILE));
    assert!(!guest.host.join("b").exists());
    // Everything else is served, and so is this after one has been closed.
    guest.walk("a").expect("there");
    guest.release(a.node, handles[0]).expect("closed");
    guest.open(a.node, 0).expect("opened");
    assert_eq!(guest.read(a.node, handles[0], 0, 1), Err(EBADF));
    assert_eq!(guest.read(ROOT, first, 0, 1), Err(EBADF), "of another node");
    assert_eq!(guest.write(a.node, handles[1], 0, 0, b"x"), Err(EBADF), "opened for reading");
}

#[test]
fn a_circle_of_directories_ends() {
    let guest = Guest::new();
    fs::create_dir_all(guest.host.join("p/a")).expect("made");
    let (p, a) = (guest.walk("p").expect("there").node, guest.walk("p/a").expect("there").node);
    let status = |path: &str| {
        let directory = &guest.server.directory;
        let reference = directory.reference(path.as_bytes()).expect("there");
        directory.status(&reference).expect("known")
    };
    // As after a look-up in a directory that the host moves meanwhile.
    guest.server.nodes().found(a, b"p", &status("p")).expect("found");
    assert_eq!(guest.get_attributes(a).err(), Some(ESTALE));
    assert_eq!(guest.get_attributes(p).err(), Some(ESTALE));
    guest.walk("p/a").expect("found again");
    assert!(guest.get_attributes(a).is_ok());
}

#[test]
fn a_hidden_directory_is_not_there() {
    let mut guest = Guest::new();
    let kept = guest.host.join("home/kept");
    fs::create_dir_all(&kept).expect("made");
    fs::write(kept.join("key"), "secret").expect("written");
    fs::write(guest.host.join("home/other"), "").expect("written");
    let home = guest.walk("home").expect("there").node;
    let seen = guest.walk("home/kept/key").expect("not hidden yet");
    let handle = guest.open(seen.node, open::READ_ONLY).expect("opened");
    let state = guest.server.save().expect("short");
    guest.server.directory.hide(&kept);
    assert_eq!(guest.look_up(home, "kept"), Err(ENOENT));
    assert_eq!(guest.names(home).expect("listed"), ["other"]);
    assert_eq!(guest.rename((home, "kept"), (ROOT, "mine"), 0), Err(ENOENT));
    assert_eq!(guest.remove_directory(home, "kept"), Err(ENOENT));
    assert!(kept.join("key").exists());
    // What another server has seen does not lead into it.
    guest.restart();
    guest.server.directory.hide(&kept);
    guest.server.restore(&state).expect("a state");
    assert_eq!(guest.read(seen.node, handle, 0, 10), Err(ESTALE));
    assert_eq!(guest.get_attributes(seen.node).err(), Some(ESTALE));
    assert!(guest.look_up(home, "other").is_ok());
}
