//! Changes of the host that the guest is notified of.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::guest::{Guest, body};
use crate::abi::{ROOT, opcode, open};
use crate::{Change, ChangeKind, Shortage};

/// Returns a guest that is notified, and that has looked into its directories.
fn watching(directories: &[&str]) -> Guest {
    let mut guest = Guest::new();
    guest.server.watch(100).expect("watched");
    for name in directories {
        fs::create_dir(guest.host.join(name)).expect("made");
    }
    drain(&guest);
    for name in directories {
        guest.walk(name).expect("there");
    }
    guest
}

fn drain(guest: &Guest) -> Vec<Change> {
    let mut all = Vec::new();
    loop {
        let changes = guest.server.changes();
        all.extend(changes.changes);
        if !changes.has_more {
            return all;
        }
    }
}

/// Returns the changes in words.
#[track_caller]
fn reported(guest: &Guest) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let words = |Change { directory, name, kind }: Change| {
        let path = text(&[directory, name].join(&b'/'));
        let path = path.trim_start_matches('/');
        match kind {
            ChangeKind::File { is_written, .. } => {
                format!("{path} file{}", if is_written { " written" } else { "" })
            }
            ChangeKind::Moved { directory, name } => {
                let to = text(&[directory, name].join(&b'/'));
                format!("{path} to {}", to.trim_start_matches('/'))
            }
            ChangeKind::Contents { .. } => format!("{path} contents"),
            ChangeKind::Attributes { .. } => format!("{path} attributes"),
            kind => format!("{path} {kind:?}").to_lowercase(),
        }
    };
    drain(guest).into_iter().map(words).collect()
}

#[test]
fn each_change_of_the_host_is_reported_once() {
    let guest = watching(&["d"]);
    let host = |name: &str| guest.host.join(name);
    fs::write(host("a"), "x").expect("written");
    assert_eq!(reported(&guest), ["a file written"]);
    fs::write(host("a"), "xy").expect("written");
    fs::write(host("a"), "xyz").expect("written");
    assert_eq!(reported(&guest), ["a contents"]);
    fs::set_permissions(host("a"), PermissionsExt::from_mode(0o600)).expect("set");
    assert_eq!(reported(&guest), ["a attributes"]);
    fs::create_dir(host("e")).expect("made");
    symlink("a", host("link")).expect("linked");
    fs::write(host("d/in"), "").expect("written");
    assert_eq!(reported(&guest), ["e directory", "link link", "d/in file"]);
    fs::rename(host("a"), host("d/a")).expect("moved");
    assert_eq!(reported(&guest), ["a to d/a"]);
    fs::remove_file(host("d/a")).expect("removed");
    fs::remove_dir(host("e")).expect("removed");
    assert_eq!(reported(&guest), ["d/a removed", "e removeddirectory"]);
    // As editors save.
    fs::write(host("d/in.tmp"), "x").expect("written");
    fs::rename(host("d/in.tmp"), host("d/in")).expect("moved");
    assert_eq!(reported(&guest), ["d/in.tmp to d/in"]);
    fs::write(host("gone"), "x").expect("written");
    fs::remove_file(host("gone")).expect("removed");
    assert_eq!(reported(&guest), [""; 0], "it has come and gone");
    assert_eq!(reported(&guest), [""; 0]);
}

#[test]
fn what_comes_from_elsewhere_replaces() {
    let guest = watching(&[]);
    fs::write(guest.host.join("a"), "old").expect("written");
    guest.walk("a").expect("there");
    drain(&guest);
    fs::write(guest.outside("new"), "new").expect("written");
    fs::rename(guest.outside("new"), guest.host.join("a")).expect("moved");
    assert_eq!(reported(&guest), ["a removed", "a file written"]);
    fs::rename(guest.host.join("a"), guest.outside("a")).expect("moved");
    assert_eq!(reported(&guest), ["a removed"]);
}

#[test]
fn a_directory_is_followed_where_it_is_moved() {
    let guest = watching(&["d", "e"]);
    fs::rename(guest.host.join("d"), guest.host.join("e/d")).expect("moved");
    fs::write(guest.host.join("e/d/a"), "x").expect("written");
    assert_eq!(reported(&guest), ["d to e/d", "e/d/a file written"]);
}

#[test]
fn the_guests_own_changes_are_not_reported() {
    let guest = watching(&["d"]);
    let (file, handle) = guest.create(ROOT, "own", open::READ_WRITE, 0o644).expect("made");
    guest.write(file.node, handle, 0, 0, b"x").expect("written");
    guest.truncate(file.node, 0).expect("cut");
    let d = guest.walk("d").expect("there").node;
    guest.rename((ROOT, "own"), (d, "own"), 0).expect("moved");
    guest.make_directory(d, "more").expect("made");
    guest.unlink(d, "own").expect("removed");
    assert_eq!(reported(&guest), [""; 0]);
    // The host's are, in the same file.
    let (file, handle) = guest.create(ROOT, "both", open::READ_WRITE, 0o644).expect("made");
    guest.write(file.node, handle, 0, 0, b"x").expect("written");
    fs::write(guest.host.join("both"), "by the host").expect("written");
    assert_eq!(reported(&guest), ["both contents"]);
    // A change that fails is not taken for the host's next one.
    assert!(guest.make_directory(ROOT, "both").is_err());
    fs::remove_file(guest.host.join("both")).expect("removed");
    fs::write(guest.host.join("both"), "").expect("written");
    assert_eq!(reported(&guest), ["both removed", "both file"]);
}

#[test]
fn what_is_hidden_is_not_reported() {
    let guest = watching(&[]);
    fs::create_dir(guest.host.join(".castra")).expect("made");
    fs::write(guest.host.join(".castra/x"), "x").expect("written");
    fs::remove_dir_all(guest.host.join(".castra")).expect("removed");
    assert_eq!(reported(&guest), [""; 0]);
}

#[test]
fn directories_that_the_guest_knows_are_watched() {
    let mut guest = Guest::new();
    fs::create_dir_all(guest.host.join("a/b/c")).expect("made");
    guest.server.watch(100).expect("watched");
    let write = |host: &Path, name: &str| fs::write(host.join(name), "x").expect("written");
    write(&guest.host, "a/1");
    assert_eq!(reported(&guest), [""; 0], "nothing looks there");
    guest.walk("a").expect("there");
    write(&guest.host, "a/2");
    assert_eq!(reported(&guest), ["a/2 file written"]);
    // Listed with attributes: the kernel needs no look-up then.
    let a = guest.walk("a").expect("there").node;
    let handle = guest.open_directory(a).expect("opened");
    let request = body().u64(handle).u64(0).u32(4096).u32(0).u64(0).u32(0).u32(0);
    guest.call(opcode::READDIRPLUS, a, request).expect("listed");
    write(&guest.host, "a/b/3");
    assert_eq!(reported(&guest), ["a/b/3 file written"]);
    // A successor watches what its predecessor knew.
    let state = guest.server.save().expect("short");
    guest.restart();
    guest.server.watch(100).expect("watched");
    guest.server.restore(&state).expect("a state");
    write(&guest.host, "a/b/4");
    assert_eq!(reported(&guest), ["a/b/4 file written"]);
    guest.server.forget_all();
    write(&guest.host, "a/b/5");
    write(&guest.host, "6");
    assert_eq!(reported(&guest), ["6 file written"], "the guest is another one");
}

#[test]
fn those_used_last_are_watched() {
    let mut guest = Guest::new();
    guest.server.watch(20).expect("watched");
    for number in 0..40 {
        fs::create_dir(guest.host.join(number.to_string())).expect("made");
    }
    drain(&guest);
    assert_eq!(guest.server.shortage(), None);
    for number in 0..40 {
        guest.walk(&number.to_string()).expect("there");
    }
    assert_eq!(guest.server.shortage(), Some(Shortage::Process));
    for number in 0..40 {
        fs::write(guest.host.join(format!("{number}/x")), "").expect("written");
    }
    let reported = reported(&guest);
    assert!(reported.len() <= 20 && reported.contains(&"39/x file".to_owned()), "{reported:?}");
    assert!(!reported.contains(&"0/x file".to_owned()), "{reported:?}");
}

#[test]
fn many_changes_come_in_parts() {
    let guest = watching(&["d"]);
    for number in 0..3000 {
        fs::write(guest.host.join(format!("d/{number}")), "x").expect("written");
    }
    let first = guest.server.changes();
    assert!(first.changes.len() <= crate::MAX_CHANGES + 1 && first.has_more);
    let mut reported = reported(&guest).len() + first.changes.len();
    // A part may end between a file and its contents.
    reported -= reported.saturating_sub(3000).min(40);
    assert_eq!(reported, 3000);
}

#[test]
fn a_removal_that_is_out_of_date_is_not_repeated() {
    let guest = watching(&["d"]);
    fs::write(guest.host.join("a"), "old").expect("written");
    guest.walk("a").expect("there");
    drain(&guest);
    // The guest makes both again before it knows that they were removed.
    fs::remove_file(guest.host.join("a")).expect("removed");
    fs::remove_dir(guest.host.join("d")).expect("removed");
    let (file, handle) = guest.create(ROOT, "a", open::READ_WRITE, 0o644).expect("made");
    guest.write(file.node, handle, 0, 0, b"new").expect("written");
    guest.make_directory(ROOT, "d").expect("made");
    let reported = reported(&guest);
    assert!(reported.iter().all(|change| change.ends_with("attributes")), "{reported:?}");
}

#[test]
fn a_directory_that_is_moved_away_and_back_is_the_same() {
    let guest = watching(&["d"]);
    let before = guest.walk("d").expect("there").node;
    fs::rename(guest.host.join("d"), guest.outside("d")).expect("moved");
    assert_eq!(reported(&guest), [" attributes"]);
    fs::rename(guest.outside("d"), guest.host.join("d")).expect("moved");
    drain(&guest);
    assert_eq!(guest.walk("d").expect("there").node, before);
}
