//! The reference client of MCP as it is published, against `castra mcp`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use castra_test_support::{Ended, Project, eventually};

use super::sdk::python_packages;

/// Version of the client.
const CLIENT: &str = "mcp==2.3.0";

/// Plays a scene of the script, with `castra mcp` and these options.
fn play(scene: &str, project: &Project, options: &[&str]) -> Ended {
    let castra = project.castra(&[&["mcp"], options].concat());
    let mut command = Command::new("python3");
    command.arg("tests/sdk/mcp_client.py").arg(scene).arg(project.path());
    command.arg(castra.get_program()).args(castra.get_args());
    for (name, value) in castra.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // No other Python's settings, and no files beside the script.
    command
        .env("PYTHONPATH", python_packages("mcp-python", CLIENT))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ended::of(command)
}

fn none_left(project: &Project) {
    assert_eq!(super::left(project), Vec::<String>::new());
    assert_eq!(project.processes(), Vec::<String>::new());
}

#[test]
fn the_reference_client_works() {
    let project = super::project();
    play("tools", &project, &["--state", "served"]).ok();
    none_left(&project);
}

#[test]
fn a_client_that_disappears_leaves_a_paused_sandbox_at_most() {
    let project = super::project();
    let ended = play("leaves", &project, &["--state", "served"]);
    assert_eq!(ended.code, None, "{}\n{}", ended.text(), ended.stderr);
    eventually("the end of the server", Duration::from_secs(60), || project.processes().is_empty());
    // A record and a directory.
    assert_eq!(super::left(&project).len(), 2, "{:?}", super::left(&project));
    play("returns", &project, &["--state", "served"]).ok();
    none_left(&project);
}

#[test]
fn servers_that_are_killed_leave_nothing_for_good() {
    let project = super::project();
    play("crashes", &project, &[]).ok();
    assert_eq!(project.processes(), Vec::<String>::new());
    for slot in ["0", "1"] {
        let slot = project.user_state().join("castra/mcp").join(slot);
        for directory in ["sandboxes", ".castra/vms"] {
            let left = fs::read_dir(slot.join(directory)).into_iter().flatten().flatten();
            assert_eq!(left.map(|entry| entry.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
        }
    }
}

#[test]
fn sandboxes_reach_the_network_if_they_are_to() {
    let project = super::project();
    play("networks", &project, &["--state", "served", "--network", "full"]).ok();
    none_left(&project);
}
