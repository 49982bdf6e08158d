//! Commands in one real VM: many at once, killed ones, and whatever bytes they carry, over stream
//! ports and over SSH. `CASTRA_STREAM_MIB` sets the size of the long streams.

use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use castra_engine::guest::{HeldPorts, StreamPorts};
use castra_engine::layout::SocketsLayout;
use castra_test_support::{Ended, Project, eventually, noise};
use castra_wire::STREAM_PORTS;
use serde_json::Value;

const VM: &str = "alpine-minimal";

/// Time for what takes a second on an idle machine.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn commands_are_independent_and_their_bytes_unchanged() {
    let project = Project::new();
    project.run(&["up"]).ok();
    let all_ports = || held(&project);

    arguments_arrive_as_they_are(&project);
    programs_of_any_name_run(&project);
    long_streams_pass_unchanged(&project);
    ends_are_prompt(&project);
    a_directory_is_no_input(&project);
    neither_a_slow_nor_a_killed_command_disturbs_others(&project);
    // All ports were free again: they can be taken, and SSH is the way in.
    let held = all_ports();
    let environment = sh(&project, "env").ok().text();
    assert!(environment.contains("SSH_CONNECTION="), "{environment}");
    arguments_arrive_as_they_are(&project);
    programs_of_any_name_run(&project);
    ends_are_prompt(&project);
    drop(held);
    assert!(!sh(&project, "env").ok().text().contains("SSH_CONNECTION="));
}

fn sh(project: &Project, line: &str) -> Ended {
    project.run(&["exec", "--", "sh", "-c", line])
}

/// Takes all stream ports of the VM.
fn held(project: &Project) -> HeldPorts {
    let record = project.path().join(format!(".castra/vms/{VM}/vm.json"));
    let record: Value =
        serde_json::from_slice(&std::fs::read(record).expect("a record")).expect("JSON");
    let sockets = SocketsLayout::new(record["boot"]["sockets"].as_str().expect("sockets").into());
    let ports = StreamPorts { sockets, count: STREAM_PORTS };
    HeldPorts::hold(&ports, STREAM_PORTS as usize).expect("free")
}

/// Arguments that a line, a shell or text would change, and sizes at the kernel's limit of 128 KiB.
fn arguments_arrive_as_they_are(project: &Project) {
    let each: Vec<OsString> = (1..=255).map(|byte| OsString::from_vec(vec![byte])).collect();
    let all = OsString::from_vec((1..=255).collect());
    let odd = ["", "-x", "--", "--json", "$HOME", "a\nb", ""].map(OsString::from);
    let longest = OsString::from("x".repeat(128 * 1024 - 1));
    let many = (0..60_000).map(|number: u32| OsString::from(number.to_string()));
    for arguments in [[each, vec![all]].concat(), odd.to_vec(), vec![longest; 3], many.collect()] {
        let mut command =
            project.castra(&["exec", "--", "sh", "-c", "cat /proc/$$/cmdline; exit 5", "sh"]);
        command.args(&arguments);
        let arrived = Ended::of(command).code(5).stdout;
        let words = arguments.iter().map(|argument| argument.as_bytes());
        let sent: Vec<u8> = words.flat_map(|word| [word, b"\0"].concat()).collect();
        assert!(arrived.ends_with(&sent), "{} bytes of {}", arrived.len(), sent.len());
    }
    let variable =
        |number: u32| OsString::from_vec([format!("V{number}=").as_bytes(), b"=\xff \n"].concat());
    let variables: Vec<OsString> = (0..2000).map(variable).collect();
    let mut command = project.castra(&["exec"]);
    command.args(variables.iter().flat_map(|variable| [OsStr::new("-e"), variable]));
    let environment = Ended::of({
        command.args(["--", "cat", "/proc/self/environ"]);
        command
    })
    .ok()
    .stdout;
    let arrived: Vec<&[u8]> = environment.split(|byte| *byte == 0).collect();
    assert!(variables.iter().all(|variable| arrived.contains(&variable.as_bytes())));
}

fn programs_of_any_name_run(project: &Project) {
    for name in ["/tmp/a b\nc/pro\n gram", "/tmp/a b\nc/-x", "/tmp/a b\nc/'\"$*"] {
        let make = "mkdir -p \"${1%/*}\"; cat > \"$1\"; chmod +x \"$1\"";
        let script = b"#!/bin/sh\nprintf '%s|' \"$@\"; exit 5\n";
        project.run_with_input(&["exec", "--", "sh", "-c", make, "sh", name], script).ok();
        assert_eq!(project.run(&["exec", "--", name, "-e", ""]).code(5).text(), "-e||");
    }
    for (word, code) in [("", 127), ("A=b", 127), ("/etc/passwd", 126), ("no\nsuch", 127)] {
        assert!(!project.run(&["exec", "--", word]).code(code).stderr.is_empty(), "{word}");
    }
}

fn long_streams_pass_unchanged(project: &Project) {
    let mib = std::env::var("CASTRA_STREAM_MIB").map_or(64, |text| text.parse().expect("a number"));
    let bytes = noise(mib << 20);
    let ended = project.run_with_input(&["exec", "--", "tee", "/root/long"], &bytes).ok();
    assert!(ended.stdout == bytes, "{} of {} bytes came back", ended.stdout.len(), bytes.len());
    let file = project.path().join("long");
    project.run(&["cp", ":/root/long", "long"]).ok();
    assert!(std::fs::read(&file).expect("read") == bytes);
    project.run(&["cp", "long", ":/root/back"]).ok();
    sh(project, "cmp /root/long /root/back && rm /root/long /root/back").ok();
    std::fs::remove_file(file).expect("removed");
}

/// A reader that leaves ends its command, and background processes hold up none.
fn a_directory_is_no_input(project: &Project) {
    let mut castra = project.castra(&["exec", "--", "cat"]);
    castra.stdin(std::fs::File::open("/etc").expect("opened"));
    Ended::of(castra).code(255).says("cannot read stdin").says("Is a directory");
}

fn ends_are_prompt(project: &Project) {
    let started = Instant::now();
    let mut endless = piped(project, "echo $$ > /tmp/endless; exec yes");
    let mut first = [0; 2];
    endless.stdout.take().expect("piped").read_exact(&mut first).expect("some output");
    assert_eq!((&first, endless.wait().expect("ends").code()), (b"y\n", Some(141)));
    sh(project, "sleep 1000 & exit 7").code(7);
    for signal in ["KILL", "TERM", "HUP"] {
        assert!(sh(project, &format!("kill -{signal} $$")).code > Some(128), "{signal}");
    }
    eventually("the end of the endless command", SOON, || {
        sh(project, "kill -0 $(cat /tmp/endless)").code != Some(0)
    });
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    sh(project, "killall sleep").ok();
}

fn piped(project: &Project, line: &str) -> Child {
    let mut command = project.castra(&["exec", "--", "sh", "-c", line]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("castra runs")
}

/// There are twelve ports, and fourteen commands besides those that are slow and killed.
fn neither_a_slow_nor_a_killed_command_disturbs_others(project: &Project) {
    const SLOW_BYTES: usize = 8_000_000;
    let mut slow = piped(project, &format!("head -c {SLOW_BYTES} /dev/zero"));
    let mut killed: Vec<_> = ["exec sleep 1001", "exec cat /dev/zero"]
        .map(|line| piped(project, &format!("echo $$ >> /tmp/killed; {line}")))
        .into();
    eventually("both run", SOON, || sh(project, "wc -l < /tmp/killed").text().trim() == "2");
    for child in &mut killed {
        child.kill().expect("killed");
    }
    thread::scope(|scope| {
        let run = |number: usize| {
            let line =
                format!("sleep 1; head -c {number}00000 /dev/zero | tr '\\0' x; exit {number}");
            let ended = sh(project, &line);
            assert_eq!((ended.code, ended.stdout.len()), (Some(number as i32), number * 100_000));
        };
        for number in 1..=14 {
            scope.spawn(move || run(number));
        }
    });
    eventually("the end of what the killed ones ran", SOON, || {
        sh(project, "for pid in $(cat /tmp/killed); do kill -0 $pid && exit 1; done; true").code
            == Some(0)
    });
    let mut output = Vec::new();
    slow.stdout.take().expect("piped").read_to_end(&mut output).expect("read");
    assert_eq!((output.len(), slow.wait().expect("ends").code()), (SLOW_BYTES, Some(0)));
    for mut child in killed {
        child.wait().expect("ended");
    }
}
