//! Mounts in trouble: directories that have gone or changed hands, and processes that serve mounts
//! and are killed, stopped or left behind.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::thread;
use std::time::{Duration, Instant};

use castra_test_support::{Ended, Project, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const VM: &str = "alpine-minimal";

/// Longest time for which anything in a mount may hang.
const LONGEST_HANG: Duration = Duration::from_secs(5);

/// A user of this machine's other than the one that runs the tests.
const ANOTHER: u32 = 65534;

fn sh(project: &Project, script: &str) -> Ended {
    project.run(&["exec", "-n", VM, "--", "sh", "-c", script])
}

/// Returns a project with a VM that runs and sees these directories.
fn running(directories: &[&str]) -> Project {
    let project = Project::new();
    project.write(
        "castra.toml",
        &format!(
            "[[vms]]\nname = \"{VM}\"\n\
             managed_image = {{ name = \"alpine-pypi\", version = \"v1\" }}\n"
        ),
    );
    let mut words = vec!["up".to_owned()];
    for directory in directories {
        fs::create_dir(project.path().join(directory)).expect("a directory");
        fs::write(project.path().join(directory).join("file"), *directory).expect("written");
        words.extend(["--mount".to_owned(), format!("{directory}:/{directory}")]);
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    project.run(&words).ok();
    project
}

/// Returns the process that serves the VM's mounts.
#[track_caller]
fn companion(project: &Project) -> Pid {
    let status = project.run(&["status", "--json", VM]).ok();
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let pid = status["vms"][0]["companion_pid"].as_i64().expect("a process");
    Pid::from_raw(i32::try_from(pid).expect("a number")).expect("a process")
}

fn is_alive(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    status.is_ok_and(|status| !status.contains(") Z "))
}

#[test]
fn a_vm_resumes_without_directories_and_mounts_them_again_once_they_are_back() {
    let names = ["gone", "linked", "given"];
    let project = running(&names);
    let path = |name: &str| project.path().join(name);
    let is_root = rustix::process::geteuid().is_root();
    project.run(&["suspend"]).ok();
    for name in ["gone", "linked"] {
        fs::rename(path(name), path(&format!("{name}-kept"))).expect("moved");
    }
    symlink(path("linked-kept"), path("linked")).expect("linked");
    if is_root {
        chown(path("given"), Some(ANOTHER), None).expect("given away");
    }

    let up = project.run(&["up"]).ok();
    let mut reasons =
        vec![("gone", "it is gone"), ("linked", "a link has replaced it or a directory above it")];
    if is_root {
        reasons.push(("given", "it belongs to another user"));
    }
    let status = project.run(&["status"]).ok();
    let doctor = project.run(&["doctor"]);
    for (name, reason) in &reasons {
        let words = format!("has not mounted /{name}: {}: {reason}", path(name).display());
        assert_eq!(up.stderr.matches(&words).count(), 1, "{}", up.stderr);
        assert_eq!(status.stderr.matches(&words).count(), 1, "{}", status.stderr);
        assert!(doctor.text().contains(&words), "{}", doctor.text());
    }
    assert!(status.stderr.contains("`castra up alpine-minimal` mounts it"), "{}", status.stderr);
    assert_eq!(up.stderr.matches("has not mounted").count(), reasons.len(), "{}", up.stderr);

    fs::remove_file(path("linked")).expect("removed");
    for name in ["gone", "linked"] {
        fs::rename(path(&format!("{name}-kept")), path(name)).expect("moved back");
    }
    if is_root {
        chown(path("given"), Some(0), None).expect("taken back");
    }
    let up = project.run(&["up"]).ok();
    assert!(!up.stderr.contains("mounted"), "{}", up.stderr);
    let all = sh(&project, "cat /gone/file /linked/file /given/file").ok();
    assert_eq!(all.text(), "gonelinkedgiven");
    assert!(!project.run(&["status"]).ok().stderr.contains("mount"));
    project.run(&["down", "--force"]).ok();
}

#[test]
fn a_process_that_is_stopped_is_replaced_and_never_left_behind() {
    let project = running(&["src"]);
    let stopped = companion(&project);
    kill_process(stopped, Signal::STOP).expect("stopped");
    let words = format!("process {}, which serves them, does not answer", stopped.as_raw_nonzero());
    project.run(&["status"]).ok().says(&words);
    assert!(project.run(&["doctor"]).text().contains(&words));
    project.run(&["up"]).ok();
    eventually("its end", LONGEST_HANG, || !is_alive(stopped));
    assert_eq!(sh(&project, "cat /src/file").ok().text(), "src");

    // One that was killed.
    kill_process(companion(&project), Signal::KILL).expect("killed");
    project.run(&["status"]).ok().says("the process that serves them has ended");
    project.run(&["up"]).ok();
    assert_eq!(sh(&project, "cat /src/file").ok().text(), "src");

    // A QEMU whose end it does not notice.
    let left = companion(&project);
    kill_process(left, Signal::STOP).expect("stopped");
    let qemu = Pid::from_raw(project.qemu_pid(VM)).expect("a process");
    kill_process(qemu, Signal::KILL).expect("killed");
    eventually("QEMU's end", LONGEST_HANG, || !is_alive(qemu));
    let words = format!("{}, the companion of VM `{VM}`", left.as_raw_nonzero());
    project.run(&["list"]).ok().says(&words);
    assert!(project.run(&["doctor"]).text().contains(&words));
    let cleaned = project.run(&["clean", "--orphans", VM]).ok();
    assert!(cleaned.text().contains("companion"), "{}", cleaned.text());
    eventually("its end", LONGEST_HANG, || !is_alive(left));
    assert!(!project.run(&["list"]).ok().stderr.contains("the companion of"));

    // The end of the VM ends it, too.
    project.run(&["up", "--mount", "src:/src"]).ok();
    let left = companion(&project);
    kill_process(left, Signal::STOP).expect("stopped");
    project.run(&["down", "--force"]).ok();
    eventually("its end", LONGEST_HANG, || !is_alive(left));
}

#[test]
fn nothing_is_lost_if_the_process_is_killed_during_a_suspend() {
    let project = running(&["src"]);
    let writer = "(cd /; i=0; while true; do i=$((i+1)); echo $i > /src/new && sync /src/new && \
        mv /src/new /src/count && echo $i > /tmp/kept; sleep 0.02; done) </dev/null >/dev/null \
        2>&1 &";
    sh(&project, writer).ok();
    let number = |text: &str| text.trim().parse::<u64>().unwrap_or(0);
    let is_kept = || sh(&project, "test -s /tmp/kept").code == Some(0);
    eventually("it writes", 2 * LONGEST_HANG, is_kept);
    for delay_ms in [0, 60, 200, 500, 1000] {
        let served = companion(&project);
        thread::scope(|scope| {
            let suspend = scope.spawn(|| project.run(&["suspend"]));
            thread::sleep(Duration::from_millis(delay_ms));
            // It may have ended with QEMU.
            let _ = kill_process(served, Signal::KILL);
            suspend.join().expect("no panic").ok();
        });
        let up = project.run(&["up"]).ok();
        assert!(!up.stderr.contains("mount"), "{}", up.stderr);
        let begun = Instant::now();
        let kept = number(&sh(&project, "cat /tmp/kept; cat /src/file > /dev/null").ok().text());
        assert!(begun.elapsed() < 2 * LONGEST_HANG, "{:?}", begun.elapsed());
        let count = || number(&fs::read_to_string(project.path().join("src/count")).expect("read"));
        assert!(count() >= kept, "{} of {kept} after {delay_ms} ms", count());
        eventually("it continues", 2 * LONGEST_HANG, || count() > kept + 1);
    }
    project.run(&["down", "--force"]).ok();
}
