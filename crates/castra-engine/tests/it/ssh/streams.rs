//! Stream ports that cannot be used, and guests that misbehave on them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use castra_engine::cancel::Cancel;
use castra_engine::guest::ssh::{
    Captured, Command, ExecRequest, GuestExit, SshError, Target, capture, download, exec, proxy,
};
use castra_engine::guest::{HeldPorts, StreamPort, Streams, VmKeys};
use castra_engine::layout::ProjectLayout;
use castra_wire::stream::{
    Decoder, Event, Expected, Frame, Hello, Host, MAX_PAYLOAD_BYTES, Refusal, STREAM_WINDOW_BYTES,
    Tag, Target as End,
};
use castra_wire::{SSH_PORT, Session};

use crate::ssh::guest::{Guest, UNREACHABLE, pipes, ports_below};

/// Time after which castra does not wait for a port alone.
const PATIENCE: Duration = Duration::from_secs(2);

/// Longest time for anything that needs no patience, on a busy machine.
const SOON: Duration = Duration::from_millis(1900);

fn run(target: &Target) -> Result<Captured, SshError> {
    capture(&Cancel::new(), target, ["echo", "hello"].map(Into::into).to_vec(), 64 << 20)
}

/// Runs a command in a guest that has SSH and these ports, and returns the time it took.
fn run_with(guest: &Guest, streams: Streams) -> Duration {
    let started = Instant::now();
    let target = Target { streams: Some(streams), ..guest.target.clone() };
    assert_eq!(run(&target).expect("runs").stdout, b"hello\n");
    started.elapsed()
}

/// Starts a guest without SSH that does this with each connection to its only port.
fn port(mut serve: impl FnMut(UnixStream) + Send + 'static) -> (tempfile::TempDir, Target) {
    let scratch = tempfile::tempdir().expect("makes a directory");
    let layout = ProjectLayout::unchecked(scratch.path().join(".castra")).vm("box");
    let keys = VmKeys::load_or_create(&layout).expect("makes keys");
    let ports = ports_below(scratch.path(), 1);
    let listener = UnixListener::bind(ports.sockets.stream(0)).expect("binds");
    // Ends with the test's process.
    thread::spawn(move || listener.incoming().flatten().for_each(&mut serve));
    let target =
        Target { streams: Some(Streams::Shared(ports)), ..keys.target(UNREACHABLE, "root") };
    (scratch, target)
}

/// A host's session, as the guest sees it.
struct Peer {
    stream: UnixStream,
    decoder: Decoder,
    hello: Hello,
}

impl Peer {
    /// Waits for a host's hello, and does not answer.
    fn meet(stream: UnixStream) -> Option<Self> {
        let hello = Hello::of(Session::new(0));
        let mut peer = Self { stream, decoder: Decoder::new(Expected::Any), hello };
        match peer.next()? {
            Event::Hello(hello) => peer.hello = hello,
            other => panic!("{other:?}"),
        }
        Some(peer)
    }

    /// Returns the next event; `None` once the host has hung up.
    fn next(&mut self) -> Option<Event> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(event) = self.decoder.next_event() {
                return Some(event);
            }
            let count = self.stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
            self.decoder.buffer().extend_from_slice(&buffer[..count]);
        }
    }

    /// Waits for a request and returns its stream; `None` once the host has hung up.
    fn requested(&mut self) -> Option<u16> {
        loop {
            if let Event::Frame(stream, Frame::Open(_)) = self.next()? {
                return Some(stream);
            }
        }
    }

    /// Waits for a frame that is of this kind.
    fn received(&mut self, is_wanted: impl Fn(&Frame) -> bool) -> (u16, Frame) {
        loop {
            match self.next().expect("has not hung up") {
                Event::Frame(stream, frame) if is_wanted(&frame) => return (stream, frame),
                _ => {}
            }
        }
    }

    /// Sends bytes, unless the host has hung up.
    fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    fn frames(&self, stream: u16, frames: &[Frame]) -> BytesMut {
        encoded(stream, frames, self.hello.tag())
    }

    fn until_hung_up(mut self) {
        while self.next().is_some() {}
    }
}

fn encoded(stream: u16, frames: &[Frame], tag: Tag) -> BytesMut {
    let mut bytes = BytesMut::new();
    for frame in frames {
        frame.encode(stream, tag, &mut bytes);
    }
    bytes
}

/// Frames of `echo hello`.
fn answer() -> Vec<Frame> {
    let hello = Frame::Data(Bytes::from_static(b"hello\n"));
    vec![Frame::Opened, hello, Frame::ExitStatus(0), Frame::EndOfData, Frame::Close]
}

/// Starts a guest that answers hellos, and then sends this after a request.
fn hostile(act: impl Fn(&mut Peer, u16) + Send + 'static) -> (tempfile::TempDir, Target) {
    port(move |stream| {
        let Some(mut peer) = Peer::meet(stream) else { return };
        peer.send(&peer.hello.encode());
        if let Some(stream) = peer.requested() {
            act(&mut peer, stream);
            peer.until_hung_up();
        }
    })
}

#[test]
fn ports_that_are_in_use_gone_or_dead_leave_ssh() {
    let guest = Guest::start();
    let ports = guest.serve_ports(2);
    let in_use = [(); 2].map(|()| StreamPort::acquire(&ports).expect("no error").expect("is free"));
    assert!(run_with(&guest, Streams::Shared(ports.clone())) < SOON);
    drop(in_use);
    std::fs::remove_file(ports.sockets.stream(0)).expect("removes");
    assert!(run_with(&guest, Streams::Shared(ports.clone())) < SOON);
    drop(UnixListener::bind(ports.sockets.stream(0)).expect("binds"));
    assert!(run_with(&guest, Streams::Shared(ports.clone())) < SOON);
    std::fs::remove_dir_all(ports.sockets.directory()).expect("removes");
    assert!(run_with(&guest, Streams::Shared(ports)) < SOON);
}

#[test]
fn a_port_that_hangs_up_or_speaks_a_newer_protocol_leaves_ssh() {
    let guest = Guest::start();
    let (_scratch, hung_up) = port(drop);
    assert!(run_with(&guest, hung_up.streams.expect("is there")) < SOON);
    let (_scratch, newer) = port(|stream| {
        let Some(mut peer) = Peer::meet(stream) else { return };
        let newer = Hello { version: peer.hello.version + 1, ..peer.hello };
        peer.send(&newer.encode());
        peer.until_hung_up();
    });
    assert!(run_with(&guest, newer.streams.expect("is there")) < SOON);
}

#[test]
fn a_silent_port_leaves_ssh_after_a_while() {
    let guest = Guest::start();
    let ports = ports_below(guest.scratch(), 1);
    let _silent = UnixListener::bind(ports.sockets.stream(0)).expect("binds");
    assert!(run_with(&guest, Streams::Shared(ports.clone())) >= PATIENCE);
    let free = StreamPort::acquire(&ports).expect("no error");
    assert!(free.is_some(), "nothing holds the port any more");
}

/// As while the guest boots, or its network is down.
#[test]
fn a_slow_port_is_waited_for_although_ssh_fails() {
    let (_scratch, target) = port(|stream| {
        thread::sleep(PATIENCE + Duration::from_millis(500));
        let Some(mut peer) = Peer::meet(stream) else { return };
        peer.send(&peer.hello.encode());
        if let Some(stream) = peer.requested() {
            peer.send(&peer.frames(stream, &answer()));
            peer.until_hung_up();
        }
    });
    assert_eq!(run(&target).expect("runs").stdout, b"hello\n");
}

#[test]
fn commands_wait_until_the_guest_has_its_identity() {
    let guest = Guest::start_without_network();
    guest.gate.send_replace(false);
    thread::scope(|scope| {
        let early = scope.spawn(|| run(&guest.target));
        thread::sleep(Duration::from_millis(300));
        assert!(!early.is_finished());
        guest.gate.send_replace(true);
        assert_eq!(early.join().expect("ends").expect("runs").stdout, b"hello\n");
    });
}

#[test]
fn an_unknown_user_is_named() {
    let guest = Guest::start_without_network();
    let target = Target { user: "no-such-user".into(), ..guest.target.clone() };
    let error = run(&target).expect_err("is refused");
    assert_eq!(error.to_string(), "the VM has no user no-such-user");
    let goal = guest.scratch().join("goal");
    let error = download(&target, "file", &goal, &mut |_| ()).expect_err("is refused");
    assert_eq!(error.to_string(), "the VM has no user no-such-user");
}

#[test]
fn a_port_may_close_at_any_point() {
    // Of the hello and the frames.
    let (hello, exit) = {
        let tag = Hello::of(Session::new(0)).tag();
        let hello = Hello::of(Session::new(0)).encode().len();
        (hello, hello + encoded(1, &answer()[..3], tag).len())
    };
    for end in (0..exit + 1).step_by(3) {
        let (_scratch, target) = port(move |stream| {
            let Some(mut peer) = Peer::meet(stream) else { return };
            let own = peer.hello.encode();
            peer.send(&own[..end.min(own.len())]);
            if end < hello {
                return;
            }
            if let Some(stream) = peer.requested() {
                let frames = peer.frames(stream, &answer());
                peer.send(&frames[..end - hello]);
            }
        });
        match run(&target) {
            // SSH is tried, and is not there.
            Err(SshError::Unreachable { .. }) => assert!(end < hello, "{end}"),
            Err(SshError::Lost) => assert!((hello..exit).contains(&end), "{end}"),
            other => assert!(end >= exit && other.is_ok(), "{end}: {other:?}"),
        }
    }
}

#[test]
fn what_breaks_the_protocol_ends_the_session() {
    let wrong_tag = Hello::of(Session::new(u64::MAX)).tag();
    let flood = vec![Frame::Ping; 10];
    type Act = Arc<dyn Fn(&Peer, u16) -> BytesMut + Send + Sync>;
    let acts: [(&str, Act); 7] = [
        ("another tag", Arc::new(move |_, stream| encoded(stream, &answer(), wrong_tag))),
        ("no frame", Arc::new(|_, _| BytesMut::from(&[0; 64][..]))),
        (
            "an endless frame",
            Arc::new(|_, _| BytesMut::from(&[1, 0, 0, 1, 255, 255, 255, 255][..])),
        ),
        ("a request", Arc::new(|peer, _| peer.frames(7, &[Frame::Open(Bytes::new())]))),
        ("a signal", Arc::new(|peer, stream| peer.frames(stream, &[Frame::Signal(Bytes::new())]))),
        ("another's hello", Arc::new(|_, _| BytesMut::from(&*Hello::of(Session::new(9)).encode()))),
        ("data before the answer", Arc::new(|peer, stream| peer.frames(stream, &answer()[1..]))),
    ];
    for (what, act) in acts {
        let flood = flood.clone();
        let (_scratch, target) = hostile(move |peer, stream| {
            peer.send(&peer.frames(0, &flood));
            peer.send(&act(peer, stream));
        });
        let started = Instant::now();
        let error = run(&target).expect_err(what);
        assert!(matches!(error, SshError::Lost), "{what}: {error:?}");
        assert!(started.elapsed() < SOON, "{what}");
    }
}

#[test]
fn refusals_are_errors_of_their_own() {
    for reason in [Refusal::Malformed, Refusal::Unavailable] {
        let (_scratch, target) = hostile(move |peer, stream| {
            peer.send(&peer.frames(stream, &[Frame::Refused(reason), Frame::Close]));
        });
        let error = run(&target).expect_err("is refused");
        assert_eq!(error.to_string(), "the VM did not start the command");
    }
}

#[test]
fn frames_of_streams_that_were_never_opened_change_nothing() {
    let (_scratch, target) = hostile(|peer, stream| {
        let other = [Frame::Data(vec![1; 1000].into()), Frame::Grant(9), Frame::Close];
        for _ in 0..100 {
            peer.send(&peer.frames(stream + 1, &other));
        }
        peer.send(&peer.frames(stream, &answer()));
    });
    let output = run(&target).expect("runs");
    assert_eq!((output.exit, &*output.stdout), (GuestExit::Code(0), &b"hello\n"[..]));
}

#[test]
fn a_guest_that_sends_more_than_was_granted_is_cut_off() {
    let (_scratch, target) = hostile(|peer, stream| {
        peer.send(&peer.frames(stream, &[Frame::Opened]));
        let most = [Frame::Data(vec![1; MAX_PAYLOAD_BYTES].into())];
        let frame = peer.frames(stream, &most);
        for _ in 0..3 * STREAM_WINDOW_BYTES as usize / MAX_PAYLOAD_BYTES {
            peer.send(&frame);
        }
    });
    let (stdio, _stdin, _unread, _stderr) = pipes();
    let request = ExecRequest {
        command: Command::Line("true".into()),
        tty: None,
        environment: Vec::new(),
        directory: None,
        stdio,
    };
    let error = exec(&Cancel::new(), &target, request).expect_err("is cut off");
    assert!(matches!(error, SshError::Lost), "{error:?}");
}

#[test]
fn a_guest_that_never_answers_a_request_can_be_interrupted() {
    let (_scratch, target) = hostile(|_, _| ());
    let cancel = Cancel::new();
    thread::scope(|scope| {
        let argv = vec!["true".into()];
        let waiting = scope.spawn(|| capture(&cancel, &target, argv, 1000));
        thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        cancel.cancel();
        let error = waiting.join().expect("ends").expect_err("is interrupted");
        assert!(matches!(error, SshError::Interrupted), "{error:?}");
    });
}

/// The server ends its side while the client's is still open.
#[test]
fn other_ssh_clients_reach_the_server_in_the_guest() {
    let (_scratch, target) = port(|stream| {
        let Some(mut peer) = Peer::meet(stream) else { return };
        peer.send(&peer.hello.encode());
        let (stream, open) = peer.received(|frame| matches!(frame, Frame::Open(_)));
        let Frame::Open(end) = open else { panic!("{open:?}") };
        let server = Host { name: "127.0.0.1".into(), port: SSH_PORT };
        assert_eq!(End::decode(&end), Ok(End::Tcp(server)));
        peer.send(&peer.frames(stream, &[Frame::Opened]));
        let (_, greeting) = peer.received(|frame| matches!(frame, Frame::Data(_)));
        peer.send(&peer.frames(stream, &[greeting, Frame::EndOfData]));
        peer.until_hung_up();
    });
    let (stdio, stdin, stdout, _) = pipes();
    let mut client = File::from(stdin);
    client.write_all(b"SSH-2.0-client").expect("writes");
    let input = stdio.stdin.expect("is a pipe");
    assert!(proxy(&target, input, stdio.stdout).expect("joins"));
    let mut received = Vec::new();
    File::from(stdout).read_to_end(&mut received).expect("reads");
    assert_eq!(received, b"SSH-2.0-client");
}

#[test]
fn without_a_port_other_ssh_clients_are_left_to_the_network() {
    let guest = Guest::start();
    let (stdio, _stdin, _stdout, _) = pipes();
    let input = stdio.stdin.expect("is a pipe");
    assert!(!proxy(&guest.target, input, stdio.stdout).expect("no error"));
}

/// A throwaway VM's sockets are removed, but commands follow each other on the ports it holds.
#[test]
fn held_ports_serve_one_command_after_another() {
    let guest = Guest::start();
    let ports = guest.serve_ports(2);
    let held = HeldPorts::hold(&ports, 2).expect("takes both");
    std::fs::remove_dir_all(ports.sockets.directory()).expect("removed");
    let target =
        Target { streams: Some(Streams::Held(held)), address: UNREACHABLE, ..guest.target.clone() };
    for _ in 0..5 {
        assert_eq!(run(&target).expect("runs").stdout, b"hello\n");
    }
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| run(&target).expect("runs").stdout));
        for one in both {
            assert_eq!(one.join().expect("no panic"), b"hello\n");
        }
    });
}

/// Programs on a mount that does not answer cannot even be executed. A lease of the file stands in
/// for that mount: the kernel lets others that open the file wait until it is given up.
#[test]
fn a_program_that_cannot_be_read_holds_up_no_other() {
    const LEASE: &str = "import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('leased', flush=True)
signal.pause()";
    let guest = Guest::start();
    let streams = Some(Streams::Shared(guest.serve_ports(3)));
    let target = Target { streams, address: UNREACHABLE, ..guest.target.clone() };
    let program = guest.scratch().join("hung");
    std::fs::copy("/bin/echo", &program).expect("copied");
    let mut lease = std::process::Command::new("python3")
        .args(["-c", LEASE])
        .arg(&program)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python3");
    let mut said = [0; 7];
    lease.stdout.as_mut().expect("a pipe").read_exact(&mut said).expect("leased");
    thread::scope(|scope| {
        let (stdio, to_early, from_early, _errors) = pipes();
        let early = scope.spawn(|| {
            let (command, environment) = (Command::Line("cat".to_owned()), Vec::new());
            let request = ExecRequest { command, tty: None, environment, directory: None, stdio };
            exec(&Cancel::new(), &target, request).expect("runs")
        });
        let (mut to_early, mut echoed) = (File::from(to_early), [0]);
        to_early.write_all(b"x").expect("written");
        File::from(from_early).read_exact(&mut echoed).expect("it runs");
        let hung = scope.spawn(|| {
            let command = vec![program.clone().into(), "freed".into()];
            capture(&Cancel::new(), &target, command, 1 << 20).expect("runs in the end").stdout
        });
        // Long enough for it to begin, on any machine where it begins at all.
        thread::sleep(Duration::from_millis(500));
        for _ in 0..3 {
            assert_eq!(run(&target).expect("the others run").stdout, b"hello\n");
        }
        drop(to_early);
        assert_eq!(early.join().expect("no panic"), GuestExit::Code(0), "its stdin has ended");
        assert!(!hung.is_finished(), "the lease held up nothing");
        lease.kill().expect("ends");
        assert_eq!(hung.join().expect("no panic"), b"freed\n");
    });
    lease.wait().expect("ended");
}
