//! A mount namespace of a test's own, if this user may have one: other processes do not see what is
//! mounted there.

use std::process::{Command, Stdio};

use crate::{Ended, Project, skip};

/// Runs a shell script with these arguments, in which `castra` is the one under test in the
/// project's environment. Returns `None`, reported as a skip, if this user may not mount anything.
pub fn run_script(script: &str, arguments: &[&str], project: &Project) -> Option<Ended> {
    let Some(way) = way() else {
        skip("this user may not make a mount namespace");
        return None;
    };
    let castra = project.castra(&[]);
    let directory =
        std::path::Path::new(castra.get_program()).parent().expect("a directory").to_owned();
    let path = format!("{}:{}", directory.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(way[0]);
    command.args(&way[1..]).args(["sh", "-c", script, "sh"]).args(arguments);
    for (name, value) in castra.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("PATH", path).current_dir(project.path()).stdin(Stdio::null());
    Some(Ended::of(command))
}

/// Returns the command that creates the namespace.
fn way() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&["unshare", "-m"], &["unshare", "-Urm"]];
    ways.into_iter().find(|way| {
        let mut trial = Command::new(way[0]);
        trial.args(&way[1..]).args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"]).stderr(Stdio::null());
        trial.status().is_ok_and(|status| status.success())
    })
}

/// Finds the command that runs another in a pid namespace of its own, if this user may have one.
pub fn pid_way() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [
        &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"],
        &[
            "unshare",
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ],
    ];
    ways.into_iter().find(|way| {
        let trial = Command::new(way[0]).args(&way[1..]).arg("true").stderr(Stdio::null()).status();
        trial.is_ok_and(|status| status.success())
    })
}
