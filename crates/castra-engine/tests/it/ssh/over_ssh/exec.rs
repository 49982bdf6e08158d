use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::thread;
use std::time::{Duration, Instant};

use castra_engine::guest::ssh::{self, Command, ExecRequest, GuestExit, SshError};

use super::start;
use crate::ssh::guest::{drain, eventually, pattern, pipes};

#[test]
fn exit_codes_come_back() {
    let guest = start();
    for code in [0, 1, 42, 255] {
        assert_eq!(guest.capture(&format!("exit {code}")).exit, GuestExit::Code(code));
    }
    let killed = guest.capture("kill -KILL $$").exit;
    assert_eq!((killed.clone(), killed.code()), (GuestExit::Signal("KILL".into()), 137));
    assert_eq!(guest.capture("nonexistent-command").exit, GuestExit::Code(127));
}

#[test]
fn stdout_and_stderr_stay_apart() {
    let output = start().capture("echo out; echo err >&2; echo again");
    assert_eq!(output.stdout, b"out\nagain\n");
    assert_eq!(output.stderr, b"err\n");
}

#[test]
fn ten_megabytes_go_there_and_back_unchanged() {
    let guest = start();
    let sent = pattern(10 << 20);
    let (exit, received, _) = guest.exec("cat", sent.clone(), None);
    assert_eq!(exit, GuestExit::Code(0));
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
}

#[test]
fn output_is_not_lost_when_the_command_ends_at_once() {
    let guest = start();
    let output = guest.capture("head -c 3000000 /dev/zero; exit 3");
    assert_eq!((output.exit, output.stdout.len()), (GuestExit::Code(3), 3_000_000));
}

#[test]
fn the_end_of_stdin_is_passed_on() {
    let guest = start();
    let (exit, stdout, _) = guest.exec("wc -c; echo after", b"four".to_vec(), None);
    assert_eq!(exit, GuestExit::Code(0));
    assert_eq!(
        String::from_utf8(stdout).expect("is text").split_whitespace().collect::<Vec<_>>(),
        ["4", "after"]
    );
}

#[test]
fn a_dialogue_is_not_delayed() {
    let guest = start();
    let (streams, stdin, stdout, _stderr) = pipes();
    let dialogue = thread::spawn(move || {
        let (mut stdin, mut stdout) = (File::from(stdin), BufReader::new(File::from(stdout)));
        for number in 0..50 {
            writeln!(stdin, "{number}").expect("writes");
            let mut line = String::new();
            stdout.read_line(&mut line).expect("reads");
            assert_eq!(line, format!("got {number}\n"));
        }
    });
    let exit = guest.exec_on(streams, "while read n; do echo got $n; done", None);
    assert_eq!(exit.expect("runs"), GuestExit::Code(0));
    dialogue.join().expect("talks");
}

#[test]
fn the_environment_is_a_login_and_takes_requests() {
    let guest = start();
    let (streams, _stdin, stdout, _stderr) = pipes();
    let request = ExecRequest {
        command: Command::Line(
            "echo $USER $LOGNAME $HOME $SHELL; pwd; echo $GREETING; echo $LANG; tty".into(),
        ),
        tty: None,
        environment: vec![
            ("GREETING".into(), "hello  you".into()),
            ("LANG".into(), "C.UTF-8".into()),
        ],
        directory: None,
        stdio: streams,
    };
    let stdout = drain(stdout);
    assert_eq!(
        ssh::exec(&castra_engine::cancel::Cancel::new(), &guest.target, request).expect("runs"),
        GuestExit::Code(1),
        "tty finds no terminal"
    );
    let text = String::from_utf8(stdout.join().expect("reads")).expect("is text");
    let lines: Vec<&str> = text.lines().collect();
    let user = &guest.target.user;
    assert!(lines[0].starts_with(&format!("{user} {user} /")), "{text}");
    assert_eq!(Some(lines[1]), lines[0].split(' ').nth(2), "starts at home");
    assert_eq!(lines[2..], ["hello you", "C.UTF-8", "not a tty"]);
}

#[test]
fn the_process_environment_does_not_leak() {
    let output = start().capture("env");
    let text = String::from_utf8(output.stdout).expect("is text");
    assert!(!text.contains("CARGO"), "{text}");
}

#[test]
fn a_reader_that_goes_ends_the_command_quietly() {
    let guest = start();
    let (streams, _stdin, stdout, _stderr) = pipes();
    let reader = thread::spawn(move || {
        let mut some = [0; 1000];
        File::from(stdout).read_exact(&mut some).expect("reads");
    });
    let exit = guest.exec_on(streams, "yes", None).expect("runs");
    assert_eq!((exit.clone(), exit.code()), (GuestExit::OutputClosed, 141));
    reader.join().expect("reads");
}

#[test]
fn a_background_process_keeps_neither_exit_nor_caller() {
    let guest = start();
    let started = Instant::now();
    let output = guest.capture("sleep 60 & echo $!; exit 5");
    assert_eq!(output.exit, GuestExit::Code(5));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    // The process continues: the command ended by itself, so nothing hung it up.
    let pid: i32 =
        String::from_utf8(output.stdout).expect("is text").trim().parse().expect("is a pid");
    let pid = rustix::process::Pid::from_raw(pid).expect("is a pid");
    rustix::process::test_kill_process(pid).expect("lives on");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("ends");
}

/// As with OpenSSH, its output has no reader any more. A process that prints elsewhere lives on.
#[test]
fn a_background_process_loses_its_output_with_its_command() {
    let guest = start();
    let in_scratch = |name: &str| guest.scratch().join(name).display().to_string();
    let [go, lost, kept, log] = ["go", "lost", "kept", "log"].map(in_scratch);
    let output = guest.capture(&format!(
        "(trap '' PIPE; exec 2> {log}.err; while echo late; do sleep 0.05; done; echo $? > {lost}) &
         (until [ -e {go} ]; do sleep 0.05; done; echo late; echo $? > {kept}) > {log} 2>&1 &
         echo early"
    ));
    assert_eq!(output.exit, GuestExit::Code(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("early\n"));
    std::fs::write(&go, "").expect("writes");
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    eventually("one writes and one cannot", || {
        read(&lost).ends_with('\n') && read(&kept).ends_with('\n')
    });
    assert_eq!((read(&kept).as_str(), read(&log).as_str()), ("0\n", "late\n"));
}

#[test]
fn output_of_helpers_that_end_just_after_their_command_is_kept() {
    let output = start().capture("(sleep 0.05; echo late) & echo early");
    assert_eq!(output.stdout, b"early\nlate\n");
}

#[test]
fn a_call_that_ends_hangs_the_command_up() {
    let guest = start();
    let mark = guest.scratch().join("hung-up");
    let (streams, _stdin, stdout, _stderr) = pipes();
    let reader = thread::spawn(move || {
        // After two lines the reader closes, and with it the connection.
        let mut lines = BufReader::new(File::from(stdout)).lines();
        lines.next().expect("starts").expect("reads");
    });
    let script = format!(
        "trap 'echo yes > {}; exit' HUP; trap '' PIPE; while :; do echo line; sleep 0.02; done",
        mark.display()
    );
    assert_eq!(guest.exec_on(streams, &script, None).expect("runs"), GuestExit::OutputClosed);
    reader.join().expect("reads");
    eventually("the command hears SIGHUP", || mark.exists());
}

#[test]
fn twenty_sessions_run_at_once() {
    let guest = start();
    thread::scope(|scope| {
        for number in 0..20 {
            let guest = &guest;
            scope.spawn(move || {
                let output =
                    guest.capture(&format!("head -c 200000 /dev/zero | wc -c; exit {number}"));
                assert_eq!(output.exit, GuestExit::Code(number));
                assert_eq!(String::from_utf8(output.stdout).expect("is text").trim(), "200000");
            });
        }
    });
}

#[test]
fn too_much_output_is_an_error() {
    let guest = start();
    let result = ssh::capture(
        &castra_engine::cancel::Cancel::new(),
        &guest.target,
        ["yes".into()].to_vec(),
        1000,
    );
    assert!(matches!(result, Err(SshError::TooMuchOutput { limit_bytes: 1000 })));
}
