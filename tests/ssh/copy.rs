use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use castra::guest::ssh::{SshError, download, upload};

use crate::guest::{Guest, pattern};

/// Paths, sorts, modes, times and contents of a tree.
fn describe(root: &Path) -> Vec<(String, String)> {
    let mut left = vec![root.to_owned()];
    let mut seen = Vec::new();
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).expect("exists");
        let what = if metadata.is_symlink() {
            format!("link to {}", fs::read_link(&path).expect("is a link").display())
        } else {
            let content = if metadata.is_file() { fs::read(&path).expect("reads") } else { Vec::new() };
            let sum =
                content.iter().fold(7_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            format!("{:o} {} {} {sum}", metadata.mode(), metadata.mtime(), content.len())
        };
        seen.push((path.strip_prefix(root).expect("is inside").display().to_string(), what));
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).expect("reads").map(|entry| entry.expect("reads").path()));
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
        fs::write(root.join(format!("a/deep/{number} \u{e9}'\"")), pattern(number * 50)).expect("writes");
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
    let guest = Guest::start();
    let [source, there, back] = ["source", "there", "back"].map(|name| guest.scratch().join(name));
    tree(&source);
    let mut told = 0;
    let copied = upload(&guest.target, &source, there.to_str().expect("is text"), &mut |bytes| told += bytes);
    let copied = copied.expect("uploads");
    assert_eq!(describe(&there), describe(&source));
    assert_eq!((copied.files, copied.bytes), (103, told));
    assert_eq!(told, 7_654_321 + (0..100).sum::<u64>() * 50 + 10);
    let copied =
        download(&guest.target, there.to_str().expect("is text"), &back, &mut |_| ()).expect("downloads");
    assert_eq!(describe(&back), describe(&source));
    assert_eq!((copied.files, copied.bytes), (103, told));
    // Once more, over what is there.
    let again = back.join("there");
    download(&guest.target, there.to_str().expect("is text"), &back, &mut |_| ()).expect("downloads");
    assert_eq!(describe(&again), describe(&source));
}

#[test]
fn a_second_copy_replaces_the_first() {
    let guest = Guest::start();
    let [source, there] = ["source", "there"].map(|name| guest.scratch().join(name));
    tree(&source);
    fs::create_dir(&there).expect("makes a directory");
    let goal = there.to_str().expect("is text");
    upload(&guest.target, &source, goal, &mut |_| ()).expect("uploads");
    // New in a directory whose copy takes no new files.
    let deep = source.join("a/deep");
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o755)).expect("sets");
    fs::write(deep.join("new"), "new").expect("writes");
    fs::set_permissions(&deep, fs::Permissions::from_mode(0o555)).expect("sets");
    upload(&guest.target, &source, goal, &mut |_| ()).expect("uploads");
    assert_eq!(describe(&there.join("source")), describe(&source), "into the directory, both times");
}

#[test]
fn a_file_goes_as_or_into() {
    let guest = Guest::start();
    let file = guest.scratch().join("file");
    fs::write(&file, "hello").expect("writes");
    let directory = guest.scratch().join("directory");
    fs::create_dir(&directory).expect("makes a directory");
    let named = directory.join("named");
    for goal in [&directory, &named] {
        upload(&guest.target, &file, goal.to_str().expect("is text"), &mut |_| ()).expect("uploads");
    }
    assert_eq!(fs::read(directory.join("file")).expect("exists"), b"hello");
    assert_eq!(fs::read(&named).expect("exists"), b"hello");
    let other = guest.scratch().join("other");
    fs::create_dir(&other).expect("makes a directory");
    download(&guest.target, named.to_str().expect("is text"), &other, &mut |_| ()).expect("downloads");
    assert_eq!(fs::read(other.join("named")).expect("exists"), b"hello");
}

#[test]
fn a_file_that_says_it_is_empty_is_read_to_its_end() {
    let guest = Guest::start();
    let goal = guest.scratch().join("version");
    download(&guest.target, "/proc/version", &goal, &mut |_| ()).expect("downloads");
    assert_eq!(fs::read(goal).expect("exists"), fs::read("/proc/version").expect("exists"));
}

#[test]
fn a_link_at_the_goal_is_not_followed() {
    let guest = Guest::start();
    let [source, goal, outside] = ["source", "goal", "outside"].map(|name| guest.scratch().join(name));
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
    download(&guest.target, source.to_str().expect("is text"), &goal, &mut |_| ()).expect("downloads");
    assert!(!outside.join("file").exists());
    assert_eq!(fs::read(outside.join("other")).expect("exists"), b"mine");
    assert_eq!(fs::read(copy.join("sub/file")).expect("exists"), b"from the guest");
}

#[test]
fn what_is_not_there_is_named() {
    let guest = Guest::start();
    let error = download(&guest.target, "/no/such/file", guest.scratch(), &mut |_| ()).expect_err("fails");
    assert!(matches!(&error, SshError::GuestFile { missing: true, .. }), "{error:?}");
    assert!(error.to_string().contains("/no/such/file"), "{error}");
    let error = upload(&guest.target, Path::new("/no/such/file"), "/tmp", &mut |_| ()).expect_err("fails");
    assert!(matches!(&error, SshError::LocalFile { .. }), "{error:?}");
}

#[test]
fn special_files_are_left_out_and_named() {
    let guest = Guest::start();
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
    let copied =
        upload(&guest.target, &source, there.to_str().expect("is text"), &mut |_| ()).expect("uploads");
    assert_eq!(copied.skipped, [pipe]);
}
