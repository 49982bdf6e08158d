//! Limits of the process that are too low (`ulimit`), and surroundings that are gone.

use std::fs::{self, File};
use std::time::Duration;

use castra_test_support::{Fake, Project, eventually};

use super::below::run_below;

#[test]
fn too_few_open_files_are_an_error_that_names_the_limit() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    for (words, code) in
        [(&["status"][..], 78), (&["down"], 78), (&["exec", "--", "true"], 255), (&["up"], 78)]
    {
        for limit in [4, 10, 255] {
            let ended = run_below(&fake, &format!("ulimit -n {limit}; exec \"$0\" \"$@\""), words);
            let ended = ended.code(code).says(&format!("the limit on open files is {limit}"));
            let stderr = ended.says("`ulimit -n 256`").stderr;
            assert!(!stderr.contains("panicked"), "{stderr}");
        }
    }
    assert_eq!(fake.state("vm"), "running");
    // A limit that may be raised is.
    run_below(&fake, "ulimit -Sn 10; exec \"$0\" \"$@\"", &["status"]).ok();
    run_below(&fake, "ulimit -n 256; exec \"$0\" \"$@\"", &["restart", "vm"]).ok();
}

#[test]
fn a_working_directory_that_was_removed_is_named() {
    let project = Project::isolated();
    let script = "mkdir gone; cd gone; rmdir ../gone; exec \"$0\" \"$@\"";
    run_below(&project, script, &["status"])
        .code(74)
        .says("cannot find the working directory")
        .says("It was removed");
}

#[test]
fn threads_that_cannot_be_started_are_no_defect() {
    let fake = Fake::new(&["vm"]);
    if !rustix::process::geteuid().is_root() {
        castra_test_support::skip("only root can become a user without other processes");
        return;
    }
    // Root has no such limit, and any other user may have processes already.
    let script = "exec setpriv --reuid 61234 --clear-groups prlimit --nproc=0 \
        env HOME=/nonexistent XDG_CACHE_HOME=/nonexistent \"$0\" \"$@\"";
    let stderr = run_below(&fake, script, &["--offline", "doctor"])
        .code(78)
        .says("cannot start another thread")
        .says("ulimit -a")
        .stderr;
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_clone_of_a_running_vm_is_waited_for() {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    let parked = tempfile::tempdir().expect("a directory");
    let file = parked.path().join("here");
    let mut clone = fake.castra(&["clone", "vm", "copy"]);
    clone.env("CASTRA_PARK_AT", "clone-begun").env("CASTRA_PARK_FILE", &file);
    let mut clone = clone.spawn().expect("runs");
    let limit = Duration::from_secs(60);
    eventually("the clone is made", limit, || fs::metadata(&file).is_ok_and(|file| file.len() > 0));
    let messages = parked.path().join("messages");
    let mut exec = fake.castra(&["exec", "vm", "--", "true"]);
    exec.stderr(File::create(&messages).expect("made"));
    let mut exec = exec.spawn().expect("runs");
    let said = || fs::read_to_string(&messages).expect("read");
    eventually("the wait is announced", limit, || {
        said().contains("another castra cloning VM `vm`")
    });
    assert!(exec.try_wait().expect("is ours").is_none());
    clone.kill().expect("is ours");
    clone.wait().expect("ends");
    assert_eq!(exec.wait().expect("ends").code(), Some(255));
    assert!(said().contains("VM `vm` is not running (it is suspended)"), "{}", said());
}
