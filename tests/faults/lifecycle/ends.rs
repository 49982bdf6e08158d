//! QEMUs and guests that end, or do not.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use castra_test_support::Fake;
use castra_test_support::{eventually, namespace};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Returns a project with a running VM.
fn running() -> Fake {
    let fake = Fake::new(&["vm"]);
    fake.run(&["up", "--cold"]).ok();
    assert_eq!(fake.state("vm"), "running");
    fake
}

#[test]
fn a_life_without_anything_odd() {
    let fake = Fake::new(&["vm"]);
    assert_eq!(fake.state("vm"), "not-created");
    fake.run(&["up"]).ok().says("restoring from its warm template");
    assert_eq!(fake.state("vm"), "running");
    fake.run(&["suspend"]).ok();
    assert_eq!(fake.state("vm"), "suspended");
    assert!(!fake.lives("vm"));
    fake.run(&["up"]).ok();
    assert_eq!(fake.state("vm"), "running");
    fake.run(&["down"]).ok();
    assert_eq!(fake.state("vm"), "stopped");
    assert_eq!(fake.leftovers(), Vec::<std::path::PathBuf>::new());
    let journal = fake.journal("vm");
    assert!(!journal.contains("mismatched") && !journal.contains("doubled"), "{journal}");
    assert_eq!(journal.matches("started").count(), 2, "{journal}");
    assert!(journal.ends_with("ended by its guest\n"), "{journal}");
}

#[test]
fn a_killed_qemu_is_a_crash_and_comes_up_again() {
    let fake = running();
    fake.signal("vm", Signal::KILL);
    eventually("the crash is seen", Duration::from_secs(60), || fake.state("vm") == "crashed");
    assert_eq!(fake.status("vm")["crash"], "its QEMU was killed");
    fake.run(&["exec", "--", "true"]).code(255).says("crashed").says("castra up vm");
    fake.run(&["up"]).ok().says("had crashed (its QEMU was killed)");
    assert_eq!(fake.state("vm"), "running");
}

#[test]
fn a_vm_that_ends_while_up_waits_for_its_guest_comes_up_again() {
    let fake = running();
    fake.behave("vm", "guest-silent");
    std::thread::scope(|scope| {
        let up = scope.spawn(|| fake.run(&["up"]));
        // It waits for the guest, or finds it crashed on a very busy machine.
        std::thread::sleep(Duration::from_secs(1));
        fake.behave("vm", "");
        fake.signal("vm", Signal::KILL);
        up.join().expect("no panic").ok().says("had crashed");
    });
    assert_eq!(fake.state("vm"), "running");
}

#[test]
fn a_guest_that_ends_by_itself_has_stopped() {
    let fake = running();
    fake.press_power_button("vm");
    eventually("the end is seen", Duration::from_secs(60), || fake.state("vm") == "stopped");
    fake.run(&["up"]).ok();
    assert_eq!(fake.state("vm"), "running");
}

#[test]
fn a_qemu_that_a_signal_ends_is_a_crash_with_its_sender() {
    let fake = running();
    fake.signal("vm", Signal::TERM);
    eventually("the end is seen", Duration::from_secs(60), || fake.state("vm") == "crashed");
    // QEMU has removed it, as whenever it ends by itself.
    assert!(!fake.pidfile("vm").exists());
    assert_eq!(
        fake.status("vm")["crash"],
        "its QEMU was killed by SIGTERM from process 1 (castra)"
    );
    fake.run(&["status"]).ok().says("killed by SIGTERM from process 1 (castra)");
    fake.run(&["suspend", "vm"]).code(69).says("crashed");
    fake.run(&["up"])
        .ok()
        .says("had crashed (its QEMU was killed by SIGTERM from process 1 (castra))");
    assert_eq!(fake.state("vm"), "running");
    fake.run(&["down"]).ok();
    assert_eq!(fake.state("vm"), "stopped");
    // Once castra itself has asked for it, it is no crash.
    fake.run(&["up"]).ok();
    fake.run(&["down", "--force"]).ok();
    assert_eq!(fake.state("vm"), "stopped");
}

#[test]
fn a_full_disk_pauses_a_vm_until_there_is_room() {
    let fake = running();
    fake.behave("vm", "disk-full");
    let status = fake.status("vm");
    assert_eq!(status["state"], "disk-full");
    assert!(
        status["full_disk"]["filesystem"].is_string() && status["full_disk"]["free_bytes"].is_u64()
    );
    fake.run(&["status"]).ok().says("is paused").says("Nothing is lost").says("castra up vm");
    for words in [&["up"][..], &["suspend"], &["down"]] {
        fake.run(words).code(74).says("is paused").says("is full").says("Nothing is lost");
        assert_eq!(fake.state("vm"), "disk-full");
    }
    fake.run(&["exec", "--", "true"]).code(255).says("is paused").says("is full");
    fake.behave("vm", "");
    // No command has continued it yet.
    assert_eq!(fake.state("vm"), "disk-full");
    fake.run(&["up"]).ok().says("there is room again");
    assert_eq!(fake.state("vm"), "running");
    fake.behave("vm", "disk-full");
    assert_eq!(fake.state("vm"), "disk-full");
    fake.behave("vm", "");
    fake.run(&["suspend"]).ok().says("there is room again");
    fake.run(&["up"]).ok();
    fake.behave("vm", "disk-full");
    assert_eq!(fake.state("vm"), "disk-full");
    fake.behave("vm", "");
    fake.run(&["down"]).ok().says("there is room again");
    assert!(fake.journal("vm").ends_with("ended by its guest\n"), "{}", fake.journal("vm"));
    fake.run(&["up"]).ok();
    fake.behave("vm", "disk-full");
    assert_eq!(fake.state("vm"), "disk-full");
    fake.run(&["down", "--force"]).ok();
    assert_eq!(fake.state("vm"), "stopped");
}

#[test]
fn a_disk_that_is_full_while_a_vm_starts_loses_no_vm() {
    let fake = Fake::new(&["vm"]);
    fake.behave("vm", "disk-full");
    fake.run(&["up", "--cold"]).code(74).says("is paused").says("is full");
    assert_eq!(fake.state("vm"), "disk-full");
    fake.run(&["up"]).code(74).says("is full");
    fake.behave("vm", "");
    fake.run(&["up"]).ok();
    assert_eq!(fake.journal("vm").matches("started").count(), 1, "{}", fake.journal("vm"));
    assert_eq!(fake.state("vm"), "running");
}

#[test]
fn up_after_an_interrupted_down_neither_waits_nor_cuts_the_power() {
    let fake = running();
    fake.behave("vm", "guest-silent ignores-powerdown");
    let mut down =
        fake.castra(&["down"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("runs");
    eventually("the stop begins", Duration::from_secs(60), || fake.state("vm") == "stopping");
    down.kill().expect("is ours");
    down.wait().expect("ends");
    let up =
        fake.castra(&["up"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("runs");
    eventually("it counts as running", Duration::from_secs(50), || fake.state("vm") == "running");
    // The guest no longer answers, and castra waits for it.
    rustix::process::kill_process(Pid::from_child(&up), Signal::INT).expect("is ours");
    let up = up.wait_with_output().expect("ends");
    assert_eq!(up.status.code(), Some(130));
    let said = String::from_utf8_lossy(&up.stderr);
    assert!(said.contains("asked to shut down earlier but did not; it keeps running"), "{said}");
    assert_eq!(fake.journal("vm").matches("ended").count(), 0, "{}", fake.journal("vm"));
    fake.behave("vm", "");
    fake.run(&["up"]).ok();
}

#[test]
fn a_qemu_that_stands_still_is_reported_and_ended() {
    let fake = running();
    fake.signal("vm", Signal::STOP);
    // Without waiting for an answer it counts as running; the kernel knows that the process exists.
    assert_eq!(fake.state("vm"), "running");
    fake.run(&["exec", "--", "true"])
        .code(255)
        .says("is frozen")
        .says("kill -CONT")
        .says("castra down");
    fake.run(&["up"]).code(69).says("is frozen");
    fake.run(&["suspend"]).code(69).says("is frozen");
    // Continued first, so that its guest can shut down.
    fake.run(&["down"]).ok().says("SIGCONT");
    assert_eq!(fake.state("vm"), "stopped");
    assert!(fake.journal("vm").ends_with("ended by its guest\n"));
    fake.run(&["up"]).ok();
    fake.signal("vm", Signal::STOP);
    // However soon it ends, it ran until then.
    fake.run(&["down", "--force"]).ok().says("vm: stopped");
    assert!(!fake.lives("vm"));
}

#[test]
fn force_gives_qemu_the_time_to_quit_before_a_signal_ends_it() {
    let fake = running();
    let stderr = fake.run(&["down", "--force", "-v"]).ok().says("quit").stderr;
    assert!(!stderr.contains("SIGTERM"), "{stderr}");
    assert!(fake.journal("vm").ends_with("ended by quit\n"), "{}", fake.journal("vm"));
    fake.run(&["up"]).ok();
    fake.behave("vm", "ignores-quit");
    fake.run(&["down", "--force", "-v"]).ok().says("quit").says("SIGTERM").says("vm: stopped");
    assert!(fake.journal("vm").ends_with("ended by a signal\n"), "{}", fake.journal("vm"));
}

#[test]
fn a_pid_file_that_names_a_stranger_kills_no_process() {
    let fake = running();
    fake.run(&["down"]).ok();
    let mut stranger =
        Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("starts");
    for state in ["stopped", "crashed"] {
        fs::write(fake.pidfile("vm"), format!("{}\n", stranger.id())).expect("writes");
        assert_eq!(fake.state("vm"), state);
        fake.run(&["down"]).ok();
        fake.run(&["down", "--force"]).ok();
        assert_eq!(fake.state("vm"), "stopped");
        assert!(stranger.try_wait().expect("is ours").is_none(), "the stranger was killed");
        // As if QEMU were killed now, and its pid given to another process.
        fake.run(&["up"]).ok();
        fake.signal("vm", Signal::KILL);
        eventually("its end", Duration::from_secs(60), || !fake.lives("vm"));
    }
    fs::write(fake.pidfile("vm"), format!("{}\n", stranger.id())).expect("writes");
    fake.run(&["up"]).ok();
    assert_eq!(fake.state("vm"), "running");
    assert!(stranger.try_wait().expect("is ours").is_none(), "the stranger was killed");
    stranger.kill().expect("is ours");
    stranger.wait().expect("ends");
}

#[test]
fn a_guest_that_ignores_the_power_button_is_ended_and_that_is_reported() {
    let fake = running();
    fake.behave("vm", "ignores-powerdown");
    fake.run(&["down", "-v", "--timeout", "1"])
        .code(69)
        .says("guest shutdown")
        .says("did not shut down within 1 s: its QEMU was stopped by QMP quit, like a power cut")
        .says("castra up vm");
    assert_eq!(fake.state("vm"), "stopped");
    assert!(fake.journal("vm").ends_with("ended by quit\n"));
}

#[test]
fn a_qemu_that_ignores_everything_is_killed_and_that_is_reported() {
    let fake = running();
    fake.behave("vm", "ignores-powerdown ignores-quit ignores-term");
    fake.run(&["down", "--timeout", "1"]).code(69).says("was stopped by SIGKILL, like a power cut");
    assert_eq!(fake.state("vm"), "stopped");
    assert!(!fake.lives("vm"));
    assert_eq!(fake.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_silent_guest_is_stopped_by_its_power_button() {
    let fake = running();
    fake.behave("vm", "guest-silent");
    fake.run(&["down"]).ok();
    assert!(fake.journal("vm").ends_with("ended by its power button\n"), "{}", fake.journal("vm"));
}

/// Time in which castra notices that an agent is gone, and that its guest ignores the power button.
const UNRESPONSIVE_LIMIT: Duration = Duration::from_secs(40);

#[test]
fn a_guest_whose_agent_is_gone_is_reported_and_soon_stopped() {
    let fake = running();
    assert_eq!(fake.status("vm")["agent_fault"], Value::Null);
    let gone = "VM `vm` is running, but castra's agent in it is not";
    let silent = "VM `vm` is running, but castra's agent in it does not answer";
    for (words, fault, sentence) in
        [("agent-gone", "gone", gone), ("guest-silent", "silent", silent)]
    {
        fake.behave("vm", words);
        assert_eq!(fake.status("vm")["agent_fault"], fault);
        fake.run(&["status"]).ok().says(sentence).says("`castra restart vm`");
        let doctor = fake.run(&["doctor"]).text();
        assert!(doctor.contains(sentence), "{doctor}");
    }
    fake.behave("vm", "agent-gone");
    fake.run(&["down"]).ok().says("power button, since castra's agent does not answer");
    assert!(fake.journal("vm").ends_with("ended by its power button\n"), "{}", fake.journal("vm"));

    fake.behave("vm", "");
    fake.run(&["up"]).ok();
    fake.behave("vm", "agent-gone ignores-powerdown");
    let started = Instant::now();
    fake.run(&["down"])
        .code(69)
        .says("neither castra's agent in it nor its power button answers")
        .says("like a power cut");
    assert!(started.elapsed() < UNRESPONSIVE_LIMIT, "{:?}", started.elapsed());
    assert_eq!(fake.state("vm"), "stopped");
    // Nothing is waited for before a restart, either.
    fake.behave("vm", "");
    fake.run(&["up"]).ok();
    fake.behave("vm", "agent-gone");
    fake.run(&["suspend"]).ok().says("could not sync its disk");
    assert!(started.elapsed() < 2 * UNRESPONSIVE_LIMIT, "{:?}", started.elapsed());
    assert_eq!(fake.state("vm"), "suspended");
}

#[test]
fn a_guest_that_was_ready_and_hangs_is_in_no_phase_of_a_boot() {
    let fake = running();
    fake.behave("vm", "guest-silent");
    let up = fake.run(&["up", "--boot-timeout", "1"]).code(69);
    let up = up
        .says("is not responding: it was ready, but has been silent for 1 s")
        .says("castra console vm");
    assert!(!up.stderr.contains("phase"), "{}", up.stderr);
    assert_eq!(fake.state("vm"), "running");
}

#[test]
fn a_console_without_its_socket_is_not_blamed_on_an_earlier_castra() {
    let fake = running();
    let sockets = fake.leftovers();
    let console = sockets.iter().find(|path| path.ends_with("console.sock")).expect("a console");
    fs::remove_file(console).expect("removed");
    let ended =
        fake.run(&["console"]).code(69).says("console.sock is gone").says("castra logs -f vm");
    assert!(!ended.stderr.contains("earlier castra"), "{}", ended.stderr);
}

#[test]
fn a_signal_ends_each_wait_for_a_qemu_that_is_silent() {
    let fake = running();
    fake.behave("vm", "qmp-silent");
    let mut suspend = fake
        .castra(&["suspend"])
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("runs");
    // Castra waits ten seconds for an answer; wherever the signal arrives, it is an interruption or
    // precedes the handler.
    std::thread::sleep(Duration::from_millis(500));
    rustix::process::kill_process(Pid::from_child(&suspend), Signal::TERM).expect("is ours");
    let ended = suspend.wait().expect("ends");
    assert!(matches!(ended.code(), Some(130) | None), "{ended}");
    assert_eq!(fake.state("vm"), "running");
}

#[test]
fn a_qemu_of_another_pid_namespace_is_alive_and_nothing_is_done_to_it() {
    let fake = running();
    let inside = |words: &[&str]| {
        let script = "exec unshare --pid --fork --mount-proc castra \"$@\"";
        namespace::run_script(script, words, &fake)
    };
    let Some(status) = inside(&["status", "--json"]) else { return };
    assert!(status.text().contains("\"state\": \"elsewhere\""), "{}", status.text());
    let (disk, pid) = (fake.disk("vm"), fake.qemu_pid("vm"));
    for words in [
        &["up"][..],
        &["up", "--cold"],
        &["suspend"],
        &["down"],
        &["down", "--force"],
        &["restart"],
        &["restart", "--force", "--cold"],
        &["clean"],
        &["clean", "--disks", "--yes"],
        &["clean", "--records", "--yes"],
    ] {
        let ended = inside(words).expect("as before").code(75);
        ended.says("another container or pid namespace").says("Nothing has been changed");
    }
    inside(&["exec", "--", "true"])
        .expect("as before")
        .code(255)
        .says("another container or pid namespace");
    inside(&["clean", "--orphans", "--yes"]).expect("as before");
    assert!(fake.lives("vm"));
    assert_eq!(
        (fake.state("vm").as_str(), fake.disk("vm"), fake.qemu_pid("vm")),
        ("running", disk, pid)
    );
    fake.run(&["down"]).ok();
    assert!(fake.journal("vm").ends_with("ended by its guest\n"), "{}", fake.journal("vm"));
}

#[test]
fn a_disk_that_a_qemu_has_open_is_not_removed_whatever_became_of_its_pid_file() {
    let fake = running();
    let disk = fake.disk("vm");
    let kept = fake.path().join("kept.pid");
    fs::rename(fake.pidfile("vm"), &kept).expect("renamed");
    fake.run(&["clean", "--disks", "--yes", "vm"]).code(75).says("is in use; it was not changed");
    assert_eq!(fake.disk("vm"), disk);
    // Nothing else of it is gone either.
    fs::rename(&kept, fake.pidfile("vm")).expect("renamed");
    fake.run(&["down"]).ok();
    assert!(fake.journal("vm").ends_with("ended by its guest\n"), "{}", fake.journal("vm"));
}

#[test]
fn a_qemu_that_dies_at_its_start_is_quoted() {
    let fake = Fake::new(&["vm"]);
    fake.behave("vm", "dies");
    fake.run(&["up", "--cold"]).code(69).says("Cannot allocate memory").says("stop other VMs");
    assert_eq!(fake.state("vm"), "stopped");
    assert_eq!(fake.leftovers(), Vec::<std::path::PathBuf>::new());
    fake.behave("vm", "");
    fake.run(&["up", "--cold"]).ok();
}

#[test]
fn a_guest_that_never_speaks_is_given_up_in_time() {
    let fake = Fake::new(&["vm"]);
    fake.behave("vm", "guest-silent");
    fake.run(&["up", "--cold", "--boot-timeout", "1"])
        .code(69)
        .says("was not ready after 1 s")
        .says("--boot-timeout");
    assert_eq!(fake.state("vm"), "stopped");
    assert_eq!(fake.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_port_that_is_taken_meanwhile_is_tried_again_or_named() {
    let free =
        TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address").port();
    let fake = Fake::with_port("vm", free);
    fake.behave("vm", "port-taken:2");
    fake.run(&["up", "--cold"]).ok();
    assert_eq!(fake.journal("vm").matches("started").count(), 3);
    fake.run(&["down"]).ok();
    fake.behave("vm", "port-taken:99");
    fake.run(&["up"]).code(75).says("forwarding rule").says("castra.toml");
    assert_eq!(fake.state("vm"), "stopped");
    let _holder = TcpListener::bind(("127.0.0.1", free)).expect("is free again");
    fake.behave("vm", "");
    fake.run(&["up"]).code(75).says(&format!("port {free}/tcp")).says("choose another host port");
}

#[test]
fn what_the_agent_leaves_to_the_user_is_a_warning_and_no_failure() {
    let fake = Fake::new(&["vm"]);
    fake.behave("vm", "volume-small emergency");
    let up = fake.run(&["up", "--cold"]).ok();
    let left = "VM `vm`: the volume is small";
    assert_eq!(up.stderr.matches(left).count(), 1, "{}", up.stderr);
    up.says("the agent could not finish the boot: the system is in emergency mode");
    fake.run(&["down"]).ok();
}

#[test]
fn a_guest_without_its_kernels_modules_is_reported_until_it_has_them() {
    const WARNING: &str =
        "runs the image's Linux 6.12.1-0-virt, but its disk has modules only for 6.12.9-0-virt";
    const WAY_OUT: &str =
        "castra run --image tiny@v1 -- tar -C /lib/modules -cf - 6.12.1-0-virt | castra exec vm";
    let fake = Fake::new(&["vm"]);
    fake.behave("vm", "modules-gone");
    fake.run(&["up", "--cold"]).ok().says(WARNING).says(WAY_OUT);
    let is_known = || {
        let details = fake.run(&["status", "-v"]).ok().text();
        assert_eq!(details.contains(WARNING), details.contains(WAY_OUT), "{details}");
        let missing = fake.status("vm")["missing_modules"].clone();
        assert_eq!(details.contains(WARNING), missing["kernel"] == "6.12.1-0-virt", "{missing}");
        details.contains(WARNING)
    };
    assert!(is_known());
    let doctor = fake.run(&["doctor"]).text();
    assert!(doctor.contains(WARNING) && doctor.contains(WAY_OUT), "{doctor}");
    // A resumed guest reports nothing about its modules, and they are as before.
    fake.run(&["suspend"]).ok();
    assert!(!is_known());
    fake.behave("vm", "");
    fake.run(&["up"]).ok();
    assert!(is_known());
    let up = fake.run(&["up"]).ok();
    assert!(!up.stderr.contains(WARNING) && !is_known(), "{}", up.stderr);
    fake.run(&["down"]).ok();
}
