//! SSH connections to the guest.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use castra_flow::{
    CLIENT_WINDOW_BYTES, Flow, Incoming, MAILBOX_MESSAGES, Message, Outgoing, PACKET_BYTES, Paced,
    ssh,
};
use russh::client::{AuthResult, ChannelOpenHandle, Config, Handle, Handler, Msg, Session};
use russh::keys::{HashAlg, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelId, Preferred, cipher, kex, mac};
use tokio::net::TcpStream;

use super::silence::{Ear, until_network_is_down};
use super::{SshError, Target};

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

/// An SSH connection that is logged in.
pub(super) struct Login {
    handle: Handle<Guard>,
    flow: Flow,
}

impl Login {
    /// Connects and logs in.
    ///
    /// # Errors
    /// Also [`SshError::NetworkDown`], according to the guest's agent.
    pub(super) async fn open(target: &Target) -> Result<Self, SshError> {
        let ear = Ear::default();
        tokio::select! {
            opened = Self::establish(target, &ear) => opened,
            down = until_network_is_down(target, &ear) => Err(down.into()),
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

    /// Starts a subsystem of the guest's SSH server on a channel of its own.
    pub(super) async fn subsystem(
        &self,
        name: &str,
        what: &'static str,
    ) -> Result<(Incoming, Outgoing), SshError> {
        let (mut incoming, outgoing) = self.session().await?;
        outgoing.half().request_subsystem(true, name).await.map_err(lost)?;
        match incoming.next().await {
            Some(Message::Opened) => Ok((incoming, outgoing.into())),
            Some(Message::Refused(_)) => Err(SshError::NotStarted { what }),
            _ => Err(SshError::Lost),
        }
    }

    /// Opens a channel.
    pub(super) async fn session(&self) -> Result<(Incoming, ssh::Outgoing<Msg>), SshError> {
        let channel = self.handle.channel_open_session().await.map_err(lost)?;
        let (incoming, outgoing) = ssh::split(channel, &self.flow);
        Ok((incoming.into(), outgoing))
    }

    /// Returns `true` while nothing is received, because our own output blocks.
    pub(super) fn is_reading_stopped(&self) -> bool {
        self.flow.is_reading_stopped()
    }

    /// Waits for the answer to a ping, or the end of the connection.
    pub(super) async fn ping(&self) {
        let _ = self.handle.send_ping().await;
    }
}

pub(super) fn lost(_: russh::Error) -> SshError {
    SshError::Lost
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
