//! Copies of projects and of the cache on real QEMU: each is what it was copied from, and nothing
//! done in it touches that.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use castra_test_support::{CP_A, CP_R, Copied, Project, TAR, linked_cache, target_tmp, tool};
use serde_json::Value;

const IMAGE: &str = "managed_image = { name = \"alpine-pypi\", version = \"v1\" }";

fn declare(project: &Project) {
    project.write("castra.toml", &format!("[[vms]]\nname = \"web\"\n{IMAGE}\n"));
}

/// Writes something to memory, and something to the disk.
fn write_something(project: &Project) {
    project
        .run(&[
            "exec",
            "web",
            "--",
            "sh",
            "-c",
            "echo memory > /dev/shm/x; echo disk > /root/x; sync",
        ])
        .ok();
}

#[track_caller]
fn has(copy: &Copied<'_>, vm: &str, what: &str) {
    let path = if what == "memory" { "/dev/shm/x" } else { "/root/x" };
    assert_eq!(copy.run(&["exec", vm, "--", "cat", path]).ok().text().trim(), what, "{vm}");
}

/// Returns a project whose VM `web` is running and has written to its memory and its disk.
fn running() -> Project {
    let project = Project::new();
    declare(&project);
    project.run(&["up"]).ok();
    write_something(&project);
    project
}

/// Returns such a project, with `web` suspended and cloned as `two`.
fn suspended_and_cloned() -> Project {
    let project = running();
    project.run(&["suspend"]).ok();
    project.run(&["clone", "web", "two"]).ok();
    project
}

#[test]
fn a_copy_of_a_running_vm_leaves_the_original_alone() {
    let project = running();
    let copy = project.copy("copy", CP_A);
    assert_eq!(copy.state("web"), "copied");
    copy.run(&["down"]).ok().says("in the state after a power cut").says("was not running");
    project.run(&["exec", "web", "--", "true"]).ok();
    copy.run(&["up"]).ok().says(&project.path().display().to_string());
    has(&copy, "web", "disk");
    project.run(&["exec", "web", "--", "true"]).ok();
    copy.run(&["down"]).ok();
    assert_eq!(copy.state("web"), "stopped");
    // By its guest, since its sockets exist.
    project.run(&["down"]).ok().says("guest shutdown");
}

fn record(project: &Path, vm: &str) -> Value {
    let bytes = fs::read(project.join(format!(".castra/vms/{vm}/vm.json"))).expect("reads");
    serde_json::from_slice(&bytes).expect("JSON")
}

fn layer(project: &Path) -> PathBuf {
    let mut entries =
        fs::read_dir(project.join(".castra")).expect("reads").flatten().map(|entry| entry.path());
    let is_layer = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"layer-"))
    };
    entries.find(is_layer).expect("a layer")
}

/// Replaces the bytes of a file by others of the same number.
fn flip(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("changed");
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let at = file.metadata().expect("there").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[!byte[0]], at).expect("writes");
}

#[test]
fn a_suspended_vm_and_its_clone_resume_in_a_copy_and_changed_files_are_refused() {
    let project = suspended_and_cloned();
    // A boot takes long, so each copy boots one of the two.
    for (name, how, boots) in [("one", CP_R, "web"), ("two", TAR, "two")] {
        let copy = project.copy(name, how);
        for vm in ["web", "two"] {
            copy.run(&["up", vm]).ok().says("resuming");
            has(&copy, vm, "memory");
            has(&copy, vm, "disk");
        }
        copy.run(&["down"]).ok();
        copy.run(&["up", boots]).ok();
        has(&copy, boots, "disk");
        let [known, original] = [copy.path(), &project.path()].map(|it| record(it, boots));
        let [known, original] = [&known, &original].map(|it| &it["frozen"][0]);
        assert_eq!(known["sha256"], original["sha256"]);
        assert_ne!(known["stamp"], original["stamp"], "it is known by now");
        copy.run(&["down"]).ok();
    }
    for (name, says) in [
        ("layer", "is not the one its disk is based on"),
        ("memory", "its saved memory is damaged"),
        ("disk", "its disk has changed since"),
    ] {
        let copy = project.copy(name, CP_R);
        let file = match name {
            "layer" => layer(copy.path()),
            "memory" => copy.path().join(".castra/vms/web/machine.state"),
            _ => copy.path().join(".castra/web-overlay.qcow2"),
        };
        flip(&file);
        copy.run(&["up", "web"]).code(65).says(says);
        assert_eq!(copy.state("web"), "suspended", "nothing is lost");
    }
}

/// A VM that was ever cloned starts from its disk, and a warm template's layer is recognised again.
#[test]
fn a_stopped_vm_that_was_cloned_starts_in_a_copy_when_the_original_is_gone() {
    let project = suspended_and_cloned();
    project.run(&["down", "--discard-suspended"]).ok();
    let copies = [project.copy("one", CP_R), project.copy("two", TAR)];
    fs::remove_dir_all(project.path().join(".castra")).expect("removed");
    for (copy, vm) in copies.iter().zip(["two", "web"]) {
        copy.run(&["--offline", "up", vm]).ok();
        has(copy, vm, "disk");
        copy.run(&["--offline", "image", "verify"]).ok().says("is intact");
        copy.run(&["down"]).ok();
    }
}

#[test]
fn a_copied_cache_is_verified_once_and_used() {
    let linked = linked_cache();
    let parent = tempfile::Builder::new().prefix("copied-cache-").tempdir_in(target_tmp());
    let parent = parent.expect("a directory");
    let (from, to) = (linked.path().join("castra"), parent.path().join("castra"));
    tool("cp", &["-r", from.to_str().expect("UTF-8"), to.to_str().expect("UTF-8")]);
    let verifying = "verifying the warm template";
    // Those of other tests are listed too.
    let in_state = |project: &Project, command: &[&str], state: &str| -> Vec<String> {
        let list = project.run(command).ok().document(&command[..2].join(" "));
        let templates = list["templates"].as_array().expect("a list").iter();
        let found = templates.filter(|template| template["state"] == state);
        found.map(|template| template["key"].as_str().expect("a key").to_owned()).collect()
    };
    let (list, prune) =
        (["template", "list", "--json"], ["template", "prune", "--dry-run", "--json"]);
    for is_first in [true, false] {
        let project = Project::with_cache(parent.path().to_owned());
        declare(&project);
        assert_eq!(in_state(&project, &list, "ready").is_empty(), is_first);
        assert!(in_state(&project, &prune, "copied").is_empty(), "what can be used stays");
        let up = project.run(&["--offline", "up"]).ok().says("restoring from its warm template");
        assert_eq!(up.stderr.contains(verifying), is_first, "{}", up.stderr);
        assert!(!up.stderr.contains("preparing a warm template"), "{}", up.stderr);
        assert_eq!(in_state(&project, &list, "ready").len(), 1);
    }
    let project = Project::with_cache(parent.path().to_owned());
    declare(&project);
    let key = in_state(&project, &list, "ready").remove(0);
    flip(&to.join("templates").join(key).join("memory.img"));
    project.run(&["template", "verify"]).code(65).says("has a missing or changed file (memory)");
}
