//! Handler of one connection: its login, and the requests on each channel before a program runs.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use castra_flow::{Flow, Incoming, Outgoing};
use castra_wire::EXEC_SUBSYSTEM;
use castra_wire::stream::Program as Kind;
use russh::keys::PublicKey;
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, VerifiedPublicKey};
use russh::{Channel, ChannelId, Pty as Mode};

use super::auth_agent::AuthAgentSocket;
use super::forward::{self, Listeners, Requested};
use super::identity::Identity;
use crate::programs::{self, Described, Program, Size, Terminal};
use crate::sftp;
use crate::users::User;

/// Maximum number of environment requests on one channel, as in OpenSSH's server.
const MAX_ENVIRONMENT: usize = 128;

/// The handler of one connection.
pub(super) struct Session {
    identity: Arc<Identity>,
    /// The client's address and ours.
    endpoints: [SocketAddr; 2],
    flow: Flow,
    logged_in: Arc<AtomicBool>,
    user: Option<Arc<User>>,
    waiting: HashMap<ChannelId, Waiting>,
    listeners: Listeners,
    /// Socket to the client's authentication agent, once the client has offered it.
    auth_agent: Option<AuthAgentSocket>,
}

/// A session channel on which nothing runs yet.
struct Waiting {
    incoming: Incoming,
    outgoing: Outgoing,
    environment: Vec<(OsString, OsString)>,
    terminal: Option<Terminal>,
}

impl Session {
    pub(super) fn new(
        identity: Arc<Identity>,
        endpoints: [SocketAddr; 2],
        flow: Flow,
        logged_in: Arc<AtomicBool>,
    ) -> Self {
        Self {
            identity,
            endpoints,
            flow,
            logged_in,
            user: None,
            waiting: HashMap::new(),
            listeners: Listeners::default(),
            auth_agent: None,
        }
    }

    /// Decides on a login. A right key for a user who does not exist is a partial success, by which
    /// Castra's client distinguishes it from a wrong key.
    ///
    /// # Errors
    /// The users cannot be read.
    fn judge(&self, name: &str, key: &PublicKey) -> io::Result<Result<Arc<User>, Auth>> {
        if !self.identity.admits(key) {
            return Ok(Err(Auth::reject()));
        }
        let unknown = Auth::Reject { proceed_with_methods: None, partial_success: true };
        Ok(User::find(name)?.ok_or(unknown))
    }

    fn start(
        &mut self,
        id: ChannelId,
        program: Program,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let (Some(user), Some(waiting)) = (self.user.clone(), self.waiting.remove(&id)) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let Waiting { incoming, outgoing, mut environment, terminal } = waiting;
        environment.splice(0..0, self.connection_environment());
        tokio::spawn(async move {
            let started = programs::start(user, program, environment, None, terminal).await;
            programs::run(started, None, incoming, outgoing).await;
        });
        Ok(())
    }

    /// Starts a program that is described by the channel's first data.
    fn start_described(
        &mut self,
        id: ChannelId,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let (Some(user), Some(waiting)) = (self.user.clone(), self.waiting.remove(&id)) else {
            return session.channel_failure(id);
        };
        session.channel_success(id)?;
        let Waiting { mut incoming, outgoing, mut environment, terminal } = waiting;
        environment.splice(0..0, self.connection_environment());
        tokio::spawn(async move {
            let described = Described { user, kind: Kind::Arguments, terminal, mounts: None };
            let (started, stdin) = described.start(environment, &mut incoming).await;
            programs::run(started, stdin, incoming, outgoing).await;
        });
        Ok(())
    }

    fn connection_environment(&self) -> [(OsString, OsString); 2] {
        let [peer, local] = self.endpoints;
        let (peer_ip, peer_port, local_ip, local_port) =
            (peer.ip().to_canonical(), peer.port(), local.ip().to_canonical(), local.port());
        [
            ("SSH_CLIENT".into(), format!("{peer_ip} {peer_port} {local_port}").into()),
            (
                "SSH_CONNECTION".into(),
                format!("{peer_ip} {peer_port} {local_ip} {local_port}").into(),
            ),
        ]
    }
}

impl Handler for Session {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(self.judge(user, offer.public_key)?.map_or_else(|refusal| refusal, |_| Auth::Accept))
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(match self.judge(user, key.public_key)? {
            Ok(user) => {
                self.user = Some(user);
                Auth::Accept
            }
            Err(refusal) => refusal,
        })
    }

    async fn auth_succeeded(
        &mut self,
        _session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        self.logged_in.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let id = channel.id();
        let (incoming, outgoing) = castra_flow::split_server(channel, &self.flow, session.handle());
        self.waiting
            .insert(id, Waiting { incoming, outgoing, environment: Vec::new(), terminal: None });
        reply.accept().await;
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        self.waiting.remove(&channel);
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        self.flow.arrived(channel, data.len());
        Ok(())
    }

    async fn extended_data(
        &mut self,
        channel: ChannelId,
        _code: u32,
        data: &[u8],
        _session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        self.flow.arrived(channel, data.len());
        Ok(())
    }

    fn adjust_window(&mut self, _channel: ChannelId, _current: u32) -> u32 {
        self.flow.window_to_grant()
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let usable = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        match self.waiting.get_mut(&channel) {
            Some(waiting) if usable && waiting.environment.len() < MAX_ENVIRONMENT => {
                waiting.environment.push((name.into(), value.into()));
                session.channel_success(channel)
            }
            _ => session.channel_failure(channel),
        }
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width_px: u32,
        height_px: u32,
        modes: &[(Mode, u32)],
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let size = Size::new(columns, rows, width_px, height_px);
        let opened =
            self.user.as_ref().and_then(|user| Terminal::open(user, term, size, modes).ok());
        match (self.waiting.get_mut(&channel), opened) {
            (Some(waiting), Some(terminal)) => {
                waiting.terminal = Some(terminal);
                session.channel_success(channel)
            }
            _ => session.channel_failure(channel),
        }
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        self.start(channel, Program::Shell, session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        self.start(channel, Program::Line(command.to_vec()), session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        match name {
            EXEC_SUBSYSTEM => return self.start_described(channel, session),
            "sftp" => {}
            _ => return session.channel_failure(channel),
        }
        let (Some(user), Some(waiting)) = (self.user.clone(), self.waiting.remove(&channel)) else {
            return session.channel_failure(channel);
        };
        let Ok(stream) = sftp::start(user) else {
            return session.channel_failure(channel);
        };
        session.channel_success(channel)?;
        tokio::spawn(castra_flow::relay(waiting.incoming, waiting.outgoing, stream, Some(0)));
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        let requested = Requested { channel, reply, handle: session.handle() };
        tokio::spawn(forward::direct(requested, host.to_owned(), port, self.flow.clone()));
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        // Without a user there is no channel; dropping the reply refuses it.
        if let Some(user) = self.user.clone() {
            let (path, flow) = (path.to_owned(), self.flow.clone());
            let requested = Requested { channel, reply, handle: session.handle() };
            tokio::spawn(forward::direct_to_socket(requested, path, user, flow));
        }
        Ok(())
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        session: &mut russh::server::Session,
    ) -> Result<bool, russh::Error> {
        let (Some(user), Some(waiting)) = (&self.user, self.waiting.get_mut(&channel)) else {
            return Ok(false);
        };
        if self.auth_agent.is_none() {
            let (user, flow) = (Arc::clone(user), self.flow.clone());
            self.auth_agent = AuthAgentSocket::listen(user, session.handle(), flow).await.ok();
        }
        let Some(socket) = &self.auth_agent else { return Ok(false) };
        let variable = ("SSH_AUTH_SOCK".into(), socket.path().into());
        if !waiting.environment.contains(&variable) {
            waiting.environment.push(variable);
        }
        Ok(true)
    }

    /// Refuses X11: the client then reports it, whereas silence would leave its user waiting for
    /// windows.
    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut russh::server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut russh::server::Session,
    ) -> Result<bool, russh::Error> {
        let Some(user) = &self.user else { return Ok(false) };
        let bound =
            self.listeners.listen(user, address, *port, session.handle(), self.flow.clone()).await;
        if let Ok(bound) = bound {
            *port = bound;
        }
        Ok(bound.is_ok())
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut russh::server::Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.listeners.cancel(address, port))
    }
}
