use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio as ProcessStdio};
use std::thread;

use castra_engine::guest::ssh::{self, Command, ExecRequest, GuestExit, Stdio, Target, Tty};
use castra_engine::guest::{Streams, VmKeys};
use castra_engine::layout::ProjectLayout;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::start;
use crate::ssh::guest::{Guest, drain, eventually, own_name, pipes, ports_below};

/// Returns a terminal on this side: the user's end and the program's.
fn terminal() -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let user = rustix::pty::openpt(flags).expect("opens");
    rustix::pty::grantpt(&user).expect("is granted");
    rustix::pty::unlockpt(&user).expect("is unlocked");
    let program = rustix::pty::ioctl_tiocgptpeer(&user, flags).expect("opens");
    (user, program)
}

fn resize(terminal: &OwnedFd, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("resizes");
}

fn tty(columns: u16, rows: u16) -> Option<Tty> {
    Some(Tty { term: "xterm-256color".into(), columns, rows })
}

#[test]
fn a_terminal_has_size_and_kind_and_joins_the_streams() {
    let guest = start();
    let (exit, stdout, stderr) = guest.exec(
        "stty size; echo $TERM; tty; echo $SSH_TTY; echo err >&2",
        Vec::new(),
        tty(101, 33),
    );
    assert_eq!(exit, GuestExit::Code(0));
    let text = String::from_utf8(stdout).expect("is text");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["33 101", "xterm-256color"], "{text}");
    assert!(lines[2].starts_with("/dev/pts/") && lines[2] == lines[3], "{text}");
    assert_eq!(lines[4], "err");
    assert!(stderr.is_empty());
}

#[test]
fn a_shell_is_a_login_shell() {
    let guest = start();
    let (user, program) = terminal();
    let stdio = Stdio {
        stdin: Some(program.try_clone().expect("clones")),
        stdout: program.try_clone().expect("clones"),
        stderr: program,
    };
    let talk = thread::spawn(move || {
        let mut user = File::from(user);
        user.write_all(b"echo name=$0; exit 7\n").expect("writes");
        let mut seen = Vec::new();
        // Ends with an error when the other side is closed.
        let _ = user.read_to_end(&mut seen);
        String::from_utf8_lossy(&seen).into_owned()
    });
    let request = ssh::ExecRequest {
        command: ssh::Command::Shell,
        tty: tty(80, 24),
        environment: Vec::new(),
        directory: None,
        stdio,
    };
    let cancel = castra_engine::cancel::Cancel::new();
    let exit = ssh::exec(&cancel, &guest.target, request).expect("runs");
    assert_eq!(exit, GuestExit::Code(7));
    let seen = talk.join().expect("talks");
    assert!(seen.contains("name=-"), "{seen}");
}

#[test]
fn keys_are_bytes_and_the_terminal_is_restored() {
    let guest = start();
    let (user, program) = terminal();
    let watched = program.try_clone().expect("clones");
    let before = tcgetattr(&watched).expect("is a terminal");
    let (streams, _stdin, stdout, _stderr) = pipes();
    let stdio = Stdio { stdin: Some(program), ..streams };
    let typist = thread::spawn(move || {
        let mut stdout = File::from(stdout);
        let mut ready = [0; 5];
        stdout.read_exact(&mut ready).expect("starts");
        let modes = tcgetattr(&watched).expect("is a terminal").local_modes;
        assert!(
            !modes.intersects(LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHO),
            "is raw"
        );
        File::from(user.try_clone().expect("clones")).write_all(b"\x03").expect("types Ctrl-C");
        stdout.read_to_end(&mut Vec::new()).expect("reads");
        (user, watched)
    });
    let exit = guest.exec_on(stdio, "echo ready; exec sleep 60", tty(80, 24)).expect("runs");
    assert_eq!(exit, GuestExit::Signal("INT".into()));
    let (_user, watched) = typist.join().expect("types");
    let after = tcgetattr(&watched).expect("is a terminal");
    assert_eq!((after.local_modes, after.input_modes), (before.local_modes, before.input_modes));
}

#[test]
fn a_resize_is_passed_on() {
    let guest = start();
    let (user, program) = terminal();
    resize(&user, 80, 24);
    let (streams, _stdin, stdout, _stderr) = pipes();
    let stdio = Stdio { stdin: Some(program), ..streams };
    let watcher = thread::spawn(move || {
        let mut stdout = File::from(stdout);
        let mut first = [0; 5];
        stdout.read_exact(&mut first).expect("starts");
        assert_eq!(&first, b"24 80");
        resize(&user, 132, 50);
        kill_process(rustix::process::getpid(), Signal::WINCH).expect("signals");
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).expect("reads");
        (user, rest)
    });
    let line = r#"stty size; while [ "$(stty size)" = "24 80" ]; do sleep 0.02; done; stty size"#;
    assert_eq!(guest.exec_on(stdio, line, tty(80, 24)).expect("runs"), GuestExit::Code(0));
    let (_user, rest) = watcher.join().expect("watches");
    assert_eq!(rest.trim(), "50 132");
}

/// Not a test: the code that [`other_process`] runs.
#[test]
#[ignore = "runs in a process of its own, started by other tests"]
fn exec_in_a_process_of_its_own() {
    let Ok(state) = std::env::var("CASTRA_TEST_STATE") else { return };
    let address =
        std::env::var("CASTRA_TEST_ADDRESS").expect("is set").parse().expect("is an address");
    let line = std::env::var("CASTRA_TEST_LINE").expect("is set");
    let layout = ProjectLayout::unchecked(Path::new(&state).to_owned()).vm("box");
    let keys = VmKeys::load_or_create(&layout).expect("reads keys");
    let ports = std::env::var("CASTRA_TEST_PORTS").expect("is set").parse().expect("is a number");
    let scratch = Path::new(&state).parent().expect("is in a directory");
    let streams = (ports > 0).then(|| ports_below(scratch, ports));
    let target =
        Target { streams: streams.map(Streams::Shared), ..keys.target(address, &own_name()) };
    let request = ExecRequest {
        command: Command::Line(line),
        tty: None,
        environment: Vec::new(),
        directory: None,
        stdio: Stdio::inherit().expect("has streams"),
    };
    let exit = ssh::exec(&castra_engine::cancel::Cancel::new(), &target, request).expect("runs");
    leave(exit.code());
}

#[expect(clippy::exit, reason = "the exit code is what the other process is started for")]
fn leave(code: u8) {
    std::process::exit(code.into());
}

fn other_process(guest: &Guest, line: &str) -> Child {
    let ports = match &guest.target.streams {
        Some(Streams::Shared(ports)) => ports.count,
        _ => 0,
    };
    Process::new(std::env::current_exe().expect("is a file"))
        .args([
            "--exact",
            "ssh::over_ssh::terminal::exec_in_a_process_of_its_own",
            "--ignored",
            "--nocapture",
        ])
        .env("CASTRA_TEST_STATE", guest.scratch().join(".castra"))
        .env("CASTRA_TEST_ADDRESS", guest.target.address.to_string())
        .env("CASTRA_TEST_PORTS", ports.to_string())
        .env("CASTRA_TEST_LINE", line)
        .stdin(ProcessStdio::piped())
        .stdout(ProcessStdio::piped())
        .spawn()
        .expect("starts")
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

#[test]
fn a_signal_without_a_terminal_goes_to_the_command() {
    let guest = start();
    let mark = guest.scratch().join("started");
    let line = format!(
        "trap 'echo heard; exit 9' INT; touch {}; while :; do sleep 0.02; done",
        mark.display()
    );
    let mut child = other_process(&guest, &line);
    eventually("it starts", || mark.exists());
    kill_process(pid(&child), Signal::INT).expect("signals");
    let output = drain(child.stdout.take().expect("is a pipe").into());
    assert_eq!(child.wait().expect("ends").code(), Some(9));
    let text = String::from_utf8(output.join().expect("reads")).expect("is text");
    assert!(text.ends_with("heard\n"), "{text}");
}

#[test]
fn a_second_signal_ends_the_call() {
    let guest = start();
    let mark = guest.scratch().join("started");
    let line = format!(
        "trap 'touch {0}.int' INT; echo $$ >{0}.pid; touch {0}; while :; do sleep 0.02; done",
        mark.display()
    );
    let mut child = other_process(&guest, &line);
    eventually("it starts", || mark.exists());
    kill_process(pid(&child), Signal::INT).expect("signals");
    eventually("it hears the first", || mark.with_extension("int").exists());
    kill_process(pid(&child), Signal::INT).expect("signals");
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    // The server of this test ends with it, and could not hang up the command any more.
    let command = std::fs::read_to_string(mark.with_extension("pid")).expect("written");
    eventually("the command is hung up", || !Path::new("/proc").join(command.trim()).exists());
}

#[test]
fn a_client_that_dies_has_its_command_hung_up() {
    let guest = start();
    let mark = guest.scratch().join("started");
    // Its streams are closed too, so that the shell's own "Hangup" would end it.
    let line = format!(
        "trap 'touch {0}.hup; exit' HUP; trap '' PIPE; touch {0}; while :; do sleep 0.02; done",
        mark.display()
    );
    let mut child = other_process(&guest, &line);
    eventually("it starts", || mark.exists());
    child.kill().expect("kills");
    child.wait().expect("ends");
    eventually("the command hears SIGHUP", || mark.with_extension("hup").exists());
}
