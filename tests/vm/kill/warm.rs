//! Warm templates and the VMs that are restored from them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use castra_engine::failpoint::Point;
use castra_test_support::parked::is_killed;
use castra_test_support::{Project, linked_cache};

fn up(project: &Project) -> Command {
    let mut command = project.castra(&["up"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Returns the names below the templates' directory that are not finished templates.
fn unfinished(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache.join("castra/templates")).expect("reads");
    let paths = entries.map(|entry| entry.expect("reads").path());
    paths
        .filter(|path| !path.join("template.json").exists())
        .map(|path| path.display().to_string())
        .collect()
}

/// Each attempt clears what the one before has left, and the last one succeeds.
#[test]
fn a_template_in_the_making_leaves_nothing() {
    let cache = linked_cache();
    fs::remove_dir_all(cache.path().join("castra/templates")).expect("removed");
    let project = Project::with_cache(cache.path().to_owned());
    for point in Point::BAKE {
        assert!(is_killed(up(&project), point.name()), "no process comes to {}", point.name());
        let left = unfinished(cache.path());
        assert!(left.len() <= 1, "after a kill at {}: {left:?}", point.name());
    }
    project.run(&["up"]).ok().says("restoring from its warm template");
    project.run(&["exec", "--", "true"]).ok();
    assert_eq!(unfinished(cache.path()), Vec::<String>::new());
}

#[test]
fn a_vm_killed_while_it_resumed_comes_up() {
    let cache = linked_cache();
    for point in Point::RESTORE {
        let project = Project::with_cache(cache.path().to_owned());
        assert!(is_killed(up(&project), point.name()), "no process comes to {}", point.name());
        project.run(&["up"]).ok();
        let said = project.run(&["exec", "--", "cat", "/etc/hostname"]).ok().text();
        assert_eq!(said, "alpine-minimal\n", "after a kill at {}", point.name());
    }
}

#[test]
fn a_run_that_was_killed_while_it_started_is_swept_by_the_next() {
    let cache = linked_cache();
    for point in Point::RESTORE {
        let project = Project::with_cache(cache.path().to_owned());
        let mut command = project.castra(&["run", "--", "true"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        assert!(is_killed(command, point.name()), "no process comes to {}", point.name());
        project.run(&["run", "--", "true"]).ok();
        let vms = fs::read_dir(cache.path().join("castra/runs/vms")).expect("reads");
        assert_eq!(vms.count(), 0, "after a kill at {}", point.name());
        let disks = fs::read_dir(cache.path().join("castra/runs")).expect("reads").flatten();
        let left =
            disks.filter(|entry| entry.file_name().to_string_lossy().contains("run-")).count();
        assert_eq!(left, 0, "after a kill at {}", point.name());
    }
}
