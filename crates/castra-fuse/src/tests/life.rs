//! Nodes and servers that come and go.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use super::guest::{EBADF, ENOMEM, ESTALE, Guest};
use crate::abi::{ROOT, open};

#[test]
fn ids_of_an_earlier_server_are_stale() {
    let mut guest = Guest::new();
    let (a, handle) = guest.create(ROOT, "a", open::READ_WRITE, 0o644).expect("made");
    let d = guest.make_directory(ROOT, "d").expect("made");
    guest.restart();
    assert_eq!(guest.get_attributes(a.node).err(), Some(ESTALE));
    assert_eq!(guest.look_up(d.node, "x"), Err(ESTALE));
    assert_eq!(guest.read(a.node, handle, 0, 1), Err(ESTALE));
    assert_eq!(guest.write(a.node, handle, 0, 0, b"x"), Err(ESTALE));
    // The root is there, and what is looked up again.
    let again = guest.walk("a").expect("there");
    assert_ne!(again.node, a.node);
    assert_eq!(again.attributes.inode, a.attributes.inode);
}

#[test]
fn a_successor_takes_over_what_is_open() {
    let mut guest = Guest::new();
    let (a, handle) = guest.create(ROOT, "a", open::READ_WRITE, 0o644).expect("made");
    let d = guest.make_directory(ROOT, "d").expect("made");
    let (b, reader) = guest.create(d.node, "b", open::READ_ONLY, 0o644).expect("made");
    let listed = guest.open_directory(d.node).expect("opened");
    let (gone, lost) = guest.create(ROOT, "gone", open::READ_WRITE, 0o644).expect("made");
    guest.unlink(ROOT, "gone").expect("removed");
    assert_eq!(guest.write(gone.node, lost, 0, 0, b"x"), Ok(1), "without a name");
    let state = guest.server.save().expect("short");
    guest.restart();
    guest.server.restore(&state).expect("a state");
    assert_eq!(guest.write(a.node, handle, 0, 0, b"text"), Ok(4));
    assert_eq!(guest.read(a.node, handle, 0, 10).expect("read"), b"text");
    assert_eq!(guest.read(b.node, reader, 0, 10).expect("read"), b"");
    assert_eq!(guest.write(b.node, reader, 0, 0, b"x"), Err(EBADF), "it was opened for reading");
    guest.release(d.node, listed).expect("closed");
    assert_eq!(guest.look_up(d.node, "b").expect("there").node, b.node);
    // Without a name it cannot be found.
    assert_eq!(guest.write(gone.node, lost, 0, 0, b"x"), Err(ESTALE));
    let next = guest.create(ROOT, "next", open::READ_WRITE, 0o644).expect("made");
    assert!(next.0.node > gone.node && next.1 > lost, "an ID was given twice");
    // And once more, with a file that another one has replaced meanwhile.
    let state = guest.server.save().expect("short");
    fs::remove_file(guest.host.join("a")).expect("removed");
    fs::write(guest.host.join("a"), "another one").expect("written");
    guest.restart();
    guest.server.restore(&state).expect("a state");
    assert_eq!(guest.read(a.node, handle, 0, 10), Err(ESTALE));
    assert_eq!(guest.write(next.0.node, next.1, 0, 0, b"x"), Ok(1));
}

#[test]
fn a_file_that_the_guest_has_found_is_opened_although_it_is_replaced() {
    let guest = Guest::new();
    for name in ["old", "new", "gone", "elsewhere"] {
        fs::write(guest.host.join(name), name).expect("written");
    }
    let find = |name: &str| guest.walk(name).expect("there").node;
    let (old, gone, elsewhere) = (find("old"), find("gone"), find("elsewhere"));
    let read = |node| guest.open(node, open::READ_ONLY).and_then(|at| guest.read(node, at, 0, 9));
    find("new");
    guest.rename((ROOT, "new"), (ROOT, "old"), 0).expect("renamed");
    guest.unlink(ROOT, "gone").expect("removed");
    assert_eq!(read(old).expect("opened"), b"old");
    assert_eq!(read(find("old")).expect("opened"), b"new");
    assert_eq!(read(gone).expect("opened"), b"gone");
    assert_eq!(guest.get_attributes(gone).expect("known").links, 0);
    // What the host removes is gone, and what it moves is not followed.
    let held = guest.open(elsewhere, open::READ_ONLY).expect("opened");
    fs::rename(guest.host.join("elsewhere"), guest.outside("elsewhere")).expect("moved");
    assert_eq!(read(elsewhere), Err(ESTALE));
    assert_eq!(guest.read(elsewhere, held, 0, 9).expect("still open"), b"elsewhere");
    // A file that the kernel has forgotten is dropped.
    guest.forget(old, 1);
    assert_eq!(guest.server.departed_count(), 1);
    assert_eq!(read(old), Err(ESTALE));
    // A removal that fails keeps none.
    fs::create_dir(guest.host.join("d")).expect("made");
    find("d");
    assert!(guest.rename((ROOT, "old"), (ROOT, "d"), 0).is_err());
    assert!(guest.remove_directory(ROOT, "old").is_err());
    assert_eq!(guest.server.departed_count(), 1);
    // Few are kept of many, and what is open is reached by its handle.
    let many = (0..200).map(|_| {
        fs::write(guest.host.join("one"), "x").expect("written");
        let one = find("one");
        guest.unlink(ROOT, "one").expect("removed");
        assert!(guest.server.departed_count() <= 64);
        one
    });
    let many: Vec<u64> = many.collect();
    assert_eq!(read(many[0]), Err(ESTALE));
    assert_eq!(read(many[199]).expect("kept"), b"x");
    assert_eq!(read(gone).expect("open"), b"gone");
}

#[test]
fn a_state_of_any_bytes_is_an_error_or_harmless() {
    let mut guest = Guest::new();
    fs::create_dir(guest.host.join(".castra")).expect("made");
    fs::write(guest.host.join(".castra/secret"), "x").expect("written");
    let (a, handle) = guest.create(ROOT, "a-name", open::READ_WRITE, 0o644).expect("made");
    let state = guest.server.save().expect("short");
    for length in 0..state.len() {
        guest.restart();
        assert!(guest.server.restore(&state[..length]).is_err());
        assert!(guest.walk("a-name").is_ok(), "it serves all the same");
    }
    for place in 0..state.len() {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut wrong = state.clone();
            wrong[place] = byte;
            guest.restart();
            let _ = guest.server.restore(&wrong);
            let _ = guest.read(a.node, handle, 0, 10);
            assert!(guest.walk("a-name").is_ok());
        }
    }
    // Neither a name that leads out nor a hidden one.
    let named = |name: &[u8]| {
        let at = state.windows(6).position(|bytes| bytes == b"a-name").expect("there");
        [&state[..at], name, &state[at + 6..]].concat()
    };
    for name in [&b".castra/secret"[..], b"..", b".castra", b"a/b", b""] {
        guest.restart();
        assert!(guest.server.restore(&named(name)).is_err(), "{name:?}");
    }
    // Another directory.
    assert_eq!(Guest::new().server.restore(&state).map_err(|error| error.raw_os_error()), Err(116));
}

#[test]
fn ids_are_never_reused() {
    let guest = Guest::new();
    fs::write(guest.host.join("a"), "").expect("written");
    let first = guest.walk("a").expect("there").node;
    guest.forget(first, 1);
    assert_eq!(guest.get_attributes(first).err(), Some(ESTALE));
    assert_ne!(guest.walk("a").expect("there").node, first);
}

#[test]
fn forgotten_nodes_cost_nothing() {
    let guest = Guest::new();
    for number in 0..500 {
        fs::write(guest.host.join(number.to_string()), "").expect("written");
    }
    let descriptors = || fs::read_dir("/proc/self/fd").expect("listed").count();
    let before = descriptors();
    let nodes: Vec<_> =
        (0..500).map(|number| guest.walk(&number.to_string()).expect("there").node).collect();
    // Other tests of this process have their own.
    assert!(descriptors() < before + 300);
    assert_eq!(guest.server.nodes().len(), 501);
    // More than were counted, and the root.
    nodes.iter().for_each(|node| guest.forget(*node, u64::MAX));
    guest.forget(ROOT, u64::MAX);
    assert_eq!(guest.server.nodes().len(), 1);
    assert!(guest.get_attributes(ROOT).is_ok());
}

#[test]
fn memory_is_bounded() {
    let guest = Guest::new();
    for number in 0..200 {
        fs::write(guest.host.join(format!("{number:0100}")), "").expect("written");
    }
    let look_up = |number: u32| guest.look_up(ROOT, format!("{number:0100}"));
    guest.server.nodes().limit(40_000);
    let known: Vec<_> = (0..200).map_while(|number| look_up(number).ok()).collect();
    assert!((75..90).contains(&known.len()), "{}", known.len());
    assert_eq!(look_up(150), Err(ENOMEM));
    assert_eq!(guest.make_directory(ROOT, "d"), Err(ENOMEM));
    assert_eq!(guest.create(ROOT, "c", open::WRITE_ONLY, 0o644).err(), Some(ENOMEM));
    assert!(!guest.host.join("d").exists() && !guest.host.join("c").exists());
    // What is known is served, links take no more, and listings have all names.
    guest.get_attributes(known[0].node).expect("known");
    fs::hard_link(guest.host.join(format!("{:0100}", 0)), guest.host.join("link")).expect("made");
    assert_eq!(guest.walk("link").expect("known").node, known[0].node);
    assert_eq!(guest.names(ROOT).expect("listed").len(), 201);
    known.iter().for_each(|entry| guest.forget(entry.node, 2));
    look_up(150).expect("room again");
}

#[test]
fn deep_trees_are_reached() {
    for guest in [Guest::new(), Guest::by_components()] {
        // Its path is longer than what the kernel takes at once.
        let name = "d".repeat(100);
        let mut parent = ROOT;
        for _ in 0..100 {
            parent = guest.make_directory(parent, &name).expect("made").node;
        }
        let (file, _) = guest.create(parent, "file", open::WRITE_ONLY, 0o644).expect("made");
        assert_eq!(guest.look_up(parent, "file").expect("there").node, file.node);
        guest.unlink(parent, "file").expect("gone");
    }
}

#[test]
fn several_threads_are_answered_at_once() {
    let guest = Guest::new();
    let done = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (guest, done) = (&guest, &done);
            scope.spawn(move || {
                for round in 0..100 {
                    let name = format!("{}-{}", thread / 2, round % 10);
                    let other = format!("{}-{}", thread / 2, (round + 3) % 10);
                    if let Ok((entry, handle)) = guest.create(ROOT, &name, open::READ_WRITE, 0o644)
                    {
                        let _ = guest.write(entry.node, handle, 0, 0, name.as_bytes());
                        let _ = guest.rename((ROOT, &name), (ROOT, &other), 0);
                        guest.release(entry.node, handle).expect("closed");
                        guest.forget(entry.node, 1);
                    }
                    let _ = guest.unlink(ROOT, &other);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), 800);
    assert_eq!(guest.server.nodes().len(), 1, "every look-up was taken back");
}
