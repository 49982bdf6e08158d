//! Directories of the host in real VMs: seen on both sides, through suspends, clones and the end of
//! the process that serves them.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use castra_test_support::{Ended, Project, eventually, tool};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub(crate) const VM: &str = "alpine-minimal";

/// Longest time for which anything in a mount may hang.
const LONGEST_HANG: Duration = Duration::from_secs(5);

pub(crate) fn sh(project: &Project, script: &str) -> Ended {
    project.run(&["exec", "-n", VM, "--", "sh", "-c", script])
}

/// Insists that a start reports no trouble with mounts.
#[track_caller]
fn quiet(up: Ended) {
    let up = up.ok();
    assert!(!up.stderr.contains("mount"), "{}", up.stderr);
}

/// Returns the process that serves the VM's mounts.
pub(crate) fn companion(project: &Project) -> Option<Pid> {
    let status = project.run(&["status", "--json", VM]).ok();
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let pid = status["vms"][0]["companion_pid"].as_i64()?;
    Pid::from_raw(i32::try_from(pid).expect("a number"))
}

fn is_alive(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    status.is_ok_and(|status| !status.contains(") Z "))
}

/// Returns a project whose VM sees `shared` as `/src` and `fixed`, with 2,000 files, as `/fixed`.
pub(crate) fn project() -> Project {
    let project = Project::new();
    for directory in ["shared", "fixed"] {
        fs::create_dir(project.path().join(directory)).expect("a directory");
    }
    for number in 0..2000 {
        let name = project.path().join(format!("fixed/file-{number}"));
        fs::write(name, number.to_string()).expect("written");
    }
    project.write(
        "castra.toml",
        &format!(
            "[[vms]]\nname = \"{VM}\"\n\
             managed_image = {{ name = \"alpine-pypi\", version = \"v1\" }}\n\
             mounts = [\n  {{ host = \"shared\", guest = \"/src\" }},\n  \
             {{ host = \"fixed\", guest = \"/fixed\", read_only = true }},\n]\n"
        ),
    );
    project
}

#[test]
fn a_vm_and_its_host_see_the_same_files() {
    let project = project();
    let shared = project.path().join("shared");
    project.run(&["up"]).code(77).says("--allow-mounts");
    quiet(project.run(&["up", "--allow-mounts"]));

    // Both ways, and a large file.
    fs::write(shared.join("from-host"), "of the host\n").expect("written");
    assert_eq!(sh(&project, "cat /src/from-host").ok().text(), "of the host\n");
    sh(
        &project,
        "echo of the guest > /src/from-guest && mkdir -p /src/a/b && mv /src/from-guest /src/a/b/",
    )
    .ok();
    assert_eq!(fs::read_to_string(shared.join("a/b/from-guest")).expect("read"), "of the guest\n");
    sh(&project, "dd if=/dev/urandom of=/src/large bs=1M count=8 2>/dev/null && sync").ok();
    let large = shared.join("large");
    let here = tool("sha256sum", &[large.to_str().expect("UTF-8")]).stdout;
    let here = String::from_utf8(here).expect("UTF-8");
    let there = sh(&project, "sha256sum /src/large").ok().text();
    assert_eq!(here.split(' ').next(), there.split(' ').next());
    assert_eq!(fs::metadata(large).expect("there").len(), 8 << 20);
    // A change of contents is seen within a second.
    fs::write(shared.join("from-host"), "changed\n").expect("written");
    eventually("the change", Duration::from_secs(20), || {
        sh(&project, "cat /src/from-host").ok().text() == "changed\n"
    });

    // All of many files, and nothing is written where only reading is allowed.
    assert_eq!(sh(&project, "ls /fixed | wc -l").ok().text().trim(), "2000");
    assert_eq!(sh(&project, "cat /fixed/* | wc -c").ok().text().trim(), "6890");
    assert_ne!(sh(&project, "echo x > /fixed/file-1").code, Some(0));
    assert_ne!(sh(&project, "rm /fixed/file-2").code, Some(0));
    assert_ne!(sh(&project, "mount -o remount,rw /fixed; echo x > /fixed/file-3").code, Some(0));
    assert_eq!(fs::read_to_string(project.path().join("fixed/file-3")).expect("read"), "3");

    // The state of castra is not visible.
    fs::create_dir(shared.join(".castra")).expect("a directory");
    assert_eq!(sh(&project, "ls -a /src | grep -c castra").text().trim(), "0");
    let status = project.run(&["status", "-v"]).ok().text();
    assert!(status.contains("→ /src\n") && status.contains("→ /fixed (read-only)\n"), "{status}");
    let ended = companion(&project).expect("a process");
    project.run(&["down", "--force"]).ok();
    eventually("the companion's end", LONGEST_HANG, || !is_alive(ended));
}

#[test]
fn mounts_outlive_suspends_clones_and_their_process() {
    let project = project();
    let shared = project.path().join("shared");
    project.run(&["up", "--allow-mounts"]).ok();

    // A process of the guest that works there all the time, with an open file and its working
    // directory there, sees no error in a suspend.
    let worker = "(mkdir /src/d && cd /src/d && exec 3>/src/open; i=0; \
        while echo $i >&3 && echo $i > ../count && ls >&2; do i=$((i+1)); sleep 0.05; done; \
        echo failed > /tmp/failed) </dev/null >/dev/null 2>&1 &";
    sh(&project, worker).ok();
    for _ in 0..2 {
        let before = companion(&project).expect("a process");
        project.run(&["suspend"]).ok();
        eventually("the companion's end", LONGEST_HANG, || !is_alive(before));
        let count = fs::read_to_string(shared.join("count")).expect("read");
        quiet(project.run(&["up"]));
        eventually("it works on", Duration::from_secs(20), || {
            fs::read_to_string(shared.join("count")).is_ok_and(|now| now != count)
        });
        assert_eq!(sh(&project, "cat /fixed/file-7; ls /tmp/failed 2>/dev/null").text(), "7");
        let lines = fs::read_to_string(shared.join("open")).expect("read");
        assert!(lines.lines().enumerate().all(|(number, line)| line == number.to_string()));
    }

    // A clone has the same directories.
    project.run(&["clone", VM, "twin"]).ok();
    quiet(project.run(&["up", "twin"]));
    let twin = ["exec", "-n", "twin", "--", "sh", "-c", "cat /fixed/file-9; echo twin > /src/twin"];
    assert_eq!(project.run(&twin).ok().text(), "9");
    assert_eq!(fs::read_to_string(shared.join("twin")).expect("read"), "twin\n");
    project.run(&["down", "--force", "twin"]).ok();

    // What is killed is started again; nothing hangs.
    let killed = companion(&project).expect("a process");
    kill_process(killed, Signal::KILL).expect("killed");
    let started = Instant::now();
    assert_eq!(sh(&project, "cat /fixed/file-11").ok().text(), "11");
    assert!(started.elapsed() < 2 * LONGEST_HANG, "{:?}", started.elapsed());
    assert!(companion(&project).is_some_and(|pid| pid != killed));
    // Without a command of castra's, requests fail.
    let late = "sleep 3; s=$(cut -d. -f1 /proc/uptime); cat /fixed/file-12; \
        echo $? $(($(cut -d. -f1 /proc/uptime) - s)) > /tmp/late";
    sh(&project, &format!("({late}) </dev/null >/dev/null 2>&1 &")).ok();
    kill_process(companion(&project).expect("a process"), Signal::KILL).expect("killed");
    std::thread::sleep(Duration::from_secs(12));
    let late = sh(&project, "cat /tmp/late").ok().text();
    let (code, secs) = late.trim().split_once(' ').expect("two numbers");
    assert!(code != "0" && secs.parse::<u64>().expect("seconds") <= 6, "{late}");
}

#[test]
fn a_running_vm_gets_and_loses_mounts() {
    let project = project();
    let image = "managed_image = { name = \"alpine-pypi\", version = \"v1\" }";
    project.write("castra.toml", &format!("[[vms]]\nname = \"{VM}\"\n{image}\n"));
    project.run(&["up", "--mount", "fixed:/fixed:ro"]).ok();
    assert_eq!(sh(&project, "cat /fixed/file-1").ok().text(), "1");
    project.run(&["mount", VM, "shared:/deep/inside"]).ok();
    sh(&project, "echo x > /deep/inside/y").ok();
    assert!(project.path().join("shared/y").exists());
    project.run(&["mount", VM, "shared:/deep"]).code(64).says("/deep/inside");
    project.run(&["mount", VM, "nowhere:/x"]).code(74).says("nowhere");
    sh(&project, "(cd /deep/inside; exec sleep 1000) </dev/null >/dev/null 2>&1 &").ok();
    project.run(&["umount", VM, "/deep/inside"]).code(69).says("working directory");
    sh(&project, "pkill sleep; sleep 1").ok();
    project.run(&["umount", VM, "/deep/inside"]).ok();
    assert_eq!(sh(&project, "ls /deep/inside").ok().text(), "");
    project.run(&["umount", VM, "/deep/inside"]).code(64).says("has no mount");
    assert_eq!(sh(&project, "cat /fixed/file-1").ok().text(), "1");
    // A directory that is gone when the VM resumes is one warning.
    project.run(&["suspend"]).ok();
    let fixed = project.path().join("fixed");
    fs::rename(&fixed, project.path().join("moved")).expect("moved");
    project.run(&["up"]).ok().says("/fixed");
    project.run(&["down", "--force"]).ok();
}

#[test]
fn a_guest_does_to_its_mounts_what_it_likes() {
    let project = project();
    project.run(&["up", "--allow-mounts"]).ok();
    let background = |script: &str| {
        sh(&project, &format!("({script}) </dev/null >/dev/null 2>&1 & sleep 1")).ok();
    };
    let quick = |words: &[&str]| {
        let started = Instant::now();
        let ended = project.run(words);
        assert!(started.elapsed() < 3 * LONGEST_HANG, "{:?}", started.elapsed());
        ended
    };
    let again = || {
        quick(&["mount", VM, "shared:/src"]).ok();
        sh(&project, "echo x > /src/seen && rm /src/seen").ok();
        assert_eq!(sh(&project, "grep -c ' /src ' /proc/mounts").ok().text().trim(), "1");
    };

    // Something is mounted over it.
    sh(&project, "mkdir /over && mount --bind /over /src").ok();
    quick(&["umount", VM, "/src"]).code(69).says("mounted something over it");
    sh(&project, "umount /src").ok();
    again();
    // A process has it in a namespace of its own.
    background("unshare -m sleep 500");
    quick(&["umount", VM, "/src"]).ok();
    again();
    // It is unmounted while a program has a file open.
    background("echo x > /src/open; exec 5</src/open; exec sleep 500");
    sh(&project, "umount -l /src").ok();
    again();

    // After a reboot, commands see the mounts from the first one.
    project.run(&["exec", "-n", VM, "--", "reboot", "-f"]);
    eventually("a command after the reboot", Duration::from_secs(120), || {
        let counted = sh(&project, "ls /fixed | wc -l");
        let is_up = counted.code == Some(0);
        assert!(!is_up || counted.text().trim() == "2000", "{}", counted.text());
        is_up
    });
    project.run(&["down", "--force"]).ok();
}

#[test]
fn a_throwaway_vm_has_mounts() {
    let project = project();
    let run = |words: &[&str]| {
        let mut arguments =
            vec!["run", "-n", "--mount", "shared:/src", "--mount", "fixed:/f:ro", "--"];
        arguments.extend(words);
        project.run(&arguments)
    };
    assert_eq!(run(&["sh", "-c", "cat /f/file-5; echo made > /src/made"]).ok().text(), "5");
    let made: PathBuf = project.path().join("shared/made");
    assert_eq!(fs::read_to_string(made).expect("read"), "made\n");
    let missing = project.run(&["run", "-n", "--mount", "nowhere:/src", "--", "true"]);
    missing.code(255).says("nowhere");
}
