//! The control port against a hostile guest.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use castra_wire::{AgentTask, Secret, Stage, StageReached, encode};
use tempfile::TempDir;

use super::*;

/// Maximum wait of a test; it ends far sooner unless it fails.
const LONG: Duration = Duration::from_secs(20);

/// A socket on which `guest` plays the VM's part for one connection.
struct Vm {
    directory: TempDir,
    guest: JoinHandle<()>,
}

impl Vm {
    fn run(guest: impl FnOnce(UnixStream) + Send + 'static) -> (Self, ControlPort) {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("control.sock")).expect("binds");
        let guest = thread::spawn(move || guest(listener.accept().expect("accepts").0));
        let vm = Self { directory, guest };
        let port = ControlPort::connect(&vm.socket(), Instant::now() + LONG, &Cancel::new())
            .expect("connects");
        (vm, port)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn end(self) {
        self.guest.join().expect("the guest plays its part");
    }
}

fn hello(agent_version: &str, stages: Vec<StageReached>) -> GuestMessage {
    GuestMessage::Hello {
        protocol: PROTOCOL_VERSION,
        agent_version: agent_version.into(),
        kernel: "6.18".into(),
        personalised: false,
        stages,
        uptime_ms: Some(7),
        root_mounted_ms: None,
    }
}

fn personality() -> Personality {
    Personality {
        time_unix_ns: 1,
        entropy: Secret::new(vec![1; 32]),
        hostname: "vm".into(),
        machine_id: "0".repeat(32),
        host_key: Secret::new(b"key".to_vec()),
        authorized_keys: vec!["ssh-ed25519 AAAA".into()],
        relays: None,
        disks: None,
    }
}

/// Writes until the other end has closed.
fn pour(mut socket: &UnixStream, bytes: &[u8], times: usize) {
    for _ in 0..times {
        if socket.write_all(bytes).is_err() {
            return;
        }
    }
}

#[test]
fn a_conversation() {
    let (vm, mut port) = Vm::run(|mut socket| {
        let mut lines = BufReader::new(socket.try_clone().expect("clones")).lines();
        let mut hear = || loop {
            let line = lines.next().expect("a line").expect("reads");
            if !line.is_empty() {
                return castra_wire::decode::<HostMessage>(line.as_bytes()).expect("a message");
            }
        };
        assert_eq!(hear(), HostMessage::Attach);
        socket.write_all(&encode(&hello("0.1.0", vec![]))).expect("writes");
        assert_eq!(hear(), HostMessage::Personalise(personality()));
        socket.write_all(&encode(&GuestMessage::Personalised)).expect("writes");
        assert_eq!(hear(), HostMessage::PowerOff);
        socket.write_all(&encode(&GuestMessage::PoweringOff)).expect("writes");
    });
    let deadline = Instant::now() + LONG;
    port.attach().expect("attaches");
    assert_eq!(port.next(deadline).expect("hears"), hello("0.1.0", vec![]));
    port.personalise(personality()).expect("sends");
    assert_eq!(port.next(deadline).expect("hears"), GuestMessage::Personalised);
    port.power_off().expect("sends");
    assert_eq!(port.next(deadline).expect("hears"), GuestMessage::PoweringOff);
    assert!(matches!(port.next(deadline), Err(ControlError::Closed)));
    vm.end();
}

#[test]
fn what_the_agent_says_to_an_earlier_host_is_not_heard() {
    let (vm, mut port) = Vm::run(|mut socket| {
        let mut lines = BufReader::new(socket.try_clone().expect("clones")).lines();
        let question =
            lines.find(|line| !line.as_ref().expect("reads").is_empty()).expect("a line");
        let Envelope::<HostMessage> { session, message } =
            castra_wire::decode(question.expect("reads").as_bytes()).expect("a message");
        assert_eq!(message, HostMessage::Attach);
        let session = session.expect("a session");
        let earlier = Some(Session::new(1));
        let late = [GuestMessage::Synced, hello("0.0.1", vec![])];
        for message in late {
            socket.write_all(&encode(&Envelope { session: earlier, message })).expect("writes");
        }
        let own = Envelope { session: Some(session), message: hello("0.2.0", vec![]) };
        socket.write_all(&encode(&own)).expect("writes");
    });
    port.attach().expect("attaches");
    assert_eq!(port.next(Instant::now() + LONG).expect("hears"), hello("0.2.0", vec![]));
    vm.end();
}

#[test]
fn garbage_before_a_message_is_skipped() {
    let (vm, mut port) = Vm::run(|mut socket| {
        socket.write_all(b"uptime_ms\":12}]}\n\xff\xfe\0\n{}\n[1,2]\n").expect("writes");
        pour(&socket, &[b'x'; 4096], 50);
        socket.write_all(b"\n").expect("writes");
        socket.write_all(&encode(&hello("0.1.0", vec![]))).expect("writes");
    });
    assert_eq!(port.next(Instant::now() + LONG).expect("hears"), hello("0.1.0", vec![]));
    vm.end();
}

#[test]
fn a_line_without_end_costs_neither_memory_nor_more_than_the_deadline() {
    let (vm, mut port) = Vm::run(|socket| pour(&socket, &[b'x'; 64 * 1024], 1600));
    let outcome = port.next(Instant::now() + LONG);
    assert!(matches!(outcome, Err(ControlError::Closed | ControlError::Flood)), "{outcome:?}");
    drop(port);
    vm.end();
}

#[test]
fn endless_garbage_ends_the_connection() {
    let (vm, mut port) = Vm::run(|socket| pour(&socket, b"login: root\nPassword: \n", usize::MAX));
    assert!(matches!(port.next(Instant::now() + LONG), Err(ControlError::Flood)));
    drop(port);
    vm.end();
}

#[test]
fn endless_messages_end_the_connection() {
    let flood = encode(&GuestMessage::Stage(StageReached { stage: Stage::Ready, uptime_ms: 1 }));
    let (vm, mut port) = Vm::run(move |socket| pour(&socket, &flood, usize::MAX));
    let deadline = Instant::now() + LONG;
    let error = std::iter::repeat_with(|| port.next(deadline)).find_map(Result::err);
    assert!(matches!(error, Some(ControlError::Flood)), "{error:?}");
    drop(port);
    vm.end();
}

#[test]
fn messages_that_are_here_already_do_not_outlast_a_deadline() {
    let (vm, mut port) = Vm::run(|mut socket| {
        let one = encode(&GuestMessage::Stage(StageReached { stage: Stage::Ready, uptime_ms: 1 }));
        socket.write_all(&one.repeat(100)).expect("writes");
        let _ = io::copy(&mut socket, &mut io::sink());
    });
    port.next(Instant::now() + LONG).expect("hears");
    assert!(!port.lines.is_empty(), "more of them are held");
    let past = Instant::now();
    assert!(matches!(port.next(past), Err(ControlError::ReadTimeout)));
    drop(port);
    vm.end();
}

#[test]
fn a_guest_that_speaks_a_byte_at_a_time_is_not_waited_for() {
    let (vm, mut port) = Vm::run(|mut socket| {
        for byte in b"{\"type\":\"hello\",".iter().cycle() {
            if socket.write_all(&[*byte]).is_err() {
                return;
            }
            thread::yield_now();
        }
    });
    let deadline = Instant::now() + Duration::from_millis(200);
    let outcome = port.next(deadline);
    assert!(matches!(outcome, Err(ControlError::ReadTimeout | ControlError::Flood)), "{outcome:?}");
    drop(port);
    vm.end();
}

#[test]
fn a_connection_that_is_cut_off_in_a_message_is_closed() {
    let (vm, mut port) = Vm::run(|mut socket| {
        // Unread data makes closing a reset.
        let mut one = [0];
        let _ = socket.read(&mut one);
        socket.write_all(b"{\"type\":\"he").expect("writes");
    });
    // The other side may be gone before everything is written.
    assert!(matches!(port.attach(), Ok(()) | Err(ControlError::Closed)));
    assert!(matches!(port.next(Instant::now() + LONG), Err(ControlError::Closed)));
    assert!(matches!(port.sync(), Err(ControlError::Closed)));
    vm.end();
}

#[test]
fn deep_and_broken_messages_are_garbage() {
    let (vm, mut port) = Vm::run(|mut socket| {
        let deep =
            [b"{\"type\":\"failed\",\"reason\":".as_slice(), &b"[".repeat(60_000), b"\n"].concat();
        let surrogate = b"{\"type\":\"failed\",\"errand\":\"network\",\"reason\":\"\\ud800\"}\n";
        let raw = b"{\"type\":\"failed\",\"errand\":\"network\",\"reason\":\"\xff\xfe\"}\n";
        let number = b"{\"type\":\"stage\",\"stage\":\"ready\",\"uptime_ms\":1e999}\n";
        socket.write_all(&[deep.as_slice(), surrogate, raw, number].concat()).expect("writes");
        socket.write_all(&encode(&GuestMessage::Synced)).expect("writes");
    });
    assert_eq!(port.next(Instant::now() + LONG).expect("hears"), GuestMessage::Synced);
    vm.end();
}

#[test]
fn text_from_the_guest_is_sanitised() {
    let (vm, mut port) = Vm::run(|mut socket| {
        let reached = |uptime_ms| StageReached { stage: Stage::Root, uptime_ms };
        let stages = (0..1000).map(reached).collect();
        socket.write_all(&encode(&hello("\u{1b}[2J0.1", stages))).expect("writes");
        let reason = "\u{1b}]0;you are hacked\u{7}".repeat(500);
        socket
            .write_all(&encode(&GuestMessage::Failed { task: AgentTask::Network, reason }))
            .expect("writes");
    });
    let deadline = Instant::now() + LONG;
    let expected = vec![StageReached { stage: Stage::Root, uptime_ms: 0 }];
    assert_eq!(port.next(deadline).expect("hears"), hello("\u{FFFD}[2J0.1", expected));
    let Ok(GuestMessage::Failed { reason, .. }) = port.next(deadline) else { panic!("a failure") };
    assert!(!reason.chars().any(char::is_control));
    assert!(reason.chars().count() <= 500);
    vm.end();
}

#[test]
fn an_agent_of_another_version_is_refused() {
    let (vm, mut port) = Vm::run(|mut socket| {
        let line = br#"{"type":"hello","protocol":2,"agent_version":"","kernel":"","personalised":false,"stages":[]}"#;
        socket.write_all(line).expect("writes");
        socket.write_all(b"\n").expect("writes");
    });
    assert!(matches!(port.next(Instant::now() + LONG), Err(ControlError::OtherProtocol(2))));
    vm.end();
}

#[test]
fn silence_ends_at_the_deadline_and_cancelling_ends_it_sooner() {
    let (vm, mut port) = Vm::run(|mut socket| {
        let _ = io::copy(&mut socket, &mut io::sink());
    });
    assert!(matches!(
        port.next(Instant::now() + Duration::from_millis(30)),
        Err(ControlError::ReadTimeout)
    ));
    port.cancel.cancel();
    assert!(matches!(port.next(Instant::now() + LONG), Err(ControlError::Interrupted(_))));
    drop(port);
    vm.end();
}

#[test]
fn a_message_that_no_agent_would_take_is_not_sent() {
    let (vm, mut port) = Vm::run(|mut socket| {
        assert_eq!(io::copy(&mut socket, &mut io::sink()).expect("reads"), 0);
    });
    let mut personality = personality();
    personality.authorized_keys = vec!["k".repeat(MAX_LINE_BYTES)];
    assert!(matches!(port.personalise(personality), Err(ControlError::TooLong(_))));
    drop(port);
    vm.end();
}

#[test]
fn a_socket_that_never_comes_and_one_that_comes_late() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("control.sock");
    let soon = Instant::now() + Duration::from_millis(30);
    let error = ControlPort::connect(&socket, soon, &Cancel::new()).expect_err("is not there");
    assert!(matches!(error, ControlError::Connect { .. }));
    let late = thread::spawn({
        let socket = socket.clone();
        move || ControlPort::connect(&socket, Instant::now() + LONG, &Cancel::new()).map(drop)
    });
    let _listener = UnixListener::bind(&socket).expect("binds");
    late.join().expect("runs").expect("connects");
}

#[test]
fn a_crowd_before_the_socket_is_busy_not_endless() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("control.sock");
    let listener = UnixListener::bind(&socket).expect("binds");
    rustix::net::listen(&listener, 1).expect("shortens the queue");
    let mut waiting = Vec::new();
    let soon = || Instant::now() + Duration::from_millis(20);
    // There is no `accept`, so the queue fills.
    let error = loop {
        match ControlPort::connect(&socket, soon(), &Cancel::new()) {
            Ok(port) => waiting.push(port),
            Err(error) => break error,
        }
        assert!(waiting.len() < 10);
    };
    assert_eq!(error.kind(), Kind::Busy);
}
