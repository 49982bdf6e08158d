//! A VM's disk and record, created by the real `castra`.

use std::fs;
use std::process::{Command, Stdio};

use castra_engine::failpoint::Point;
use castra_test_support::parked::{kill_at_each_visit, succeeds};
use castra_test_support::{Project, bootable_qcow2, tool};

/// Configuration of a VM on the user's own disk, whose contents do not matter here.
const CONFIGURATION: &str =
    "[[vms]]\nname = \"vm\"\nbase_image = \"base.qcow2\"\nmemory = \"128 MiB\"\n";

fn project() -> Project {
    let project = Project::isolated();
    project.write("castra.toml", CONFIGURATION);
    let base = project.path().join("base.qcow2");
    bootable_qcow2(&base);
    project
}

fn up(project: &Project) -> Command {
    let mut command = project.castra(&["up", "--no-wait"]);
    command.env("CASTRA_ACCELERATOR", "tcg").stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Returns all names below `.castra/`, except those in `logs/` and the timelines: a start that was
/// killed has none.
fn names(project: &Project) -> Vec<String> {
    let state = project.path().join(".castra");
    let directories = [state.clone(), state.join("vms"), state.join("vms/vm")];
    let entries = directories.iter().flat_map(|directory| fs::read_dir(directory).expect("reads"));
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("reads").file_name().to_string_lossy().into_owned())
        .collect();
    names.retain(|name| name != "boots");
    names.sort();
    names
}

#[test]
fn a_disk_is_made_once_and_recorded() {
    let undisturbed = project();
    succeeds(up(&undisturbed), "no point");
    let expected = names(&undisturbed);
    for point in Point::OVERLAY {
        let start = || {
            let project = project();
            let command = up(&project);
            (project, command)
        };
        kill_at_each_visit(point.name(), start, |project, visit| {
            succeeds(up(project), visit);
            assert_eq!(names(project), expected, "after a kill at {visit}");
            let overlay = project.path().join(".castra/vm-overlay.qcow2");
            tool("qemu-img", &["check", "-q", "-U", overlay.to_str().expect("is UTF-8")]);
        });
    }
}
