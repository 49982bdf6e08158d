//! Filesystems that are full, or that nobody may write to: each test has one of its own, where this user may have that.

use std::path::Path;

use crate::fake::Fake;
use crate::support::namespace::run_script;
use crate::support::{Ended, Project};
use crate::transcript::{holds, told};

/// Runs castra where this has mounted something first.
fn run_after(mount: &str, place: &Path, project: &Project, words: &[&str]) -> Option<Ended> {
    let script = format!("PLACE=$1; shift; {mount} || exit 99; exec castra \"$@\"");
    let place = place.to_str().expect("UTF-8");
    run_script(&script, &[&[place], words].concat(), project)
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
    let mount = "mount -t tmpfs -o size=64k,mode=700 tmpfs \"$PLACE\"";
    let Some(ended) = run_after(mount, &state, &fake, &["up", "--cold"]) else { return };
    holds("disk_full", &told(&fake, &["up", "--cold"], &ended.code(73)));
}
