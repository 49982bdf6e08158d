//! The commands of the README and the tutorial, run in a shell, with real VMs.

use std::fs;
use std::process::{Command, Output};

use castra_test_support::{Project, castra_program};

const README: &str = include_str!("../../README.md");
const TUTORIAL: &str = include_str!("../../docs/tutorial.md");

/// Returns the first block of a language that contains this text.
fn block(language: &str, with: &str) -> &'static str {
    let fence = format!("```{language}\n");
    let mut blocks =
        README.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("```").next());
    blocks
        .find(|block| block.contains(with))
        .unwrap_or_else(|| panic!("the block with {with} is gone"))
}

/// Runs lines in a shell in the project's directory; `castra` is the one under test.
#[track_caller]
fn type_in(project: &Project, lines: &str) -> Output {
    let castra = castra_program().parent().expect("a directory").to_owned();
    let path = format!("{}:{}", castra.display(), std::env::var("PATH").unwrap_or_default());
    let prepared = project.castra(&[]);
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", lines]).current_dir(project.path()).stdin(std::process::Stdio::null());
    for (name, value) in prepared.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let output = shell.env("PATH", path).output().expect("a shell runs");
    assert!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn its_first_session_goes_as_written() {
    let project = Project::new();
    let typed: Vec<&str> =
        block("console", "castra up").lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(
        typed.contains(&"castra exec -- uname -sr") && typed.contains(&"castra shell"),
        "{typed:?}"
    );
    // The VM belongs to a directory below the project's, and ends with it.
    let lines = [typed.join("\n").as_str(), "castra down"].join("\n");
    let output = type_in(&project, &lines);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("Linux ") && text.contains("-virt"), "{text}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("ready in"), "{said}");
}

#[test]
fn the_tutorial_goes_as_written() {
    let project = Project::new();
    let blocks = TUTORIAL.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    let typed: Vec<&str> =
        blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(typed.len() > 15, "{typed:?}");
    // What the doctor finds depends on this machine.
    let lines: Vec<&str> = typed.into_iter().filter(|line| *line != "castra doctor").collect();
    let output = type_in(&project, &lines.join("\n"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for expected in ["HELLO\n", "made on Linux\n", "running"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // Printed from the copy, and in the guest that booted again.
    assert_eq!(text.matches("made on Linux\n").count(), 2, "{text}");
}

#[test]
fn its_throw_away_vm_runs_the_task() {
    let project = Project::new();
    fs::create_dir(project.path().join("task")).expect("made");
    project.write(
        "task/run.sh",
        "read line; echo \"got $line\"; ip route | grep -c default || true\n",
    );
    project.write("input", "something\n");
    type_in(&project, block("sh", "castra run"));
    let output = fs::read_to_string(project.path().join("output")).expect("written");
    assert!(output.starts_with("got something\n"), "{output}");
}

/// The demo itself runs in CI: this only holds that the command exists.
#[test]
fn its_demo_is_one_of_the_project_s_own_commands() {
    let words: Vec<&str> = block("sh", "cargo xtask").split_whitespace().collect();
    assert_eq!(words[..2], ["cargo", "xtask"]);
    let xtask = include_str!("../../xtask/src/main.rs");
    assert!(xtask.contains(&format!("\"{}\"", words[2])), "{words:?}");
}
