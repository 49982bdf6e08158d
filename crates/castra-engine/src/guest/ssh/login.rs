//! SSH connections to the guest.

use std::sync::{Arc, Mutex, PoisonError};

use castra_flow::{
    CLIENT_WINDOW_BYTES, Flow, Incoming, MAILBOX_MESSAGES, Message, Outgoing, PACKET_BYTES, Paced,
    ssh,
};
use russh::client::{AuthResult, ChannelOpenHandle, Config, Handle, Handler, Msg, Session};
use russh::keys::{HashAlg, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{Channel, ChannelId};
use tokio::net::TcpStream;

use super::silence::{Ear, until_network_is_down};
use super::{Server, SshError, Target};

/// An SSH connection that is logged in.
pub(super) struct Login {
    handle: Handle<Guard>,
    flow: Flow,
    /// True for a server that knows nothing of castra's own requests.
    is_own: bool,
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

    pub(super) async fn establish(target: &Target, ear: &Ear) -> Result<Self, SshError> {
        let address = target.address;
        let unreachable = |source| SshError::Unreachable { address, source };
        let stream = TcpStream::connect(address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let flow = Flow::of_client();
        let shown = Arc::new(Mutex::new(None));
        let guard = Guard {
            expected: target.server.expected().cloned(),
            shown: Arc::clone(&shown),
            flow: flow.clone(),
        };
        let last_shown = || shown.lock().unwrap_or_else(PoisonError::into_inner).take();
        let handshake = |source| {
            mismatch(target, last_shown().as_ref())
                .unwrap_or(SshError::Handshake { address, source })
        };
        let stream = Paced::new(ear.at(stream), flow.clone());
        let mut handle =
            russh::client::connect_stream(Arc::new(config(&target.server)), stream, guard)
                .await
                .map_err(handshake)?;
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&target.client_key), None);
        match handle.authenticate_publickey(&target.user, key).await.map_err(handshake)? {
            AuthResult::Success => {
                if let (Server::Own(pin), Some(shown)) = (&target.server, last_shown()) {
                    let kept = |source| SshError::Pin { path: pin.path().to_owned(), source };
                    pin.keep(&shown).map_err(kept)?;
                }
                Ok(Self { handle, flow, is_own: target.server.is_own() })
            }
            AuthResult::Failure { .. } if handle.is_closed() => {
                Err(handshake(russh::Error::Disconnect))
            }
            AuthResult::Failure { .. } if target.server.is_own() => {
                Err(SshError::NotAccepted { user: target.user.clone() })
            }
            // The agent's answer to a right key for an unknown user.
            AuthResult::Failure { partial_success: true, .. } => {
                Err(SshError::UnknownUser { user: target.user.clone() })
            }
            AuthResult::Failure { .. } => Err(SshError::Refused { user: target.user.clone() }),
        }
    }

    /// Returns `true` for a server that knows nothing of castra's own requests.
    pub(super) fn is_to_own_server(&self) -> bool {
        self.is_own
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

/// Returns the error of a server that has shown another key than it must.
fn mismatch(target: &Target, shown: Option<&PublicKey>) -> Option<SshError> {
    let (expected, shown) = (target.server.expected()?, shown?);
    let of = |key: &PublicKey| key.fingerprint(HashAlg::Sha256).to_string();
    let (address, expected, found) = (target.address, of(expected), of(shown));
    let is_mismatch = expected != found;
    is_mismatch.then(|| match &target.server {
        Server::Agent(_) => SshError::HostKeyMismatch { address, expected, found },
        Server::Own(pin) => {
            let pin = pin.path().to_owned();
            SshError::ServerKeyChanged { address, expected, found, pin }
        }
    })
}

fn config(server: &Server) -> Config {
    Config {
        window_size: CLIENT_WINDOW_BYTES,
        maximum_packet_size: PACKET_BYTES,
        channel_buffer_size: MAILBOX_MESSAGES,
        preferred: server.preferred(),
        ..Config::default()
    }
}

/// Handler that checks the host key, counts arriving data, and lets the guest open nothing.
struct Guard {
    /// Key that must be shown; `None` at the first use.
    expected: Option<PublicKey>,
    /// Key that was shown.
    shown: Arc<Mutex<Option<PublicKey>>>,
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
        let is_right = self.expected.as_ref().is_none_or(|expected| expected.key_data() == found);
        let found = PublicKey::from(found.clone());
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
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
