//! A server in this process, and its keys.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use castra_engine::guest::ssh::{
    self, Captured, Command, ExecRequest, GuestExit, SshError, Stdio, Target, Tty,
};
use castra_engine::guest::{StreamPorts, Streams, VmKeys};
use castra_engine::layout::{ProjectLayout, SocketsLayout, VmLayout};
use castra_guest::ssh::SshServer;
use castra_guest::streams::Gate;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

/// Ports of a guest without network: one for each command that a test runs at once.
const PORTS: u32 = 20;

/// Address at which nothing listens.
pub(crate) const UNREACHABLE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

pub(crate) struct Guest {
    pub(crate) target: Target,
    pub(crate) layout: VmLayout,
    pub(crate) server: SshServer,
    /// Opens the gate of the stream ports.
    pub(crate) gate: watch::Sender<bool>,
    directory: tempfile::TempDir,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Guest {
    pub(crate) fn start() -> Self {
        let guest = Self::start_without_keys();
        guest.personalise();
        guest
    }

    /// Starts a guest that is reached over its stream ports only.
    pub(crate) fn start_without_network() -> Self {
        let mut guest = Self::start();
        guest.target.streams = Some(Streams::Shared(guest.serve_ports(PORTS)));
        guest.target.address = UNREACHABLE;
        guest
    }

    /// Serves a number of stream ports.
    pub(crate) fn serve_ports(&self, count: u32) -> StreamPorts {
        let ports = ports_below(self.scratch(), count);
        let _context = self.runtime.as_ref().expect("runs").enter();
        for index in 0..count {
            let listener = UnixListener::bind(ports.sockets.stream(index)).expect("binds");
            tokio::spawn(serve_port(listener, self.gate.subscribe()));
        }
        ports
    }

    pub(crate) fn start_without_keys() -> Self {
        let directory = tempfile::tempdir().expect("makes a directory");
        let layout = ProjectLayout::unchecked(directory.path().join(".castra")).vm("box");
        let keys = VmKeys::load_or_create(&layout).expect("makes keys");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("makes a runtime");
        let listener =
            runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("binds a port");
        let address = listener.local_addr().expect("has an address");
        let server = SshServer::new();
        runtime.spawn(server.clone().serve(listener));
        Self {
            target: keys.target(address, &own_name()),
            layout,
            server,
            gate: watch::Sender::new(true),
            directory,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn personalise(&self) {
        let keys = VmKeys::load_or_create(&self.layout).expect("reads keys");
        let pem = keys.host_private_pem().expect("encodes");
        self.server.personalise(&pem, &[keys.client_public_line()]).expect("takes the keys");
    }

    /// Returns a directory of this test's own.
    pub(crate) fn scratch(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub(crate) fn capture(&self, script: &str) -> Captured {
        let argv = ["sh", "-c", script].map(OsString::from).to_vec();
        ssh::capture(&castra_engine::cancel::Cancel::new(), &self.target, argv, 64 << 20)
            .expect("runs")
    }

    /// Runs a line on pipes of its own, and returns exit and both outputs.
    pub(crate) fn exec(
        &self,
        line: &str,
        input: Vec<u8>,
        tty: Option<Tty>,
    ) -> (GuestExit, Vec<u8>, Vec<u8>) {
        let (streams, stdin, stdout, stderr) = pipes();
        let writer = thread::spawn(move || {
            // A command may end without reading everything.
            let _ = std::fs::File::from(stdin).write_all(&input);
        });
        let (stdout, stderr) = (drain(stdout), drain(stderr));
        let exit = self.exec_on(streams, line, tty).expect("runs");
        writer.join().expect("writes");
        (exit, stdout.join().expect("reads"), stderr.join().expect("reads"))
    }

    pub(crate) fn exec_on(
        &self,
        stdio: Stdio,
        line: &str,
        tty: Option<Tty>,
    ) -> Result<GuestExit, SshError> {
        let command = Command::Line(line.to_owned());
        ssh::exec(
            &castra_engine::cancel::Cancel::new(),
            &self.target,
            ExecRequest { command, tty, environment: Vec::new(), directory: None, stdio },
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        // Without root, the contents of a directory without write permission cannot be removed.
        let _ = std::process::Command::new("chmod")
            .args(["-R", "u+rwX"])
            .arg(self.directory.path())
            .status();
    }
}

/// Returns a number of stream ports without sockets.
pub(crate) fn ports_below(scratch: &Path, count: u32) -> StreamPorts {
    let sockets = SocketsLayout::new(scratch.join("castra/project/box"));
    std::fs::create_dir_all(sockets.directory()).expect("makes a directory");
    StreamPorts { sockets, count }
}

/// Serves one host after another, as a port does.
async fn serve_port(listener: UnixListener, gate: Gate) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let (mut reader, mut writer) = stream.split();
        // Fails if the host hangs up while it is written to.
        let _ = castra_guest::streams::serve(&mut reader, &mut writer, &gate).await;
    }
}

/// Returns streams for a command, and their other ends: stdin's writer, stdout's and stderr's
/// readers.
pub(crate) fn pipes() -> (Stdio, OwnedFd, OwnedFd, OwnedFd) {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).expect("makes a pipe");
    let ((stdin, in_writer), (out_reader, stdout), (err_reader, stderr)) = (pipe(), pipe(), pipe());
    (Stdio { stdin: Some(stdin), stdout, stderr }, in_writer, out_reader, err_reader)
}

pub(crate) fn drain(reader: OwnedFd) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        std::fs::File::from(reader).read_to_end(&mut bytes).expect("reads");
        bytes
    })
}

/// Returns the name of this process's user.
pub(crate) fn own_name() -> String {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").expect("reads");
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    passwd.lines().map(fields).find(|fields| fields[2] == uid).expect("has a name").swap_remove(0)
}

/// Returns bytes in which every loss, repetition or swap shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0_u32..)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_be_bytes())
        .take(length)
        .collect()
}

/// Waits until a condition holds; fails after ten seconds.
pub(crate) fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !is_true() {
        assert!(started.elapsed().as_secs() < 10, "{what}");
        thread::sleep(std::time::Duration::from_millis(5));
    }
}
