//! Connects to a target and logs in.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use castra_flow::{CLIENT_WINDOW_BYTES, Flow, MAILBOX_MESSAGES, PACKET_BYTES, Paced};
use russh::client::{AuthResult, ChannelOpenHandle, Config, Handle, Handler, Msg, Session};
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelId, Preferred, cipher, kex, mac};
use tokio::net::TcpStream;

use super::silence::{Ear, until_network_is_down};
use super::{SshError, until_cancelled};
use crate::cancel::Cancel;
use crate::guest::{AgentSocket, StreamPorts};

/// Time limit for connecting and logging in. Under emulation this takes 40 ms; with a guest that
/// swaps, seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// Interval of pings to a silent guest, and time for its answer.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_LIMIT: Duration = Duration::from_secs(45);

/// Key exchanges that are cheap on an emulated CPU without AES instructions, and nothing else: we
/// know the server.
const KEX: &[kex::Name] = &[
    kex::CURVE25519,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];
const CIPHERS: &[cipher::Name] = &[cipher::CHACHA20_POLY1305];
/// Required although ChaCha20-Poly1305 authenticates by itself: the list must not be empty.
const MACS: &[mac::Name] = &[mac::HMAC_SHA256_ETM];

/// Address, user and keys for a connection.
#[derive(Clone)]
pub struct Target {
    /// Forwarded port on this host.
    pub address: SocketAddr,
    /// User in the guest.
    pub user: String,
    /// Key that logs in.
    pub client_key: Arc<PrivateKey>,
    /// Public key of the guest's SSH server.
    pub host_key: PublicKey,
    /// The guest's agent, which is asked about the guest's network while SSH stays silent.
    pub agent: Option<AgentSocket>,
    /// Ports that lead to the agent without the guest's network; `None` if the VM has none.
    pub streams: Option<StreamPorts>,
}

/// A connection that is logged in.
pub(super) struct Connection {
    handle: Handle<Guard>,
    flow: Flow,
}

impl Connection {
    pub(super) async fn open(target: &Target, cancel: &Cancel) -> Result<Self, SshError> {
        let slow = SshError::TooSlow { address: target.address, limit: LIMIT };
        let ear = Ear::default();
        tokio::select! {
            opened = tokio::time::timeout(LIMIT, Self::establish(target, &ear)) => {
                opened.map_err(|_| slow)?
            }
            down = until_network_is_down(target, &ear) => Err(down.into()),
            () = until_cancelled(cancel) => Err(SshError::Interrupted),
        }
    }

    async fn establish(target: &Target, ear: &Ear) -> Result<Self, SshError> {
        let address = target.address;
        let unreachable = |source| SshError::Unreachable { address, source };
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let flow = Flow::of_client();
        let shown = Arc::new(Mutex::new(None));
        let guard = Guard {
            expected: target.host_key.clone(),
            shown: Arc::clone(&shown),
            flow: flow.clone(),
        };
        let handshake = |source| match shown.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(found) => {
                let expected = target.host_key.fingerprint(HashAlg::Sha256).to_string();
                SshError::HostKeyMismatch { address, expected, found }
            }
            None => SshError::Handshake { address, source },
        };
        let stream = Paced::new(ear.at(stream), flow.clone());
        let mut handle = russh::client::connect_stream(Arc::new(config()), stream, guard)
            .await
            .map_err(handshake)?;
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&target.client_key), None);
        match handle.authenticate_publickey(&target.user, key).await.map_err(handshake)? {
            AuthResult::Success => Ok(Self { handle, flow }),
            AuthResult::Failure { .. } if handle.is_closed() => {
                Err(handshake(russh::Error::Disconnect))
            }
            // The agent's answer to a right key for an unknown user.
            AuthResult::Failure { partial_success: true, .. } => {
                Err(SshError::UnknownUser { user: target.user.clone() })
            }
            AuthResult::Failure { .. } => Err(SshError::Refused { user: target.user.clone() }),
        }
    }

    pub(super) async fn session(&self) -> Result<Channel<Msg>, SshError> {
        self.handle.channel_open_session().await.map_err(|_| SshError::Lost)
    }

    pub(super) fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Waits for `work`, as long as the guest answers and the user does not interrupt.
    pub(super) async fn guard<T>(
        &self,
        cancel: &Cancel,
        work: impl Future<Output = Result<T, SshError>>,
    ) -> Result<T, SshError> {
        tokio::select! {
            done = work => done,
            () = self.until_silent() => Err(SshError::Lost),
            () = until_cancelled(cancel) => Err(SshError::Interrupted),
        }
    }

    /// Returns `true` if the guest answers a ping within this time.
    pub(super) async fn answers_within(&self, limit: Duration) -> bool {
        self.flow.is_reading_stopped()
            || tokio::time::timeout(limit, self.handle.send_ping()).await.is_ok()
    }

    /// Waits until the guest has stopped answering.
    pub(super) async fn until_silent(&self) {
        loop {
            tokio::time::sleep(PING_INTERVAL).await;
            let answered = tokio::time::timeout(PING_LIMIT, self.handle.send_ping()).await.is_ok();
            // While our own output blocks, answers wait unread.
            if !answered && !self.flow.is_reading_stopped() {
                return;
            }
        }
    }
}

fn config() -> Config {
    Config {
        window_size: CLIENT_WINDOW_BYTES,
        maximum_packet_size: PACKET_BYTES,
        channel_buffer_size: MAILBOX_MESSAGES,
        preferred: Preferred {
            kex: Cow::Borrowed(KEX),
            key: Cow::Borrowed(&[russh::keys::Algorithm::Ed25519]),
            cipher: Cow::Borrowed(CIPHERS),
            mac: Cow::Borrowed(MACS),
            ..Preferred::DEFAULT
        },
        ..Config::default()
    }
}

/// Handler that checks the host key, counts arriving data, and lets the guest open nothing.
struct Guard {
    expected: PublicKey,
    /// Fingerprint of an unexpected host key.
    shown: Arc<Mutex<Option<String>>>,
    flow: Flow,
}

impl Handler for Guard {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let found = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.key_data(),
            PublicKeyOrCertificate::Certificate(certificate) => certificate.public_key(),
        };
        let is_right = found == self.expected.key_data();
        if !is_right {
            let found = found.fingerprint(HashAlg::Sha256).to_string();
            *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        }
        Ok(is_right)
    }

    async fn data(
        &mut self,
        id: ChannelId,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.flow.arrived(id, data.len());
        Ok(())
    }

    async fn extended_data(
        &mut self,
        id: ChannelId,
        _: u32,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.flow.arrived(id, data.len());
        Ok(())
    }

    // Dropping `reply` rejects; russh's own defaults would accept.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        _reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        _reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        Ok(())
    }
}
