//! Requests of the nudger: they have no effect, and show the guest's kernel each change.

use std::fs;

use proptest::prelude::*;

use super::guest::{Body, Error, Guest, body, u32_at, u64_at};
use super::model::{Step, on_plain, step, through_server, tree};
use crate::abi::{ROOT, kind, opcode, open};
use crate::{ChangeKind, NUDGER};

const ECANCELED: Error = 125;
const ENOENT: Error = 2;

/// Returns a guest that is notified of changes.
fn watching() -> Guest {
    let mut guest = Guest::new();
    guest.server.watch(100).expect("watched");
    guest
}

/// Acts as the nudger of the only change, after the other ones.
fn nudge_last(guest: &Guest) -> ChangeKind {
    let changes = guest.server.changes();
    let last = u32::try_from(changes.changes.len()).expect("few") - 1;
    guest.act_as(NUDGER, changes.group + last);
    changes.changes.last().expect("a change").kind.clone()
}

/// Looks up a name; `None` if it is not there. The kernel may not use the answer again.
fn look_up(guest: &Guest, parent: u64, name: &str) -> Result<(u64, u32), Error> {
    let reply = guest.call(opcode::LOOKUP, parent, body().name(name))?;
    match u64_at(&reply, 0) {
        0 => {
            assert_eq!(u64_at(&reply, 16), 0, "valid once");
            Err(ENOENT)
        }
        node => Ok((node, u32_at(&reply, 40 + 60) & kind::MASK)),
    }
}

#[test]
fn a_file_is_not_there_until_it_is_created() {
    let guest = watching();
    fs::write(guest.host.join("a"), "x").expect("written");
    let known = guest.walk("a").expect("there").node;
    assert!(matches!(nudge_last(&guest), ChangeKind::File { is_written: true, .. }));
    assert_eq!(look_up(&guest, ROOT, "a"), Err(ENOENT));
    let request = body().u32(open::WRITE_ONLY).u32(0o600).u32(0).u32(0).name("a");
    let created = guest.call(opcode::CREATE, ROOT, request).expect("pretended");
    assert_eq!(u64_at(&created, 0), known);
    assert_eq!(u64_at(&created, 40 + 8), 1, "its size");
    assert_eq!((u64_at(&created, 128), u32_at(&created, 136)), (0, 0), "no handle, no cache");
    // A directory of that name is not what has changed, nor is another file.
    assert_eq!(guest.make_directory(ROOT, "a").err(), Some(ECANCELED));
    assert_eq!(guest.create(ROOT, "b", open::READ_WRITE, 0o600).err(), Some(ECANCELED));
    guest.act_as(0, 0);
    assert_eq!(guest.walk("a").expect("there").node, known);
    assert_eq!(fs::read(guest.host.join("a")).expect("read"), b"x");
}

#[test]
fn a_file_is_there_until_it_is_removed() {
    let guest = watching();
    fs::write(guest.host.join("a"), "old").expect("written");
    let known = guest.walk("a").expect("there").node;
    guest.server.changes();
    fs::remove_file(guest.host.join("a")).expect("removed");
    assert_eq!(nudge_last(&guest), ChangeKind::Removed);
    // The host makes it again before the nudge.
    fs::write(guest.host.join("a"), "new").expect("written");
    assert_eq!(look_up(&guest, ROOT, "a"), Ok((known, kind::REGULAR)));
    assert_eq!(guest.unlink(ROOT, "b"), Err(ECANCELED));
    assert_eq!(guest.remove_directory(ROOT, "a"), Err(ECANCELED));
    guest.unlink(ROOT, "a").expect("pretended");
    assert_eq!(fs::read(guest.host.join("a")).expect("it survives"), b"new");
    guest.act_as(0, 0);
    assert_ne!(guest.walk("a").expect("there").node, known);
    // The guest did not know this one, nor that it was a directory.
    fs::create_dir(guest.host.join("d")).expect("made");
    guest.server.changes();
    fs::remove_dir(guest.host.join("d")).expect("removed");
    assert_eq!(nudge_last(&guest), ChangeKind::RemovedDirectory);
    let (node, kind) = look_up(&guest, ROOT, "d").expect("pretended");
    assert_eq!(kind, kind::DIRECTORY);
    guest.remove_directory(ROOT, "d").expect("pretended");
    guest.act_as(0, 0);
    assert!(guest.walk("d").is_err() && guest.get_attributes(node).is_err());
    guest.forget(node, 1);
}

#[test]
fn what_was_in_a_directory_is_removed_with_it() {
    let guest = watching();
    fs::create_dir(guest.host.join("d")).expect("made");
    fs::write(guest.host.join("d/a"), "x").expect("written");
    let (d, a) = (guest.walk("d").expect("there").node, guest.walk("d/a").expect("there").node);
    guest.server.changes();
    fs::remove_dir_all(guest.host.join("d")).expect("removed");
    let changes = guest.server.changes();
    let kinds: Vec<_> = changes.changes.iter().map(|change| change.kind.clone()).collect();
    assert_eq!(kinds, [ChangeKind::Removed, ChangeKind::RemovedDirectory]);
    guest.act_as(NUDGER, changes.group);
    assert_eq!(look_up(&guest, ROOT, "d"), Ok((d, kind::DIRECTORY)));
    assert_eq!(look_up(&guest, d, "a"), Ok((a, kind::REGULAR)));
    guest.unlink(d, "a").expect("pretended");
    guest.act_as(NUDGER, changes.group + 1);
    guest.remove_directory(ROOT, "d").expect("pretended");
}

#[test]
fn a_file_has_its_old_name_until_it_is_moved() {
    let guest = watching();
    fs::write(guest.host.join("a"), "old").expect("written");
    let old = guest.walk("a").expect("there").node;
    guest.server.changes();
    fs::write(guest.host.join("a.tmp"), "new").expect("written");
    fs::rename(guest.host.join("a.tmp"), guest.host.join("a")).expect("moved");
    assert!(matches!(nudge_last(&guest), ChangeKind::Moved { .. }));
    let (new, _) = look_up(&guest, ROOT, "a.tmp").expect("pretended");
    assert_eq!(look_up(&guest, ROOT, "a"), Ok((old, kind::REGULAR)));
    assert_eq!(guest.rename((ROOT, "a"), (ROOT, "a.tmp"), 0), Err(ECANCELED));
    guest.rename((ROOT, "a.tmp"), (ROOT, "a"), 0).expect("pretended");
    guest.act_as(0, 0);
    assert_eq!(guest.walk("a").expect("there").node, new);
    assert!(guest.walk("a.tmp").is_err());
    assert_eq!(fs::read(guest.host.join("a")).expect("read"), b"new");
}

#[test]
fn times_that_the_nudger_sets_are_those_of_the_host() {
    let guest = watching();
    fs::write(guest.host.join("a"), "x").expect("written");
    let a = guest.walk("a").expect("there");
    guest.act_as(NUDGER, 0);
    let reply = guest.call(opcode::OPEN, a.node, body().u32(open::WRITE_ONLY).u32(0));
    let reply = reply.expect("pretended");
    assert_eq!((u64_at(&reply, 0), u32_at(&reply, 8)), (0, 0), "no handle, no cache");
    let set = guest.set(a.node, 0b10_1011, (7, 0), (7, 7), (0o777, (1, 1))).expect("pretended");
    assert_eq!(set, a.attributes);
    guest.release(a.node, 0).expect("closed");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..Default::default()
    })]

    #[test]
    fn nothing_that_the_nudger_does_has_an_effect(
        before in proptest::collection::vec(step(), 1..30),
        meanwhile in proptest::collection::vec(step(), 1..10),
        after in proptest::collection::vec((step(), 0_u32..12), 1..30),
        raw in proptest::collection::vec(
            (1_u32..50, any::<u8>(), proptest::collection::vec(any::<u8>(), 0..120)),
            1..30,
        ),
    ) {
        let guest = watching();
        let mut handles = Vec::new();
        for step in &before {
            let _ = through_server(&guest, step);
        }
        for name in ["a", "b", "c", "d"] {
            if let Ok(entry) = guest.walk(name) {
                handles.extend(guest.open(entry.node, open::READ_WRITE).map(|it| (entry.node, it)));
            }
        }
        guest.server.changes();
        for step in &meanwhile {
            let _ = on_plain(&guest.host, step);
        }
        let group = guest.server.changes().group;
        let tree_before = tree(&guest.host, &guest.host);
        for (step, change) in &after {
            guest.act_as(NUDGER, group + change);
            let _ = pretend(&guest, step);
        }
        for (node, handle) in handles {
            let _ = guest.write(node, handle, 0, 0, b"of the nudger");
            let _ = guest.truncate(node, 0);
            let request = body().u64(handle).u64(0).u64(100).u32(0).u32(0);
            let _ = guest.call(opcode::FALLOCATE, node, request);
        }
        for (opcode, node, bytes) in raw {
            if !matches!(opcode, opcode::FORGET | opcode::INTERRUPT | 41 | 42) {
                let _ = guest.call(opcode, u64::from(node % 4), Body(bytes));
            }
        }
        prop_assert_eq!(tree(&guest.host, &guest.host), tree_before);
    }
}

/// Makes the requests of a step with names in the root: answers are valid for no time.
fn pretend(guest: &Guest, step: &Step) -> Result<Vec<u8>, Error> {
    let (opcode, request) = match step {
        Step::Create { place, mode, .. } | Step::SetMode { place, mode } => {
            (opcode::CREATE, body().u32(2).u32(*mode).u32(0).u32(0).name(place.name()))
        }
        Step::MakeDirectory(place) | Step::List(place) => {
            (opcode::MKDIR, body().u32(0o755).u32(0).name(place.name()))
        }
        Step::MakeLink(place) | Step::Read(place) => {
            (opcode::SYMLINK, body().name(place.name()).name("nowhere"))
        }
        Step::Unlink(place) | Step::Write { place, .. } | Step::Truncate { place, .. } => {
            (opcode::UNLINK, body().name(place.name()))
        }
        Step::RemoveDirectory(place) => (opcode::RMDIR, body().name(place.name())),
        Step::Link { from, to } | Step::Rename { from, to } => {
            (opcode::RENAME, body().u64(ROOT).name(from.name()).name(to.name()))
        }
    };
    let _ = guest.call(opcode::LOOKUP, ROOT, body().name("a"));
    guest.call(opcode, ROOT, request)
}
