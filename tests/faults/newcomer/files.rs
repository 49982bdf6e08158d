//! Filesystems that are full or read-only: each test has its own, if this user may mount one.

use std::path::{Path, PathBuf};

use castra_test_support::Fake;
use castra_test_support::namespace::run_script;
use castra_test_support::{Ended, Project};

use crate::newcomer::below::run_below;
use crate::newcomer::transcript::{holds, transcript_of};

/// Runs castra after a mount.
fn run_after(mount: &str, place: &Path, project: &Project, words: &[&str]) -> Option<Ended> {
    let script = format!("PLACE=$1; shift; {mount} || exit 99; exec castra \"$@\"");
    let place = place.to_str().expect("UTF-8");
    run_script(&script, &[&[place], words].concat(), project)
}

const READ_ONLY: &str =
    "mount --bind \"$PLACE\" \"$PLACE\" && mount -o remount,bind,ro \"$PLACE\" && cd .";

#[test]
fn a_project_that_cannot_be_written_to() {
    let fake = Fake::new(&["vm"]);
    let mount = format!("{READ_ONLY} && cd \"$PLACE\"");
    let Some(ended) = run_after(&mount, &fake.path(), &fake, &["up", "--cold"]) else { return };
    holds("project_read_only", &transcript_of(&fake, &["up", "--cold"], &ended.code(77)));
    let words = ["init"];
    std::fs::remove_file(fake.path().join("castra.toml")).expect("removed");
    let Some(ended) = run_after(&mount, &fake.path(), &fake, &words) else { return };
    holds("init_read_only", &transcript_of(&fake, &words, &ended.code(77)));
}

/// An unwritable home is not an error: the project then has a cache of its own.
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
    holds("disk_full", &transcript_of(&fake, &["up", "--cold"], &ended.code(73)));
}

#[test]
fn a_disk_without_room_for_the_first_small_file() {
    let fake = Fake::new(&["vm"]);
    let state = fake.path().join(".castra");
    std::fs::create_dir(&state).expect("a directory");
    let words = ["up", "--cold"];
    // Each with room for one file more.
    for (inodes, name) in [(1, "disk_full_for_a_lock"), (2, "disk_full_for_a_mark")] {
        let mount = format!("mount -t tmpfs -o nr_inodes={inodes},mode=700 tmpfs \"$PLACE\"");
        let Some(ended) = run_after(&mount, &state, &fake, &words) else { return };
        let transcript = transcript_of(&fake, &words, &ended);
        assert!(!transcript.contains(".castra-"), "{transcript}");
        holds(name, &transcript);
    }
}

/// The files of `castra run` are in the cache, so there is no other place for them.
#[test]
fn a_run_does_not_leave_a_full_cache_for_the_same_one() {
    let fake = Fake::new(&["vm"]);
    let cache = fake.cache().parent().expect("a parent").to_owned();
    std::fs::create_dir_all(&cache).expect("a directory");
    let mount = "mount -t tmpfs -o size=128k,mode=700 tmpfs \"$PLACE\"";
    let words = ["run", "--image", "tiny", "--", "true"];
    let Some(ended) = run_after(mount, &cache, &fake, &words) else { return };
    let stderr = ended.code(255).says("not enough space").says("Free some space").stderr;
    assert!(!stderr.contains("instead"), "{stderr}");
    let Some(ended) = run_after(mount, &cache, &fake, &["up", "--cold"]) else { return };
    ended.ok().says(&format!("using {} instead", fake.path().join(".castra/cache").display()));
}

/// Runs castra under a shell's limit on the size of files, in units of 512 bytes.
fn run_limited(project: &Project, blocks: u64, words: &[&str]) -> Ended {
    run_below(project, &format!("ulimit -f {blocks}; exec \"$0\" \"$@\""), words)
}

#[test]
fn an_init_without_room_leaves_no_empty_configuration() {
    let project = Project::isolated();
    let ended = run_limited(&project, 1, &["init"]);
    assert_ne!(ended.code, Some(0), "{}", ended.stderr);
    assert!(!project.path().join("castra.toml").exists());
    run_limited(&project, 1000, &["init"]).ok();
}

/// Returns every unfinished file below a directory.
fn unfinished(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().expect("a type").is_dir() {
            found.extend(unfinished(&path));
        } else if [".castra-", ".new"].iter().any(|sign| name.contains(sign)) {
            found.push(path);
        }
    }
    found
}

#[test]
fn files_that_may_not_become_as_long_as_needed() {
    let fake = Fake::new(&["vm"]);
    let mut codes = std::collections::BTreeSet::new();
    for blocks in [0, 1, 3, 8, 64, 300, 500, 2_000] {
        let ended = run_limited(&fake, blocks, &["up", "--cold"]);
        codes.insert(ended.code);
        if ended.code != Some(0) {
            assert!(
                ended.code.is_some(),
                "a signal has ended castra with {blocks} blocks: {}",
                ended.stderr
            );
            let ended = ended.says("error: ").says("ulimit -f unlimited");
            assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
            assert!(
                !ended.stderr.contains("disk.qcow2 would be"),
                "it is not written to: {}",
                ended.stderr
            );
        }
        let left = [unfinished(&fake.path()), unfinished(&fake.cache())].concat();
        assert!(left.is_empty(), "left with {blocks} blocks: {left:?}");
    }
    assert!(codes.contains(&Some(73)) || codes.contains(&Some(74)), "{codes:?}");
    fake.run(&["up", "--cold"]).ok();
    assert_eq!(fake.state("vm"), "running");
}

/// Castra handles the limit's signal, and its children must not inherit the handler.
#[test]
fn qemu_has_the_default_for_the_signal_of_a_file_size_limit() {
    const BIT: u64 = 1 << (25 - 1);
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", fake.qemu_pid("vm"))).expect("reads");
    for set in ["SigIgn:", "SigCgt:"] {
        let line =
            status.lines().find_map(|line| line.strip_prefix(set)).expect("a set of signals");
        let signals = u64::from_str_radix(line.trim(), 16).expect("hexadecimal");
        assert_eq!(signals & BIT, 0, "{status}");
    }
}
