use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use castra_engine::error::{Explain as _, Kind};
use castra_engine::guest::ssh::{SshError, download, download_until, upload, upload_until};

use super::start;
use crate::ssh::guest::pattern;

/// Returns paths, kinds, modes, times and contents of a tree.
fn describe(root: &Path) -> Vec<(String, String)> {
    let mut left = vec![root.to_owned()];
    let mut seen = Vec::new();
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).expect("exists");
        let what = if metadata.is_symlink() {
            format!("link to {}", fs::read_link(&path).expect("is a link").display())
        } else {
            let content =
                if metadata.is_file() { fs::read(&path).expect("reads") } else { Vec::new() };
            let sum = content
                .iter()
                .fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            format!("{:o} {} {} {sum}", metadata.mode(), metadata.mtime(), content.len())
        };
        seen.push((path.strip_prefix(root).expect("is inside").display().to_string(), what));
        if metadata.is_dir() {
            left.extend(
                fs::read_dir(&path).expect("reads").map(|entry| entry.expect("reads").path()),
            );
        }
    }
    seen.sort();
    seen
}

fn tree(root: &Path) {
    fs::create_dir_all(root.join("a/deep/er")).expect("makes directories");
    fs::create_dir(root.join("empty")).expect("makes a directory");
    fs::write(root.join("a/big"), pattern(7_654_321)).expect("writes");
    fs::write(root.join("a/deep/er/nothing"), b"").expect("writes");
    for number in 0..100 {
        fs::write(root.join(format!("a/deep/{number} \u{e9}'\"")), pattern(number * 50))
            .expect("writes");
    }
    fs::write(root.join("script"), b"#!/bin/sh\n").expect("writes");
    symlink("a/big", root.join("link")).expect("links");
    symlink("/nowhere/at/all", root.join("dangling")).expect("links");
    symlink("a", root.join("directory-link")).expect("links");
    for (path, mode) in [("script", 0o755), ("a/big", 0o600), ("a/deep", 0o555), ("empty", 0o711)] {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).expect("sets");
    }
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for path in ["script", "a/deep/er", "a"] {
        fs::File::open(root.join(path)).expect("opens").set_modified(old).expect("sets");
    }
}

#[test]
fn a_tree_goes_there_and_back() {
    let guest = start();
    let [source, there, back] = ["source", "there", "back"].map(|name| guest.scratch().join(name));
    tree(&source);
    let mut reported = 0;
    let copied = upload(&guest.target, &source, there.to_str().expect("is text"), &mut |bytes| {
        reported += bytes
    });
    let copied = copied.expect("uploads");
    assert_eq!(describe(&there), describe(&source));
    assert_eq!((copied.files, copied.bytes), (103, reported));
    assert_eq!(reported, 7_654_321 + (0..100).sum::<u64>() * 50 + 10);
    let copied = download(&guest.target, there.to_str().expect("is text"), &back, &mut |_| ())
        .expect("downloads");
    assert_eq!(describe(&back), describe(&source));
    assert_eq!((copied.files, copied.bytes), (103, reported));
    // Again, over the existing copy.
    let again = back.join("there");
    download(&guest.target, there.to_str().expect("is text"), &back, &mut |_| ())
        .expect("downloads");
    assert_eq!(describe(&again), describe(&source));
}

#[test]
fn a_second_copy_replaces_the_first() {
    let guest = start();
    let [source, there] = ["source", "there"].map(|name| guest.scratch().join(name));
    tree(&source);
    fs::create_dir(&there).expect("makes a directory");
    let goal = there.to_str().expect("is text");
    upload(&guest.target, &source, goal, &mut |_| ()).expect("uploads");
    // New in a directory whose copy is read-only.
    let deep = source.join("a/deep");
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o755)).expect("sets");
    fs::write(deep.join("new"), "new").expect("writes");
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o555)).expect("sets");
    upload(&guest.target, &source, goal, &mut |_| ()).expect("uploads");
    assert_eq!(
        describe(&there.join("source")),
        describe(&source),
        "into the directory, both times"
    );
}

#[test]
fn a_file_goes_as_or_into() {
    let guest = start();
    let file = guest.scratch().join("file");
    fs::write(&file, "hello").expect("writes");
    let directory = guest.scratch().join("directory");
    fs::create_dir(&directory).expect("makes a directory");
    let named = directory.join("named");
    for goal in [&directory, &named] {
        upload(&guest.target, &file, goal.to_str().expect("is text"), &mut |_| ())
            .expect("uploads");
    }
    assert_eq!(fs::read(directory.join("file")).expect("exists"), b"hello");
    assert_eq!(fs::read(&named).expect("exists"), b"hello");
    let other = guest.scratch().join("other");
    fs::create_dir(&other).expect("makes a directory");
    download(&guest.target, named.to_str().expect("is text"), &other, &mut |_| ())
        .expect("downloads");
    assert_eq!(fs::read(other.join("named")).expect("exists"), b"hello");
}

#[test]
fn a_file_that_says_it_is_empty_is_read_to_its_end() {
    let guest = start();
    let goal = guest.scratch().join("version");
    download(&guest.target, "/proc/version", &goal, &mut |_| ()).expect("downloads");
    assert_eq!(fs::read(goal).expect("exists"), fs::read("/proc/version").expect("exists"));
}

#[test]
fn a_link_at_the_goal_is_not_followed() {
    let guest = start();
    let [source, goal, outside] =
        ["source", "goal", "outside"].map(|name| guest.scratch().join(name));
    for directory in [&source.join("sub"), &goal, &outside] {
        fs::create_dir_all(directory).expect("makes directories");
    }
    fs::write(source.join("sub/file"), "from the guest").expect("writes");
    fs::write(source.join("other"), "from the guest").expect("writes");
    fs::write(outside.join("other"), "mine").expect("writes");
    let copy = goal.join("source");
    fs::create_dir(&copy).expect("makes a directory");
    symlink(&outside, copy.join("sub")).expect("links");
    symlink(outside.join("other"), copy.join("other")).expect("links");
    download(&guest.target, source.to_str().expect("is text"), &goal, &mut |_| ())
        .expect("downloads");
    assert!(!outside.join("file").exists());
    assert_eq!(fs::read(outside.join("other")).expect("exists"), b"mine");
    assert_eq!(fs::read(copy.join("sub/file")).expect("exists"), b"from the guest");
}

#[test]
fn what_is_not_there_is_named() {
    let guest = start();
    let error =
        download(&guest.target, "/no/such/file", guest.scratch(), &mut |_| ()).expect_err("fails");
    assert!(matches!(&error, SshError::GuestFile { missing: true, .. }), "{error:?}");
    assert!(error.to_string().contains("/no/such/file"), "{error}");
    let error =
        upload(&guest.target, Path::new("/no/such/file"), "/tmp", &mut |_| ()).expect_err("fails");
    assert!(matches!(&error, SshError::LocalFile { .. }), "{error:?}");
}

#[test]
fn a_directory_that_does_not_exist_is_named_as_one() {
    let guest = start();
    let below = |name: &str| format!("{}/{name}", guest.scratch().display());
    fs::write(below("file"), "x").expect("writes");
    fs::create_dir(below("tree")).expect("makes a directory");
    let up = |source: &str, goal: &str| {
        let copied = upload(&guest.target, Path::new(&below(source)), below(goal), &mut |_| ());
        copied.expect_err("fails")
    };
    let down = |goal: &str| {
        let copied = download(&guest.target, below("file"), below(goal).as_ref(), &mut |_| ());
        copied.expect_err("fails")
    };
    for error in [up("file", "missing/"), up("file", "no/such/"), down("missing/")] {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error}: {}", cause.unwrap_or_default());
        assert!(text.starts_with("cannot copy into "), "{text}");
        assert!(text.contains("the directory does not exist"), "{text}");
        assert_eq!(error.kind(), Kind::NotFound, "{text}");
    }
    assert!(down("file/").to_string().starts_with("cannot copy into "));
    assert!(up("tree", "file").to_string().ends_with("it exists and is not a directory"));
}

#[test]
fn special_files_are_left_out_and_named() {
    let guest = start();
    let [source, there] = ["source", "there"].map(|name| guest.scratch().join(name));
    fs::create_dir(&source).expect("makes a directory");
    let pipe = source.join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .expect("makes a pipe");
    let copied = upload(&guest.target, &source, there.to_str().expect("is text"), &mut |_| ())
        .expect("uploads");
    assert_eq!(copied.skipped, [pipe]);
}

/// Returns a name for every byte that a name can have, each alone and all in one.
fn every_byte() -> Vec<Vec<u8>> {
    let bytes: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let mut names: Vec<Vec<u8>> = bytes.iter().map(|byte| vec![b'n', *byte]).collect();
    names.extend(bytes.chunks(200).map(<[u8]>::to_vec));
    names
}

fn byte_tree(root: &Path) {
    fs::create_dir(root).expect("makes a directory");
    for name in every_byte() {
        let path = root.join(OsStr::from_bytes(&name));
        fs::write(&path, &name).expect("writes");
        let directory = root.join(OsStr::from_bytes(&[b"d", &name[..]].concat()));
        fs::create_dir(&directory).expect("makes a directory");
        symlink(OsStr::from_bytes(&name), directory.join(OsStr::from_bytes(&name))).expect("links");
    }
}

pub(crate) fn same_trees(one: &Path, other: &Path) {
    let output = std::process::Command::new("diff")
        .arg("-r")
        .arg("--no-dereference")
        .args([one, other])
        .output();
    let output = output.expect("diff runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn names_are_bytes_both_ways() {
    let guest = start();
    let [source, there, back] =
        ["source", "there", "b\u{e9}ck"].map(|name| guest.scratch().join(name));
    byte_tree(&source);
    let copied = upload(&guest.target, &source, &there, &mut |_| ()).expect("uploads");
    assert!(copied.failed.is_empty(), "{:?}", copied.failed);
    same_trees(&source, &there);
    let copied = download(&guest.target, &there, &back, &mut |_| ()).expect("downloads");
    assert!(copied.failed.is_empty(), "{:?}", copied.failed);
    same_trees(&source, &back);
    // And as the name on the command line.
    let latin = guest.scratch().join(OsStr::from_bytes(b"\xfc"));
    upload(&guest.target, &source.join("na"), &latin, &mut |_| ()).expect("uploads");
    download(&guest.target, &latin, &back.join("alone"), &mut |_| ()).expect("downloads");
    assert_eq!(fs::read(back.join("alone")).expect("reads"), b"na");
}

fn fifo(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
        .expect("makes a pipe");
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("is there").mode()
}

#[test]
fn what_the_user_named_is_written_through() {
    let guest = start();
    let scratch = guest.scratch();
    let source = scratch.join("source");
    fs::write(&source, pattern(200_000)).expect("writes");
    fs::set_permissions(&source, fs::Permissions::from_mode(0o4755)).expect("sets");
    let get = |goal: &Path| download(&guest.target, &source, goal, &mut |_| ());
    // Links, to a file and to none yet.
    fs::write(scratch.join("file"), "old").expect("writes");
    fs::set_permissions(scratch.join("file"), fs::Permissions::from_mode(0o640)).expect("sets");
    fs::hard_link(scratch.join("file"), scratch.join("other")).expect("links");
    for (link, file) in [("link", "file"), ("dangling", "new")] {
        symlink(file, scratch.join(link)).expect("links");
        get(&scratch.join(link)).expect("downloads");
        assert_eq!(fs::read_link(scratch.join(link)).expect("is still a link"), Path::new(file));
        assert!(fs::read(scratch.join(file)).expect("reads") == pattern(200_000));
    }
    assert_eq!(mode(&scratch.join("file")) & 0o7777, 0o640, "it keeps its mode");
    assert!(
        fs::read(scratch.join("other")).expect("reads") == pattern(200_000),
        "and its other name"
    );
    // A pipe, alone and in a directory.
    let (directory, pipe) = (scratch.join("directory"), scratch.join("directory/source"));
    fs::create_dir(&directory).expect("makes a directory");
    fifo(&pipe);
    for goal in [&pipe, &directory] {
        let reader = pipe.clone();
        let reader = std::thread::spawn(move || fs::read(reader).expect("reads"));
        get(goal).expect("downloads");
        assert!(reader.join().expect("ends") == pattern(200_000));
        assert_eq!(mode(&pipe), 0o010_600);
    }
    // A device, but never one of this machine's own.
    let null = scratch.join("null");
    let device = rustix::fs::makedev(1, 3);
    let bits = rustix::fs::Mode::from_raw_mode(0o622);
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &null,
        rustix::fs::FileType::CharacterDevice,
        bits,
        device,
    );
    // Only root creates devices, and not in every container.
    if made.is_ok() && fs::OpenOptions::new().write(true).open(&null).is_ok() {
        let before = mode(&null);
        get(&null).expect("downloads");
        upload(&guest.target, &source, &null, &mut |_| ()).expect("uploads");
        assert_eq!(mode(&null), before);
    }
}

#[test]
fn a_tree_leaves_special_files_alone_and_says_so() {
    let guest = start();
    let [source, goal] = ["source", "goal"].map(|name| guest.scratch().join(name));
    for directory in [&source, &goal, &goal.join("source")] {
        fs::create_dir(directory).expect("makes directories");
    }
    for name in ["one", "two", "three"] {
        fs::write(source.join(name), name).expect("writes");
    }
    fifo(&goal.join("source/two"));
    let copied = download(&guest.target, &source, &goal, &mut |_| ()).expect("downloads");
    assert!(copied.failed[0].to_string().contains("source/two"), "{:?}", copied.failed);
    assert_eq!((copied.failed.len(), copied.files), (1, 2), "the others are copied");
    assert_eq!(mode(&goal.join("source/two")), 0o010_600);
}

#[test]
fn what_the_user_named_is_read_to_its_end() {
    let guest = start();
    let there = guest.scratch().join("there");
    upload(&guest.target, Path::new("/proc/version"), &there, &mut |_| ()).expect("uploads");
    assert_eq!(fs::read(&there).expect("reads"), fs::read("/proc/version").expect("reads"));
    let pipe = guest.scratch().join("pipe");
    fifo(&pipe);
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(pipe, pattern(3_000_000)).expect("writes")
    });
    upload(&guest.target, &pipe, &there, &mut |_| ()).expect("uploads");
    writer.join().expect("ends");
    assert!(fs::read(&there).expect("reads") == pattern(3_000_000));
    // Objects that cannot be read are errors: a pipe in the guest, a socket here.
    let error =
        download(&guest.target, &pipe, &guest.scratch().join("x"), &mut |_| ()).expect_err("fails");
    assert!(error.to_string().contains("neither a regular file"), "{error}");
    let socket = guest.scratch().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("binds");
    let error =
        upload(&guest.target, &socket, guest.scratch().join("x"), &mut |_| ()).expect_err("fails");
    assert!(error.to_string().contains("socket"), "{error}");
    assert!(!guest.scratch().join("x").exists());
}

#[test]
fn the_umask_counts_and_no_rights_are_lent() {
    let guest = start();
    let source = guest.scratch().join("source");
    fs::create_dir_all(source.join("open")).expect("makes directories");
    fs::write(source.join("file"), "x").expect("writes");
    for (path, mode) in [("file", 0o6777), ("open", 0o1777)] {
        fs::set_permissions(source.join(path), fs::Permissions::from_mode(mode)).expect("sets");
    }
    let goal = guest.scratch().join("goal");
    download(&guest.target, &source, &goal, &mut |_| ()).expect("downloads");
    let umask = fs::read_to_string("/proc/self/status").expect("reads");
    let umask =
        umask.lines().find_map(|line| line.strip_prefix("Umask:")).expect("is listed").trim();
    let allowed = 0o777 & !u32::from_str_radix(umask, 8).expect("is a number");
    assert_eq!(mode(&goal.join("file")) & 0o7777, allowed);
    assert_eq!(mode(&goal.join("open")) & 0o7777, allowed);
    // Nor does an existing file keep such bits, with contents from the guest.
    fs::set_permissions(goal.join("file"), fs::Permissions::from_mode(0o4711)).expect("sets");
    download(&guest.target, source.join("file"), &goal, &mut |_| ()).expect("downloads");
    assert_eq!(mode(&goal.join("file")) & 0o7777, 0o711);
}

#[test]
fn holes_stay_holes() {
    let guest = start();
    let [source, there, back] = ["source", "there", "back"].map(|name| guest.scratch().join(name));
    let file = fs::File::create(&source).expect("creates");
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 20 << 20).expect("writes");
    file.set_len(40 << 20).expect("grows");
    upload(&guest.target, &source, &there, &mut |_| ()).expect("uploads");
    download(&guest.target, &there, &back, &mut |_| ()).expect("downloads");
    for copy in [&there, &back] {
        assert!(fs::read(copy).expect("reads") == fs::read(&source).expect("reads"));
        assert!(fs::metadata(copy).expect("is there").blocks() * 512 < 4 << 20);
    }
}

#[test]
fn patterns_are_expanded_in_the_guest() {
    let guest = start();
    let source = guest.scratch().join("source");
    for directory in ["one", "two"] {
        fs::create_dir_all(source.join(directory)).expect("makes directories");
        fs::write(source.join(directory).join(format!("{directory}.conf")), directory)
            .expect("writes");
        fs::write(source.join(directory).join(format!(".{directory}.conf")), "hidden")
            .expect("writes");
    }
    fs::write(source.join("odd[1]"), "odd").expect("writes");
    let goal = guest.scratch().join("goal");
    let pattern = source.join("*/*.conf");
    let error = download(&guest.target, &pattern, &goal, &mut |_| ()).expect_err("fails");
    assert!(matches!(error, SshError::ManyOntoOne { .. }), "{error:?}");
    fs::create_dir(&goal).expect("makes a directory");
    assert_eq!(download(&guest.target, &pattern, &goal, &mut |_| ()).expect("downloads").files, 2);
    download(&guest.target, source.join("odd[1]"), &goal, &mut |_| ()).expect("is a name, too");
    let mut names: Vec<_> = fs::read_dir(&goal)
        .expect("reads")
        .map(|entry| entry.expect("reads").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["odd[1]", "one.conf", "two.conf"]);
    let error = download(&guest.target, source.join("no*"), &goal, &mut |_| ()).expect_err("fails");
    assert!(error.to_string().contains("nothing matches"), "{error}");
}

#[test]
fn a_copy_that_is_cancelled_leaves_no_half_file() {
    let guest = start();
    let source = guest.scratch().join("source");
    fs::File::create(&source).expect("creates").set_len(1 << 40).expect("grows");
    for goal in ["new", "old"] {
        let goal = guest.scratch().join(goal);
        if goal.ends_with("old") {
            fs::write(&goal, "old").expect("writes");
        }
        let cancel = castra_engine::cancel::Cancel::new();
        let error =
            download_until(&cancel, &guest.target, &source, &goal, &mut |_| cancel.cancel());
        match error.expect_err("ends") {
            SshError::Interrupted => {
                assert!(!goal.exists(), "it was made by the copy, and is gone")
            }
            SshError::Incomplete { paths, .. } => assert_eq!(paths, [guest.scratch().join("old")]),
            error => panic!("{error:?}"),
        }
    }
    assert!(guest.scratch().join("old").exists());
    let there = guest.scratch().join("there");
    let cancel = castra_engine::cancel::Cancel::new();
    upload_until(&cancel, &guest.target, &source, &there, &mut |_| cancel.cancel())
        .expect_err("ends");
    crate::ssh::guest::eventually("the half file in the guest is gone", || !there.exists());
}

#[test]
fn the_state_of_castra_stays_here() {
    let guest = start();
    let [project, there] = ["project", "there"].map(|name| guest.scratch().join(name));
    for state in [".castra", "state"] {
        fs::create_dir_all(project.join(state).join("vms/web")).expect("makes directories");
        fs::write(project.join(state).join("vms/web/vm.json"), "{}").expect("writes");
    }
    fs::write(project.join("castra.toml"), "").expect("writes");
    let copied = upload(&guest.target, &project, &there, &mut |_| ()).expect("uploads");
    assert_eq!((copied.files, copied.states.len()), (1, 2), "{copied:?}");
    assert!(!there.join(".castra").exists() && !there.join("state").exists());
    let copied =
        upload(&guest.target, &project.join(".castra"), &there, &mut |_| ()).expect("uploads");
    assert_eq!(copied.files, 1, "who names it means it");
}
