//! Castra as the program of a shell script, with the limits that the script sets.

use std::process::Command;

use castra_test_support::{Ended, Project};

/// Runs castra below a script, which executes it by `"$0" "$@"`.
pub(super) fn run_below(project: &Project, script: &str, words: &[&str]) -> Ended {
    let castra = project.castra(words);
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(castra.get_program());
    shell.args(castra.get_args()).current_dir(project.path());
    for (name, value) in castra.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    Ended::new(words, shell.output().expect("castra runs"))
}
