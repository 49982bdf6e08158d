//! An agent without support for arrays of arguments: it refuses the subsystem, and runs lines.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStringExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use castra_engine::guest::VmKeys;
use castra_engine::guest::ssh::{GuestExit, SshError, Target};
use castra_engine::layout::ProjectLayout;
use russh::keys::PrivateKey;
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use tokio::net::TcpListener;

use crate::ssh::guest::own_name;
use crate::ssh::over_ssh::arguments::{exec, many, owned};

pub(crate) struct OlderAgent {
    pub(crate) target: Target,
    _directory: tempfile::TempDir,
    runtime: Option<tokio::runtime::Runtime>,
}

impl OlderAgent {
    /// Starts an agent that grants this many bytes on a new channel.
    pub(crate) fn start(window: u32) -> Self {
        let directory = tempfile::tempdir().expect("makes a directory");
        let layout = ProjectLayout::unchecked(directory.path().join(".castra")).vm("box");
        let keys = VmKeys::load_or_create(&layout).expect("makes keys");
        let key =
            PrivateKey::from_openssh(keys.host_private_pem().expect("encodes")).expect("reads");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("makes a runtime");
        let listener =
            runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("binds a port");
        let target = keys.target(listener.local_addr().expect("has an address"), &own_name());
        let config = Arc::new(Config { keys: vec![key], window_size: window, ..Config::default() });
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let running =
                    russh::server::run_stream(Arc::clone(&config), stream, Server::default()).await;
                tokio::spawn(running.expect("runs"));
            }
        });
        Self { target, _directory: directory, runtime: Some(runtime) }
    }
}

impl Drop for OlderAgent {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Default)]
struct Server {
    waiting: HashMap<ChannelId, Waiting>,
}

#[derive(Default)]
struct Waiting {
    environment: Vec<(String, String)>,
    line: Vec<u8>,
    /// All data of the channel, whenever it arrived.
    input: Vec<u8>,
}

impl Waiting {
    /// Runs the line, and returns the exit status and stdout.
    fn run(self) -> (u32, Vec<u8>) {
        let line = std::ffi::OsString::from_vec(self.line);
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(line)
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        // The command may end without reading everything.
        let _ = child.stdin.take().expect("is a pipe").write_all(&self.input);
        let output = child.wait_with_output().expect("ends");
        (output.status.code().and_then(|code| code.try_into().ok()).unwrap_or(255), output.stdout)
    }
}

impl Handler for Server {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _user: &str,
        _key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.waiting.insert(channel.id(), Waiting::default());
        reply.accept().await;
        Ok(())
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let waiting = self.waiting.get_mut(&channel).expect("is open");
        waiting.environment.push((name.to_owned(), value.to_owned()));
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        line: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.waiting.get_mut(&channel).expect("is open").line = line.to_vec();
        session.channel_success(channel)
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.waiting.get_mut(&channel).expect("is open").input.extend(data);
        Ok(())
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let (status, stdout) = self.waiting.remove(&channel).expect("is open").run();
        session.data(channel, stdout)?;
        session.exit_status_request(channel, status)?;
        session.eof(channel)?;
        session.close(channel)
    }
}

#[test]
fn an_older_agent_gets_a_line() {
    // OpenSSH's sshd grants no window before something runs.
    for window in [2 << 20, 16] {
        let agent = OlderAgent::start(window);
        let argv =
            owned(&[b"sh", b"-c", b"printf '%s|' \"$@\" \"$VALUE\"; cat", b"sh", b"it's", b"\xff"]);
        let environment = vec![("VALUE".into(), "a b".into())];
        let (exit, stdout) = exec(&agent.target, argv, environment, b"input").expect("runs");
        assert_eq!(
            (exit, stdout),
            (GuestExit::Code(0), b"it's|\xff|a b|input".to_vec()),
            "window {window}"
        );
    }
}

#[test]
fn what_an_older_agent_cannot_take_is_named() {
    let agent = OlderAgent::start(2 << 20);
    let bytes = OsString::from_vec(b"\xff".to_vec());
    for (argv, environment, what) in [
        (many("true", 200_000), Vec::new(), "arguments"),
        (owned(&[b"true"]), vec![("VALUE".into(), bytes)], "UTF-8"),
    ] {
        let error = exec(&agent.target, argv, environment, b"").expect_err("is refused");
        assert!(
            matches!(error, SshError::OldAgent { .. }) && error.to_string().contains(what),
            "{error:?}"
        );
    }
}
