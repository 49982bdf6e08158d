//! Real VMs that are killed, started twice, refused and booted by their own loader.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use castra_test_support::{Project, disks, eventually, tool};
use rustix::process::{Pid, Signal, kill_process};

const IMAGE: &str = "managed_image = { name = \"alpine-pypi\", version = \"v1\" }";

#[test]
fn a_killed_qemu_is_called_crashed_and_comes_up_again() {
    let project = Project::new();
    project.run(&["up"]).ok();
    project.run(&["exec", "--", "sh", "-c", "echo survives > /root/file && sync"]).ok();
    let pid = rustix::process::Pid::from_raw(project.qemu_pid("alpine-minimal")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    eventually("status says crashed", Duration::from_secs(60), || {
        project.run(&["status"]).ok().text().contains("crashed")
    });
    project.run(&["exec", "--", "true"]).code(255).says("crashed");
    project.run(&["up"]).ok().says("had crashed");
    assert_eq!(project.run(&["exec", "--", "cat", "/root/file"]).ok().text(), "survives\n");
}

#[test]
fn a_qemu_that_a_signal_ends_is_called_crashed_with_its_sender() {
    let project = Project::new();
    project.run(&["up"]).ok();
    let pid = rustix::process::Pid::from_raw(project.qemu_pid("alpine-minimal")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    let sender = format!("killed by SIGTERM from process {}", std::process::id());
    eventually("status says crashed", Duration::from_secs(60), || {
        project.run(&["status"]).ok().text().contains("crashed")
    });
    assert!(!project.pidfile("alpine-minimal").exists(), "QEMU removes it at every end of its own");
    project.run(&["status"]).ok().says(&sender);
    assert!(project.run(&["list"]).ok().text().contains("crashed"));
    project.run(&["up"]).ok().says("had crashed").says(&sender);
    assert_eq!(project.run(&["exec", "--", "echo", "here"]).ok().text(), "here\n");
}

/// As after a logout, which removes `/run/user/N`, or a cleaner of temporary files.
#[test]
fn a_vm_whose_sockets_are_gone_is_used_and_shuts_down_in_order() {
    let project = Project::new();
    project.run(&["up"]).ok();
    fs::remove_dir_all(project.runtime_directory().join("castra")).expect("removed");
    project
        .run(&["status"])
        .ok()
        .says("has lost its sockets")
        .says("castra restart alpine-minimal");
    project.run(&["up"]).ok().says("its sockets in");
    project.run(&["suspend"]).code(69).says("cannot suspend").says("castra restart alpine-minimal");
    project.run(&["console"]).code(69).says("is gone");
    // Not synced to disk: only an orderly shutdown keeps it.
    project.run(&["exec", "--", "sh", "-c", "echo survives > /root/file"]).ok();
    project.run(&["down"]).ok();
    project.run(&["up"]).ok();
    assert_eq!(project.run(&["exec", "--", "cat", "/root/file"]).ok().text(), "survives\n");
    let replayed =
        project.run(&["exec", "--", "sh", "-c", "dmesg | grep -i 'recover\\|orphan'"]).text();
    assert_eq!(replayed, "", "the filesystem was not unmounted");
    project.run(&["suspend"]).ok();
}

/// The guest no longer receives signals, so that the command cannot decide what they mean.
#[test]
fn a_first_signal_ends_a_command_whose_guest_is_stuck() {
    let project = Project::new();
    project.run(&["up"]).ok();
    let mut exec = project.castra(&["exec", "--", "sh", "-c", "touch /tmp/began; sleep 600"]);
    let mut exec = exec.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("castra runs");
    eventually("the command runs", Duration::from_secs(60), || {
        project.run(&["exec", "--", "test", "-e", "/tmp/began"]).code == Some(0)
    });
    let qemu = Pid::from_raw(project.qemu_pid("alpine-minimal")).expect("a pid");
    kill_process(qemu, Signal::STOP).expect("stopped");
    kill_process(Pid::from_child(&exec), Signal::TERM).expect("signalled");
    // Before the minute after which a guest counts as lost.
    let mut ended = None;
    eventually("the end", Duration::from_secs(30), || {
        ended = exec.try_wait().expect("is ours");
        ended.is_some()
    });
    assert_eq!(ended.and_then(|status| status.code()), Some(128 + 15));
    project.run(&["down"]).ok().says("SIGCONT");
}

#[test]
fn two_vms_run_side_by_side() {
    let project = Project::new();
    project.write(
        "castra.toml",
        &format!("[[vms]]\nname = \"one\"\n{IMAGE}\n[[vms]]\nname = \"two\"\n{IMAGE}\n"),
    );
    project.run(&["up"]).ok();
    for vm in ["one", "two"] {
        assert_eq!(project.run(&["exec", vm, "--", "hostname"]).ok().text(), format!("{vm}\n"));
    }
    project.run(&["exec", "--", "true"]).code(255).says("several VMs");
    project.run(&["exec", "tow", "--", "true"]).code(255).says("did you mean `two`?");
    let ids =
        |vm| project.run(&["exec", vm, "--", "cat", "/proc/sys/kernel/random/uuid"]).ok().text();
    assert_ne!(ids("one"), ids("two"));
    project.run(&["down", "one"]).ok();
    let table = project.run(&["status"]).ok().text();
    let state = |vm: &str| {
        table.lines().find(|line| line.starts_with(vm)).map(str::to_owned).unwrap_or_default()
    };
    assert!(state("one").contains("stopped") && state("two").contains("running"), "{table}");
}

#[test]
fn a_taken_port_is_named_before_anything_boots() {
    let project = Project::new();
    let holder = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = holder.local_addr().expect("an address").port();
    let vm = format!(
        "[[vms]]\nname = \"web\"\n{IMAGE}\n[[vms.port_forwards]]\nhost = {port}\nguest = 80\n"
    );
    project.write("castra.toml", &vm);
    project
        .run(&["up"])
        .code(75)
        .says(&format!("port {port}/tcp"))
        .says("choose another host port");
    // Nothing was made, so the next start is still that of a new VM.
    let made = fs::read_dir(project.path().join(".castra")).expect("a directory").flatten();
    let disks = made.filter(|entry| entry.path().extension().is_some_and(|end| end == "qcow2"));
    assert_eq!(disks.count(), 0);
}

#[test]
fn a_start_that_was_not_waited_for_is_finished_by_the_next_command() {
    let project = Project::new();
    project.run(&["up", "--no-wait", "--cold"]).ok();
    assert!(project.run(&["status"]).ok().text().contains("starting"));
    assert_eq!(project.run(&["exec", "--", "echo", "here"]).ok().text(), "here\n");
    assert!(project.run(&["status"]).ok().text().contains("running"));
}

#[test]
fn ctrl_c_in_the_middle_of_a_boot_leaves_nothing_running() {
    let project = Project::new();
    let mut up = project
        .castra(&["up", "--cold"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("castra runs");
    eventually("QEMU runs", Duration::from_secs(120), || {
        project.pidfile("alpine-minimal").exists()
    });
    let pid = rustix::process::Pid::from_child(&up);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupted");
    assert_eq!(up.wait().expect("castra ends").code(), Some(130));
    assert!(project.run(&["status"]).ok().text().contains("stopped"));
    assert!(!project.pidfile("alpine-minimal").exists());
    project.run(&["up"]).ok();
}

#[test]
fn an_own_qcow2_boots_by_its_own_loader() {
    let project = Project::new();
    let alpine = disks::alpine();
    let disk = disks::self_booting(&alpine, &project.path());
    let digest = || tool("sha256sum", &[disk.to_str().expect("UTF-8")]).stdout;
    let before = digest();
    let port = free_port();
    let vm = format!(
        "[[vms]]\nname = \"own\"\nbase_image = \"native.qcow2\"\n[[vms.port_forwards]]\n\
        host = {port}\nguest = 8000\n"
    );
    project.write("castra.toml", &vm);
    project.run(&["up"]).ok();
    let console = || project.run(&["logs", "own"]).text();
    eventually("the boot loader's words on the console", Duration::from_secs(120), || {
        let console = console();
        console.contains("SYSLINUX") && console.contains("booted by my own loader:")
    });
    assert!(console().contains("mode=native"));
    let answers = |what: &str| {
        eventually(what, Duration::from_secs(30), || {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
            let mut release = String::new();
            stream.read_to_string(&mut release).is_ok() && release.contains("-virt")
        });
    };
    answers("an answer through the forwarded port");
    // There is no agent to ask, and the machine still resumes, without another boot.
    project.run(&["suspend", "own"]).ok().says("suspended");
    project.run(&["up", "own"]).ok().says("resuming");
    answers("an answer of the VM that keeps running");
    assert!(!console().contains("SYSLINUX"), "it has booted again: {}", console());
    project.run(&["exec", "own", "--", "true"]).code(255).says("boots natively");
    // It ignores the power button, so its power is cut, which is a failure unless that was
    // requested.
    project
        .run(&["down", "--timeout", "1"])
        .code(69)
        .says("did not shut down within 1 s")
        .says("like a power cut");
    assert!(project.run(&["status"]).ok().text().contains("stopped"));
    project.run(&["up"]).ok();
    project.run(&["down", "--force"]).ok();
    assert_eq!(digest(), before, "the user's own file was written to");
    assert!(fs::metadata(project.path().join(".castra/own-overlay.qcow2")).is_ok());
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.local_addr().expect("an address").port()
}
