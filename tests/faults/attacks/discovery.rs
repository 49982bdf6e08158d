//! Projects found above the working directory, and state that another user has left.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use castra_test_support::Fake;
use castra_test_support::skip;
use castra_test_support::{Ended, Project, tool};

/// Some user other than root.
const OTHER: u32 = 12345;

fn in_directory(project: &Project, directory: &Path, arguments: &[&str]) -> Ended {
    let mut command = project.castra(arguments);
    command.current_dir(directory);
    Ended::of(command)
}

#[test]
fn a_link_that_another_user_planted_is_no_configuration() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    let project = Project::isolated();
    let shared = project.path().join("shared");
    fs::create_dir_all(shared.join("mine")).expect("a directory");
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).expect("a mode");
    project.write("good.toml", "[[vms]]\nname = 'web'\nbase_image = '/srv/base.qcow2'\n");
    symlink(project.path().join("good.toml"), shared.join("castra.toml")).expect("a link");
    in_directory(&project, &shared.join("mine"), &["status"]).ok();
    lchown(shared.join("castra.toml"), Some(OTHER), Some(OTHER)).expect("given away");
    let refused = in_directory(&project, &shared.join("mine"), &["status"]).code(77);
    assert!(refused.stderr.contains("another user (uid 12345)"), "{}", refused.stderr);
}

#[test]
fn a_subdirectory_belongs_to_the_default_project_above() {
    let fake = Fake::new(&["web"]);
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    let sub = fake.path().join("a/b");
    fs::create_dir_all(&sub).expect("a directory");
    let line = format!("→ project {}", fake.path().display());
    let restarted = in_directory(&fake, &sub, &["restart"]).ok();
    assert_eq!(restarted.stderr.matches(&line).count(), 1, "{}", restarted.stderr);
    fake.run(&["down", "--force"]).ok();
    fs::remove_file(fake.path().join("castra.toml")).expect("removed");
    let here = fake.run(&["status"]).ok();
    assert!(here.text().contains("web") && !here.stderr.contains("project"), "{}", here.stderr);
    let below = in_directory(&fake, &sub, &["status"]).ok();
    assert!(below.text().contains("web"), "{}", below.stderr);
    assert_eq!(below.stderr.matches(&line).count(), 1, "{}", below.stderr);
    assert!(!sub.join(".castra").exists());
    let nearer = in_directory(&fake, &sub, &["--skip-discovery", "status"]).ok();
    assert!(nearer.stderr.contains("no VMs here yet"), "{}", nearer.stderr);
}

#[test]
fn state_in_a_directory_like_tmp_is_nobodys_project() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    let project = Project::isolated();
    let shared = project.path().join("shared");
    fs::create_dir_all(shared.join("mine")).expect("a directory");
    fs::create_dir_all(shared.join(".castra/vms/evil")).expect("a directory");
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).expect("a mode");
    tool("chown", &["-R", "12345", shared.join(".castra").to_str().expect("UTF-8")]);
    let ended = in_directory(&project, &shared.join("mine"), &["status"]).ok();
    assert!(
        ended.stderr.contains("no VMs here yet") && !ended.stderr.contains("→ project"),
        "{}",
        ended.stderr
    );
}

#[test]
fn state_that_sudo_left_is_not_an_empty_project() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    let fake = Fake::new(&["web"]);
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    let root = fake.path().parent().expect("a parent").to_owned();
    for directory in [&root, &fake.path(), &root.join("home"), &root.join("run")] {
        chown(directory, Some(OTHER), Some(OTHER)).expect("given away");
    }
    let as_other = |arguments: &[&str]| {
        let mut command = fake.castra(arguments);
        command.uid(OTHER).gid(OTHER);
        Ended::of(command)
    };
    // `exec` reserves other codes for the command's own.
    for (arguments, code) in [
        (&["status"][..], 77),
        (&["status", "web"], 77),
        (&["exec", "--", "true"], 255),
        (&["down"], 77),
        (&["up"], 77),
    ] {
        let ended = as_other(arguments).code(code);
        let stderr = &ended.stderr;
        assert!(
            stderr.contains("belongs to root") && stderr.contains("sudo chown"),
            "{arguments:?}: {stderr}"
        );
    }
    // One of several VMs may be root's.
    let vms = fake.path().join(".castra/vms");
    chown(fake.path().join(".castra"), Some(OTHER), Some(OTHER)).expect("given away");
    chown(&vms, Some(OTHER), Some(OTHER)).expect("given away");
    as_other(&["status"]).code(77).says("belongs to root");
}

#[test]
fn sudo_leaves_nothing_in_the_home_of_its_caller() {
    if !rustix::process::geteuid().is_root() {
        return skip("only root can give a file away");
    }
    let fake = Fake::new(&["web"]);
    let directories = [fake.home(), fake.runtime_directory()];
    for directory in &directories {
        chown(directory, Some(OTHER), Some(OTHER)).expect("given away");
    }
    let before =
        directories.each_ref().map(|directory| fs::read_dir(directory).expect("is there").count());
    let sudo = |arguments: &[&str]| {
        let mut command = fake.castra(arguments);
        command.env("SUDO_UID", OTHER.to_string());
        Ended::of(command)
    };
    sudo(&["up"]).ok();
    let after =
        directories.each_ref().map(|directory| fs::read_dir(directory).expect("is there").count());
    sudo(&["down", "--force"]).ok();
    assert_eq!(before, after);
    for directory in &directories {
        chown(directory, Some(0), Some(0)).expect("taken back");
    }
}

#[test]
fn a_home_that_is_none_is_named() {
    let project = Project::isolated();
    for home in [None, Some(""), Some("relative/home")] {
        let run = |arguments: &[&str], cache: Option<&str>| {
            let mut command = project.castra(arguments);
            command.env_remove("HOME").env_remove("XDG_CACHE_HOME");
            home.map(|home| command.env("HOME", home));
            cache.map(|cache| command.env("XDG_CACHE_HOME", cache));
            Ended::of(command)
        };
        for cache in [None, Some("relative/cache")] {
            let ended = run(&["status"], cache).code(64);
            assert!(
                ended.stderr.contains("HOME") && ended.stderr.contains("XDG_CACHE_HOME"),
                "{}",
                ended.stderr
            );
        }
        run(&["status"], project.cache().to_str()).ok();
        run(&["completions", "bash"], None).ok();
    }
    assert_eq!(fs::read_dir(project.path()).expect("listed").count(), 0);
}
