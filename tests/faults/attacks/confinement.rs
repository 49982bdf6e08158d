//! Powers of the helpers, and the end of all that a helper started.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use castra_test_support::capabilities::{assert_powerless, with_inheritable_capabilities};
use castra_test_support::{Project, eventually};
use rustix::process::{Pid, Signal};

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
}

/// Returns a `PATH` with this directory in front.
fn path_with(directory: &Path) -> String {
    format!("{}:{}", directory.display(), std::env::var("PATH").expect("a PATH"))
}

#[test]
fn a_helper_keeps_no_inherited_capability() {
    let mut project = Project::isolated();
    let qemu = project.path().join("qemu");
    let status = project.path().join("status");
    script(
        &qemu,
        &format!("cat /proc/self/status >{}\necho QEMU emulator version 7.2.0", status.display()),
    );
    project.set("CASTRA_QEMU", &qemu);
    with_inheritable_capabilities(&project, &["doctor"]).output().expect("setpriv runs");
    assert_powerless(&fs::read_to_string(&status).expect("the helper ran"));
}

/// Starts `castra doctor` with a QEMU that leaves two processes with its pipes behind and never
/// ends, and waits for it.
fn doctor_with_a_stuck_helper(project: &mut Project) -> (std::process::Child, i32) {
    let qemu = project.path().join("qemu");
    let pids = project.path().join("pid");
    // The one outside the group ends by itself.
    let text = format!(
        "setsid sleep 120 &\nsleep 119 &\necho $! >{}.new\nmv {0}.new {0}\nwait",
        pids.display()
    );
    script(&qemu, &text);
    project.set("CASTRA_QEMU", &qemu);
    project.set("PATH", path_with(&project.path()));
    let mut command = project.castra(&["doctor"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let child = command.spawn().expect("castra runs");
    eventually("the helper runs", Duration::from_secs(120), || pids.exists());
    let pid = fs::read_to_string(&pids).expect("reads").trim().parse().expect("a number");
    (child, pid)
}

fn is_running(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat"));
    status.is_ok_and(|status| !status.contains(") Z "))
}

#[test]
fn an_interrupted_helper_takes_its_children_along() {
    let mut project = Project::isolated();
    let (mut castra, grandchild) = doctor_with_a_stuck_helper(&mut project);
    let started = Instant::now();
    let pid = Pid::from_child(&castra);
    rustix::process::kill_process(pid, Signal::INT).expect("sent");
    let mut is_over = false;
    while !is_over && started.elapsed() < Duration::from_secs(60) {
        is_over = castra.try_wait().expect("waited").is_some();
        std::thread::sleep(Duration::from_millis(50));
    }
    // Ends what a hanging castra would leave behind before the test ends.
    if !is_over {
        castra.kill().expect("killed");
        castra.wait().expect("ends");
    }
    // The pipes are held open for two minutes.
    assert!(is_over, "castra still runs");
    eventually("the grandchild ends", Duration::from_secs(30), || !is_running(grandchild));
}
