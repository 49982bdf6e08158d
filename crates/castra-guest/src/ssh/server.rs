//! The server: authentication, and the loop that accepts connections.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use castra_flow::{MAILBOX_MESSAGES, PACKET_BYTES, Paced, SERVER_WINDOW_BYTES};
use castra_wire::Secret;
use russh::keys::{PrivateKey, PublicKey};
use russh::server::Config;
use russh::{MethodKind, MethodSet, Preferred, cipher, kex, mac};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::log::log;

use super::ACCEPT_PAUSE;
use super::identity::Identity;
use super::logins::{Login, Logins};
use super::session::Session;

/// Time limit for logging in; `sshd`'s `LoginGraceTime`.
const LOGIN_GRACE: Duration = Duration::from_secs(120);

/// TCP keepalive: a dead client is noticed after 30 s + 3 × 10 s of silence. Not an SSH keepalive,
/// whose answer may wait behind data that a command does not read.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Key exchanges and ciphers, cheapest first. Neither AES nor a post-quantum exchange is cheap on
/// an emulated CPU without AES instructions.
const KEX: &[kex::Name] = &[
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];
const CIPHERS: &[cipher::Name] =
    &[cipher::CHACHA20_POLY1305, cipher::AES_256_GCM, cipher::AES_128_CTR];
const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM, mac::HMAC_SHA256];

/// Reason why the server rejected the keys it was given.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The host key is not an unencrypted OpenSSH private key.
    #[error("the SSH host key is not a private key in OpenSSH's format: {0}")]
    HostKey(russh::keys::ssh_key::Error),
    /// A line is not a public key. Line numbers count from 1.
    #[error("authorised key {0} is not a public key in OpenSSH's format: {1}")]
    AuthorizedKey(usize, russh::keys::ssh_key::Error),
}

/// Keys as the host sends them.
pub(crate) struct Keys {
    /// The server's private key, in OpenSSH's PEM.
    pub(crate) host_key: Secret,
    /// Public keys that may log in, one OpenSSH line each.
    pub(crate) authorized: Vec<String>,
}

/// The SSH server; clones share their keys.
#[derive(Clone)]
pub struct SshServer {
    identity: watch::Sender<Option<Arc<Identity>>>,
    /// Keys that wait for the first connection: parsing them is slow on an emulated CPU.
    waiting: Arc<Mutex<Option<Keys>>>,
}

impl Default for SshServer {
    fn default() -> Self {
        Self::new()
    }
}

impl SshServer {
    /// Returns a server that accepts no key yet.
    pub fn new() -> Self {
        Self { identity: watch::Sender::new(None), waiting: Arc::default() }
    }

    /// Replaces the keys: the host's private key (OpenSSH PEM) and the public keys that may log in
    /// (one OpenSSH line each). Existing connections stay open.
    ///
    /// # Errors
    /// A key cannot be parsed; then nothing changes.
    pub fn personalise(
        &self,
        host_key_pem: &[u8],
        authorized_keys: &[String],
    ) -> Result<(), SshError> {
        let host_key = PrivateKey::from_openssh(host_key_pem).map_err(SshError::HostKey)?;
        let authorized = authorized_keys
            .iter()
            .enumerate()
            .map(|(index, line)| {
                PublicKey::from_openssh(line)
                    .map_err(|error| SshError::AuthorizedKey(index + 1, error))
            })
            .collect::<Result<_, _>>()?;
        let config = Arc::new(config(host_key));
        self.identity.send_replace(Some(Arc::new(Identity { config, authorized })));
        Ok(())
    }

    /// Takes the keys for all later connections, and for those that wait for keys.
    ///
    /// # Errors
    /// As [`personalise`](Self::personalise), for connections that wait.
    pub(crate) fn take_keys(&self, keys: Keys) -> Result<(), SshError> {
        *self.waiting() = Some(keys);
        if self.identity.receiver_count() > 0 { self.use_keys() } else { Ok(()) }
    }

    /// Parses the keys, if no connection has made that necessary yet. Without usable keys, no login
    /// succeeds.
    ///
    /// # Errors
    /// As [`personalise`](Self::personalise).
    pub(crate) fn use_keys(&self) -> Result<(), SshError> {
        let Some(Keys { host_key, authorized }) = self.waiting().take() else { return Ok(()) };
        self.personalise(host_key.expose(), &authorized)
            .inspect_err(|_| drop(self.identity.send_replace(None)))
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Keys>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves connections until accepting fails permanently. Needs a tokio runtime with I/O and
    /// time.
    ///
    /// # Errors
    /// The listener is no longer usable.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let mut logins = Logins::default();
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if let Err(error) = self.use_keys() {
                        log(error);
                    }
                    let login = logins.add();
                    tokio::spawn(connection(self.identity.subscribe(), stream, peer, login));
                }
                Err(error) if is_fatal(&error) => return Err(error),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

/// Returns `true` if the listener is no longer usable. Any other error (`ECONNABORTED`, `EMFILE`,
/// …) concerns one connection or passes.
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(rustix::io::Errno::from_raw_os_error),
        Some(rustix::io::Errno::BADF | rustix::io::Errno::INVAL | rustix::io::Errno::NOTSOCK)
    )
}

async fn connection(
    mut identity: watch::Receiver<Option<Arc<Identity>>>,
    stream: TcpStream,
    peer: SocketAddr,
    Login { flow, logged_in }: Login,
) {
    let Ok(local) = tune(&stream) else { return };
    let Ok(Some(identity)) =
        identity.wait_for(Option::is_some).await.map(|identity| Option::clone(&identity))
    else {
        return;
    };
    let config = Arc::clone(&identity.config);
    let session = Session::new(identity, [peer, local], flow.clone(), Arc::clone(&logged_in));
    let grace = tokio::spawn({
        let flow = flow.clone();
        async move {
            tokio::time::sleep(LOGIN_GRACE).await;
            if !logged_in.load(Ordering::Relaxed) {
                flow.abort();
            }
        }
    });
    // The client of a failed connection notices by itself.
    if let Ok(running) = russh::server::run_stream(config, Paced::new(stream, flow), session).await
    {
        let _ = running.await;
    }
    grace.abort();
}

fn tune(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.set_nodelay(true)?;
    let (idle, interval, count) = KEEPALIVE;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, idle)?;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, count)?;
    stream.local_addr()
}

fn config(host_key: PrivateKey) -> Config {
    Config {
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        keys: vec![host_key],
        // Keys cannot be guessed, so a refusal need not be slow.
        auth_rejection_time: Duration::ZERO,
        auth_rejection_time_initial: Some(Duration::ZERO),
        inactivity_timeout: None,
        window_size: SERVER_WINDOW_BYTES,
        maximum_packet_size: PACKET_BYTES,
        channel_buffer_size: MAILBOX_MESSAGES,
        preferred: Preferred {
            kex: Cow::Borrowed(KEX),
            cipher: Cow::Borrowed(CIPHERS),
            mac: Cow::Borrowed(MACS),
            ..Preferred::DEFAULT
        },
        ..Config::default()
    }
}
