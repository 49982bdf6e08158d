//! OpenSSH as the client.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use castra_engine::guest::VmKeys;
use castra_wire::{EXEC_SUBSYSTEM, ExecHeader};

use crate::ssh::guest::{Guest, eventually, pattern};
use crate::ssh::over_ssh::copy::same_trees;

/// Returns one of OpenSSH's programs, set up for a guest.
fn client(guest: &Guest, program: &str) -> Command {
    let shown =
        Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    shown.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"));
    let keys = VmKeys::load_or_create(&guest.layout).expect("reads keys");
    keys.write_known_hosts(&guest.layout, "castra-box", guest.target.address.port(), None)
        .expect("writes");
    let mut command = Command::new(program);
    command.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes"]);
    command.args(["-o", "GlobalKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"]);
    command.arg("-o").arg(format!("UserKnownHostsFile={}", guest.layout.known_hosts().display()));
    command.arg("-o").arg(format!("IdentityFile={}", guest.layout.client_key().display()));
    command.arg("-o").arg(format!("Port={}", guest.target.address.port()));
    command.arg("-o").arg(format!("User={}", guest.target.user));
    command
}

/// Feeds a client and takes what it prints.
fn run(mut command: Command, input: Vec<u8>) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("is a pipe");
    let writer = thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("ends");
    // A command may end without reading everything.
    let _ = writer.join().expect("ends");
    output
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn commands_streams_and_codes() {
    let guest = Guest::start();
    let mut ssh = client(&guest, "ssh");
    ssh.args(["127.0.0.1", "cat; echo err >&2; exit 42"]);
    let output = run(ssh, b"in".to_vec());
    assert_eq!(output.status.code(), Some(42), "{}", said(&output));
    assert_eq!(output.stdout, b"in");
    assert!(said(&output).ends_with("err\n"), "{}", said(&output));
}

/// The header of [`castra_wire::ExecHeader`] is a part of a stream like any other: in pieces,
/// followed by stdin.
#[test]
fn a_header_comes_in_any_pieces() {
    let guest = Guest::start();
    let arguments = ["sh", "-c", "cat; exit $1", "sh", "42"].map(Into::into).to_vec();
    let header = ExecHeader { arguments, environment: Vec::new(), directory: None }
        .encode()
        .expect("encodes");
    let mut ssh = client(&guest, "ssh");
    let mark = guest.scratch().join("connected");
    ssh.arg("-o").arg(format!("LocalCommand=touch {}", mark.display()));
    ssh.args(["-o", "PermitLocalCommand=yes", "-s", "127.0.0.1", EXEC_SUBSYSTEM]);
    let mut child = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("is a pipe");
    // Until then the header would arrive in one read.
    eventually("ssh is connected", || mark.exists());
    let (pieces, last) = header.split_at(header.len() - 3);
    for piece in pieces.chunks(5) {
        stdin.write_all(piece).expect("writes");
        thread::sleep(Duration::from_millis(20));
    }
    stdin.write_all(&[last, b"input"].concat()).expect("writes");
    drop(stdin);
    let output = child.wait_with_output().expect("ends");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(42), &b"input"[..]));
}

#[test]
fn what_is_no_header_runs_nothing() {
    let guest = Guest::start();
    let whole =
        ExecHeader { arguments: vec!["true".into()], environment: Vec::new(), directory: None }
            .encode()
            .expect("encodes");
    for bytes in
        [Vec::new(), whole[..whole.len() - 1].to_vec(), vec![0xff; 64], vec![0, 0, 0, 1, 7]]
    {
        let mut ssh = client(&guest, "ssh");
        ssh.args(["-s", "127.0.0.1", EXEC_SUBSYSTEM]);
        let output = run(ssh, bytes);
        assert_eq!(
            (output.status.code(), &output.stdout[..]),
            (Some(255), &b""[..]),
            "{}",
            said(&output)
        );
    }
    assert_eq!(
        guest.capture("exit 3").exit,
        castra_engine::guest::ssh::GuestExit::Code(3),
        "the server is well"
    );
}

/// An authentication agent of this test's own, ended with it.
struct AuthAgent(Child, std::path::PathBuf);

impl AuthAgent {
    fn start(directory: &Path) -> Self {
        let socket = directory.join("host-agent");
        let mut agent = Command::new("ssh-agent");
        let agent =
            agent.args(["-D", "-a"]).arg(&socket).stdout(Stdio::null()).spawn().expect("starts");
        eventually("the agent listens", || socket.exists());
        Self(agent, socket)
    }

    fn add(&self, key: &Path) {
        let added =
            Command::new("ssh-add").arg(key).env("SSH_AUTH_SOCK", &self.1).output().expect("runs");
        assert!(added.status.success(), "{}", said(&added));
    }
}

impl Drop for AuthAgent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_authentication_agent_is_forwarded_and_its_socket_ends_with_the_connection() {
    let guest = Guest::start();
    let agent = AuthAgent::start(guest.scratch());
    agent.add(&guest.layout.client_key());
    let with_agent = |line: &str| {
        let mut ssh = client(&guest, "ssh");
        ssh.env("SSH_AUTH_SOCK", &agent.1).args(["-A", "127.0.0.1", line]);
        run(ssh, Vec::new())
    };
    let script =
        "stat -c %a ${SSH_AUTH_SOCK%/*} && echo $SSH_AUTH_SOCK && ssh-add -l && ssh-add -l";
    let output = with_agent(script);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(output.status.code(), Some(0), "{stdout}{}", said(&output));
    assert_eq!(lines[0], "700");
    assert!(lines[2..].iter().all(|line| line.contains("ED25519")), "{stdout}");
    let socket = Path::new(lines[1]);
    eventually("the socket is gone", || {
        !socket.exists() && !socket.parent().is_some_and(Path::exists)
    });

    let mut ssh = client(&guest, "ssh");
    ssh.env("SSH_AUTH_SOCK", &agent.1).args(["-a", "127.0.0.1", "echo [$SSH_AUTH_SOCK]"]);
    assert_eq!(run(ssh, Vec::new()).stdout, b"[]\n", "no agent without -A");
}

#[test]
fn a_lot_of_data_both_ways_while_keys_change() {
    let guest = Guest::start();
    let mut ssh = client(&guest, "ssh");
    ssh.args(["-o", "RekeyLimit=1M", "127.0.0.1", "cat"]);
    let sent = pattern(30 << 20);
    let output = run(ssh, sent.clone());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(output.stdout == sent, "{} bytes", output.stdout.len());
}

/// The worst moment for a key exchange: the command's output waits for its reader, and its input
/// for its output.
#[test]
fn keys_change_while_everything_waits() {
    let guest = Guest::start();
    let mut ssh = client(&guest, "ssh");
    ssh.args(["-v", "-o", "RekeyLimit=default 1s", "127.0.0.1", "cat"]);
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = ssh.spawn().map(Ended).expect("starts");
    let mut stdin = child.0.stdin.take().expect("is a pipe");
    let mut stdout = child.0.stdout.take().expect("is a pipe");
    let log = BufReader::new(child.0.stderr.take().expect("is a pipe"));
    let (exchange, exchanges) = mpsc::channel();
    let listener = thread::spawn(move || {
        for line in
            log.lines().map_while(Result::ok).filter(|line| line.contains("SSH2_MSG_KEXINIT sent"))
        {
            // Only the first two are waited for.
            let _ = exchange.send(line);
        }
    });
    let writer = thread::spawn(move || stdin.write_all(&pattern(20 << 20)));
    let mut first = [0];
    stdout.read_exact(&mut first).expect("starts");
    // The second is ssh's time limit, with everything full meanwhile.
    for number in 1..=2 {
        exchanges
            .recv_timeout(Duration::from_secs(20))
            .unwrap_or_else(|_| panic!("exchange {number} begins"));
    }
    let mut received = first.to_vec();
    stdout.read_to_end(&mut received).expect("continues");
    writer.join().expect("ends").expect("writes");
    assert!(received == pattern(20 << 20), "{} bytes", received.len());
    drop(child);
    listener.join().expect("ends");
}

#[test]
fn a_terminal() {
    let guest = Guest::start();
    let mut ssh = client(&guest, "ssh");
    ssh.args(["-tt", "127.0.0.1", "test -t 0 && test -t 1 && echo terminal"]);
    let output = run(ssh, Vec::new());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(output.stdout, b"terminal\r\n");
}

#[test]
fn input_of_a_terminal_ends() {
    let guest = Guest::start();
    for input in ["", "a line\n", "a line\nand a half"] {
        let mut ssh = client(&guest, "ssh");
        // It reads lines, and ends with its input.
        ssh.args(["-tt", "127.0.0.1", "stty -echo; echo ready; cat; echo ended"]);
        let output = run(ssh, input.into());
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        let text = String::from_utf8(output.stdout).expect("is text");
        assert!(text.contains(&input.replace('\n', "\r\n")), "{text:?}");
        assert!(text.ends_with("ended\r\n"), "{text:?}");
    }
}

#[test]
fn several_sessions_on_one_connection() {
    let guest = Guest::start();
    let control = guest.scratch().join("mux");
    let mut first = client(&guest, "ssh");
    first.arg("-M").arg("-S").arg(&control).args(["-N", "127.0.0.1"]);
    let master = first.stdin(Stdio::null()).spawn().map(Ended).expect("starts");
    eventually("the connection is up", || control.exists());
    thread::scope(|scope| {
        for number in 0..5_u8 {
            let (guest, control) = (&guest, &control);
            scope.spawn(move || {
                let mut ssh = client(guest, "ssh");
                ssh.arg("-S").arg(control).args(["127.0.0.1", &format!("cat; exit {number}")]);
                let sent = pattern(3 << 20);
                let output = run(ssh, sent.clone());
                assert_eq!(output.status.code(), Some(number.into()), "{}", said(&output));
                assert!(output.stdout == sent);
            });
        }
    });
    drop(master);
}

#[test]
fn sftp_does_as_its_commands_say() {
    let guest = Guest::start();
    let mut sftp = client(&guest, "sftp");
    let (here, there) = (guest.scratch().join("here"), guest.scratch().join("there"));
    fs::write(&here, pattern(5 << 20)).expect("writes");
    let (here, there) = (here.display().to_string(), there.display().to_string());
    sftp.args(["-b", "-", "127.0.0.1"]);
    let batch = format!(
        "mkdir {there}\nput {here} {there}/a\nget {there}/a {here}.back\n\
        rename {there}/a {there}/b\n\
        ln -s b {there}/c\nln {there}/b {there}/d\nchmod 600 {there}/b\nls -l {there}\n\
        df {there}\n\
        rm {there}/d\nmkdir {there}/e\nrmdir {there}/e\ncd {there}\npwd\n"
    );
    let output = run(sftp, batch.into_bytes());
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("Remote working directory: {there}")), "{text}");
    assert!(fs::read(format!("{here}.back")).expect("exists") == pattern(5 << 20));
    assert_eq!(fs::read_link(format!("{there}/c")).expect("is a link"), Path::new("b"));
    assert!(!Path::new(&format!("{there}/a")).exists());
    assert!(!Path::new(&format!("{there}/d")).exists());
}

#[test]
fn scp_copies_trees() {
    let guest = Guest::start();
    let mut scp = client(&guest, "scp");
    let (here, there) = (guest.scratch().join("here"), guest.scratch().join("there"));
    fs::create_dir_all(here.join("sub")).expect("makes directories");
    fs::write(here.join("sub/file"), pattern(100_000)).expect("writes");
    scp.args(["-r", "-p"]).arg(&here).arg(format!("127.0.0.1:{}", there.display()));
    let output = run(scp, Vec::new());
    assert!(output.status.success(), "{}", said(&output));
    assert!(fs::read(there.join("sub/file")).expect("exists") == pattern(100_000));
}

#[test]
fn scp_and_sftp_copy_names_of_every_byte() {
    let guest = Guest::start();
    let mut scp = client(&guest, "scp");
    let [here, there, back, got] =
        ["here", "there", "back", "got"].map(|name| guest.scratch().join(name));
    // OpenSSH's clients follow links and refuse dangling ones, so there are none.
    fs::create_dir(&here).expect("makes a directory");
    for byte in (1..=255_u8).filter(|byte| *byte != b'/') {
        fs::write(here.join(OsStr::from_bytes(&[b'n', byte])), [byte]).expect("writes");
    }
    scp.arg("-r").arg(&here).arg(format!("127.0.0.1:{}", there.display()));
    let output = run(scp, Vec::new());
    assert!(output.status.success(), "{}", said(&output));
    same_trees(&here, &there);
    let mut scp = client(&guest, "scp");
    scp.arg("-r").arg(format!("127.0.0.1:{}", there.display())).arg(&back);
    let output = run(scp, Vec::new());
    assert!(output.status.success(), "{}", said(&output));
    same_trees(&here, &back);
    let mut sftp = client(&guest, "sftp");
    sftp.args(["-b", "-", "127.0.0.1"]);
    let output = run(sftp, format!("get -r {} {}\n", there.display(), got.display()).into_bytes());
    assert!(output.status.success(), "{}", said(&output));
    same_trees(&here, &got);
}

/// A process that ends with its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Echoes every connection, until the test's process ends.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = listener.local_addr().expect("has an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                std::io::copy(&mut &stream, &mut &stream)
                    .map(|_| stream.shutdown(std::net::Shutdown::Write))
            });
        }
    });
    port
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("has an address").port()
}

fn talk(port: u16) -> std::io::Result<Vec<u8>> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    let sent = pattern(4 << 20);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = (&stream).write_all(&sent);
            stream.shutdown(std::net::Shutdown::Write)
        });
        let mut received = Vec::new();
        (&stream).read_to_end(&mut received).map(|_| received)
    })
}

#[test]
fn forwards_both_ways() {
    let guest = Guest::start();
    let mut ssh = client(&guest, "ssh");
    let (target, local, remote) = (echo(), free_port(), free_port());
    ssh.args(["-N", "-o", "ExitOnForwardFailure=yes"]);
    ssh.arg("-L").arg(format!("{local}:localhost:{target}"));
    ssh.arg("-R").arg(format!("{remote}:127.0.0.1:{target}"));
    let forwarding = Ended(ssh.arg("127.0.0.1").stdin(Stdio::null()).spawn().expect("starts"));
    for port in [local, remote] {
        eventually("the forward is up", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        for _ in 0..3 {
            let received = talk(port).expect("talks");
            assert!(
                received == pattern(4 << 20),
                "{} bytes on {port}, -L is {local}",
                received.len()
            );
        }
    }
    drop(forwarding);
    eventually("the remote port is closed", || TcpStream::connect(("127.0.0.1", remote)).is_err());
}

#[test]
fn a_forward_to_nowhere_is_refused() {
    let guest = Guest::start();
    let mut ssh = client(&guest, "ssh");
    ssh.arg("-W").arg(format!("localhost:{}", free_port())).arg("127.0.0.1");
    let output = run(ssh, Vec::new());
    assert!(!output.status.success());
    assert!(said(&output).contains("onnect failed"), "{}", said(&output));
}

/// Greets every connection to a socket, until the test's process ends.
fn greeter(path: &Path) {
    let listener = UnixListener::bind(path).expect("binds");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.write_all(b"hello from the socket");
        }
    });
}

/// Reads a port until its end.
fn heard(port: u16) -> String {
    let mut text = String::new();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    stream.read_to_string(&mut text).expect("reads");
    text
}

#[test]
fn a_forward_to_a_unix_socket() {
    let guest = Guest::start();
    let (socket, absent) =
        (guest.scratch().join("service.sock"), guest.scratch().join("absent.sock"));
    greeter(&socket);
    let log = guest.scratch().join("log");
    let (port, nowhere) = (free_port(), free_port());
    let mut ssh = client(&guest, "ssh");
    ssh.args(["-N", "-E"]).arg(&log);
    ssh.arg("-L").arg(format!("{port}:{}", socket.display()));
    ssh.arg("-L").arg(format!("{nowhere}:{}", absent.display()));
    let forwarding = Ended(ssh.arg("127.0.0.1").stdin(Stdio::null()).spawn().expect("starts"));
    eventually("the forward is up", || TcpStream::connect(("127.0.0.1", nowhere)).is_ok());
    for _ in 0..3 {
        assert_eq!(heard(port), "hello from the socket");
    }
    assert_eq!(heard(nowhere), "");
    eventually("the reason is printed", || {
        fs::read_to_string(&log).unwrap_or_default().contains("onnect failed")
    });
    drop(forwarding);
}

/// The services on both sides see the connecting user, and a directory that is not this user's is
/// closed to them.
#[test]
fn a_unix_socket_is_reached_with_the_users_rights() {
    if !rustix::process::geteuid().is_root() {
        castra_test_support::skip("only root can become another user");
        return;
    }
    let mut guest = Guest::start();
    guest.target.user = "nobody".into();
    let open = guest.scratch().join("open");
    let closed = guest.scratch().join("closed");
    for (directory, mode) in [(guest.scratch(), 0o711), (&open, 0o711), (&closed, 0o700)] {
        fs::create_dir_all(directory).expect("makes a directory");
        fs::set_permissions(directory, fs::Permissions::from_mode(mode)).expect("changes the mode");
    }
    let listeners = [&open, &closed].map(|directory| {
        let path = directory.join("service.sock");
        let listener = UnixListener::bind(&path).expect("binds");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("changes the mode");
        listener
    });
    let ports = [free_port(), free_port()];
    let mut ssh = client(&guest, "ssh");
    ssh.arg("-N");
    for (port, directory) in ports.iter().zip([&open, &closed]) {
        ssh.arg("-L").arg(format!("{port}:{}/service.sock", directory.display()));
    }
    let forwarding = Ended(ssh.arg("127.0.0.1").stdin(Stdio::null()).spawn().expect("starts"));
    eventually("the forward is up", || TcpStream::connect(("127.0.0.1", ports[1])).is_ok());
    let client = TcpStream::connect(("127.0.0.1", ports[0])).expect("connects");
    let (stream, _) = listeners[0].accept().expect("accepts");
    let peer = rustix::net::sockopt::socket_peercred(&stream).expect("credentials");
    assert!(!peer.uid.is_root() && !peer.gid.is_root(), "{peer:?}");
    drop((stream, client));
    assert_eq!(heard(ports[1]), "");
    listeners[1].set_nonblocking(true).expect("does not wait");
    assert!(listeners[1].accept().is_err(), "it was reached");
    drop(forwarding);
}

#[test]
fn what_is_not_forwarded_is_refused_by_the_clients_own_words() {
    let guest = Guest::start();
    let mut ssh = client(&guest, "ssh");
    ssh.env("DISPLAY", "127.0.0.1:99").args([
        "-o",
        "XAuthLocation=/nonexistent",
        "-Y",
        "127.0.0.1",
        "echo on",
    ]);
    let output = run(ssh, Vec::new());
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), &b"on\n"[..]),
        "{}",
        said(&output)
    );
    assert!(said(&output).contains("X11 forwarding request failed"), "{}", said(&output));
    let mut ssh = client(&guest, "ssh");
    let back = guest.scratch().join("back.sock");
    ssh.args(["-o", "ExitOnForwardFailure=yes", "-R"])
        .arg(format!("{}:127.0.0.1:1", back.display()));
    ssh.args(["127.0.0.1", "true"]);
    let output = run(ssh, Vec::new());
    assert_ne!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains("remote port forwarding failed for listen path"),
        "{}",
        said(&output)
    );
    assert!(!back.exists());
}
