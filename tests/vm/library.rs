//! The library's examples, in real VMs.
//!
//! An example reads the environment of its process. So each is a test of this binary, which does
//! nothing unless it is started again with the environment of a project.

use std::process::Command;

use castra_test_support::Project;

#[path = "../../crates/castra-engine/examples/run.rs"]
mod run;
#[path = "../../crates/castra-engine/examples/up.rs"]
mod up;

/// Variable that names the example to be run.
const EXAMPLE: &str = "CASTRA_TEST_EXAMPLE";

/// Runs an example in a project, and returns its stdout and stderr.
fn example(name: &str, project: &Project) -> (String, String) {
    let castra = project.castra(&[]);
    // It serves mounts.
    let own = std::path::Path::new(castra.get_program()).parent().expect("a directory");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = [own.to_owned()].into_iter().chain(std::env::split_paths(&path));
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", &format!("library::example_{name}"), "--nocapture"]);
    command.current_dir(project.path());
    for (name, value) in castra.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("PATH", std::env::join_paths(path).expect("a path"));
    let output = command.env(EXAMPLE, name).output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    (stdout, stderr)
}

fn is_wanted(name: &str) -> bool {
    std::env::var(EXAMPLE).is_ok_and(|wanted| wanted == name)
}

#[test]
fn example_run() {
    if is_wanted("run") {
        run::main().expect("runs");
    }
}

#[test]
fn example_up() {
    if is_wanted("up") {
        up::main().expect("runs");
    }
}

#[test]
fn commands_run_in_throw_away_vms() {
    let project = Project::new();
    let (stdout, stderr) = example("run", &project);
    assert!(stdout.contains("x86_64 and Code(0)\n\"9\\n10\\n\"\n3\n"), "{stdout}");
    assert!(stderr.contains("VmPhase"), "{stderr}");
    assert!(!project.path().join(".castra").exists(), "the directory is no project of it");
}

#[test]
fn a_vm_of_a_program_is_a_vm_of_castra() {
    let project = Project::new();
    project.write("notes.txt", "twelve bytes");
    let (stdout, _) = example("up", &project);
    for line in [
        "alpine-minimal is up, ran already: false",
        "12 /root/notes.txt\n",
        "12 notes.txt\n",
        "alpine-minimal\n",
        "Some(\"suspended\")",
        "stopped: true",
    ] {
        assert!(stdout.contains(line), "{line}: {stdout}");
    }
    let status = project.run(&["status"]).ok();
    assert!(status.text().contains("stopped"), "{}", status.text());
}
