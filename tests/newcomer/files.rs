//! Filesystems that are full, or that nobody may write to: each test has one of its own, where this user may have that.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::fake::Fake;
use crate::support::{Ended, Project};
use crate::transcript::{holds, told};

/// What makes a mount namespace of its own, if this user may have one.
fn namespace() -> Option<&'static [&'static str]> {
    let ways: [&[&str]; 2] = [&["unshare", "-m"], &["unshare", "-Urm"]];
    ways.into_iter().find(|way| {
        let trial = Command::new(way[0])
            .args(&way[1..])
            .args(["mount", "-t", "tmpfs", "tmpfs", "/mnt"])
            .stderr(Stdio::null())
            .status();
        trial.is_ok_and(|status| status.success())
    })
}

/// Runs castra where this script has mounted something first.
fn run_after(mount: &str, place: &Path, project: &Project, words: &[&str]) -> Option<Ended> {
    let castra = project.castra(words);
    let (way, script) = (namespace()?, format!("{mount} || exit 99; exec \"$@\""));
    let mut command = Command::new(way[0]);
    command
        .args(&way[1..])
        .args(["sh", "-c", &script, "sh"])
        .arg(castra.get_program())
        .args(castra.get_args());
    command.env_clear().envs(std::env::vars_os());
    for (name, value) in castra.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("PLACE", place).current_dir(project.path()).stdin(Stdio::null()).arg0("unshare");
    Some(Ended::new(words, command.output().expect("runs")))
}

const READ_ONLY: &str = "mount --bind \"$PLACE\" \"$PLACE\" && mount -o remount,bind,ro \"$PLACE\" && cd .";

#[test]
fn a_project_that_cannot_be_written_to() {
    let fake = Fake::new(&["vm"]);
    let mount = format!("{READ_ONLY} && cd \"$PLACE\"");
    let Some(ended) = run_after(&mount, &fake.path(), &fake, &["up", "--cold"]) else { return };
    holds("project_read_only", &told(&fake, &["up", "--cold"], &ended.code(77)));
    let words = ["init"];
    std::fs::remove_file(fake.path().join("castra.toml")).expect("removed");
    let Some(ended) = run_after(&mount, &fake.path(), &fake, &words) else { return };
    holds("init_read_only", &told(&fake, &words, &ended.code(77)));
}

/// That is no error: the project has a cache of its own then.
#[test]
fn a_home_that_cannot_be_written_to() {
    let fake = Fake::new(&["vm"]);
    let cache = fake.cache().parent().expect("a parent").to_owned();
    std::fs::create_dir_all(&cache).expect("a directory");
    let Some(ended) = run_after(READ_ONLY, &cache, &fake, &["up", "--cold"]) else { return };
    ended.ok();
    assert_eq!(fake.state("vm"), "running");
}

#[test]
fn a_disk_that_is_full() {
    let fake = Fake::new(&["vm"]);
    let state = fake.path().join(".castra");
    std::fs::create_dir(&state).expect("a directory");
    let mount = "mount -t tmpfs -o size=64k tmpfs \"$PLACE\"";
    let Some(ended) = run_after(mount, &state, &fake, &["up", "--cold"]) else { return };
    holds("disk_full", &told(&fake, &["up", "--cold"], &ended.code(73)));
}
