//! `.castra` as a symbolic link: a user's own to a bigger disk, or a stranger's to another
//! project's files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use castra_test_support::Fake;
use castra_test_support::skip;
use castra_test_support::tool;

use crate::attacks::snapshot::{assert_untouched, snapshot};

/// Returns a project, and a directory beside it.
fn with_target() -> (Fake, PathBuf) {
    let fake = Fake::new(&["web"]);
    let target = fake.path().with_file_name("big");
    fs::create_dir(&target).expect("a directory");
    (fake, target)
}

fn link(fake: &Fake, target: &Path) {
    let _ = fs::remove_file(fake.path().join(".castra"));
    symlink(target, fake.path().join(".castra")).expect("a link");
}

#[track_caller]
fn is_refused(fake: &Fake, target: &Path, why: &str) {
    let before = target.exists().then(|| snapshot(target));
    for arguments in [&["up"][..], &["status"], &["clean", "--disks", "--yes"], &["down"]] {
        let ended = fake.run(arguments).code(65);
        assert!(ended.stderr.contains(why), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("symbolic link"), "{arguments:?}: {}", ended.stderr);
    }
    match before {
        Some(before) => assert_untouched(target, &before),
        None => assert!(!target.exists()),
    }
    fs::remove_file(fake.path().join(".castra")).expect("removed");
}

#[test]
fn a_link_of_the_users_to_a_bigger_disk_works() {
    let (fake, target) = with_target();
    link(&fake, &target);
    fake.run(&["up"]).ok();
    assert!(target.join("web-overlay.qcow2").exists());
    fake.run(&["down", "--force"]).ok();
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    // Every way to a first start accepts the directory.
    for arguments in [&["restart"][..], &["image", "pull"]] {
        let (fake, target) = with_target();
        link(&fake, &target);
        fake.run(arguments).ok();
        fake.run(&["up"]).ok();
        fake.run(&["down", "--force"]).ok();
    }
}

#[test]
fn a_link_into_another_project_is_refused() {
    let (theirs, target) = with_target();
    link(&theirs, &target);
    theirs.run(&["up"]).ok();
    theirs.run(&["down", "--force"]).ok();
    let fake = Fake::new(&["web"]);
    link(&fake, &target);
    is_refused(&fake, &target, "not this project's");
    let inner = Fake::new(&["web"]);
    inner.run(&["up"]).ok();
    inner.run(&["down", "--force"]).ok();
    let target = inner.path().join(".castra");
    link(&fake, &target);
    is_refused(&fake, &target, "not this project's");
}

#[test]
fn a_link_to_anything_but_an_empty_directory_of_the_users_is_refused() {
    let (fake, target) = with_target();
    let home = fake.path().with_file_name("home");
    fs::create_dir_all(home.join(".config/autostart")).expect("a directory");
    link(&fake, &home);
    is_refused(&fake, &home, "not this project's");
    link(&fake, &home.join(".config/autostart"));
    is_refused(&fake, &home.join(".config/autostart"), "hidden");
    link(&fake, &target.join("missing"));
    is_refused(&fake, &target.join("missing"), "does not exist");
    fs::set_permissions(&target, Permissions::from_mode(0o777)).expect("a mode");
    link(&fake, &target);
    is_refused(&fake, &target, "other users can write to");
    fs::set_permissions(&target, Permissions::from_mode(0o700)).expect("a mode");
    // The default project has no file, and the same link.
    fs::remove_file(fake.path().join("castra.toml")).expect("removed");
    link(&fake, &home);
    is_refused(&fake, &home, "not this project's");
}

#[test]
fn a_link_that_git_tracks_is_refused() {
    let (fake, target) = with_target();
    link(&fake, &target);
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    let git = |arguments: &[&str]| {
        let directory = fake.path();
        let mut all = vec!["-C", directory.to_str().expect("UTF-8")];
        all.extend(arguments);
        tool("git", &all);
    };
    git(&["init", "-q"]);
    git(&["add", "-f", ".castra"]);
    let refused = fake.run(&["up"]).code(77);
    assert!(refused.stderr.contains("git tracks .castra"), "{}", refused.stderr);
    git(&["rm", "-q", "--cached", ".castra"]);
    fake.run(&["status"]).ok();
}

#[test]
fn a_link_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    let (fake, target) = with_target();
    link(&fake, &target);
    lchown(fake.path().join(".castra"), Some(12345), Some(12345)).expect("given away");
    is_refused(&fake, &target, "belongs to another user");
    link(&fake, &target);
    lchown(&target, Some(12345), Some(12345)).expect("given away");
    is_refused(&fake, &target, "belongs to another user");
}
