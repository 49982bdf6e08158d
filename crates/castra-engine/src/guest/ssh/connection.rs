//! Connections to the guest: over one of its stream ports, or over SSH.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use castra_flow::{Incoming, Outgoing};
use castra_wire::stream;
use russh::keys::PrivateKey;
use tokio::time::{Instant, sleep, timeout};

use super::direct::Direct;
use super::login::Login;
use super::{Server, SshError, until_cancelled};
use crate::cancel::Cancel;
use crate::guest::{AgentSocket, Mount, Streams, TakenPort};

/// Time limit for connecting and logging in. Under emulation this takes 40 ms; with a guest that
/// swaps, seconds.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// Silence of a stream port after which SSH is tried, too, or QEMU is asked about the agent; and
/// time for the port's answer once SSH has failed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Interval of pings to a silent guest, and time for its answer.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_LIMIT: Duration = Duration::from_secs(45);

/// Ways to a guest, and the user and keys there.
#[derive(Clone)]
pub struct Target {
    /// Forwarded port on this host.
    pub address: SocketAddr,
    /// User in the guest.
    pub user: String,
    /// Key that logs in.
    pub client_key: Arc<PrivateKey>,
    /// SSH server of the guest.
    pub server: Server,
    /// The guest's agent, which is asked about the guest's network while SSH stays silent.
    pub agent: Option<AgentSocket>,
    /// Ports that lead to the agent without the guest's network; `None` if the VM has none.
    pub streams: Option<Streams>,
    /// Directories of this machine that the guest sees.
    pub mounts: Vec<Mount>,
    /// Variables of each command's environment, unless the command has its own of that name.
    pub environment: Vec<(OsString, OsString)>,
}

/// A connection on which the guest has answered.
pub(super) enum Connection {
    /// A stream port.
    Direct(Direct),
    /// An SSH connection that is logged in.
    Ssh(Login),
}

impl Connection {
    pub(super) async fn open(target: &Target, cancel: &Cancel) -> Result<Self, SshError> {
        tokio::select! {
            opened = Self::over_either(target) => opened,
            () = until_cancelled(cancel) => Err(SshError::Interrupted),
        }
    }

    /// Connects over a free stream port, or over SSH if there is none. If the port stays silent,
    /// both are tried, and the first that answers is taken.
    async fn over_either(target: &Target) -> Result<Self, SshError> {
        let deadline = Instant::now() + LIMIT;
        let ssh = async {
            let slow = |_| SshError::TooSlow { address: target.address, limit: LIMIT };
            let login = tokio::time::timeout_at(deadline, Login::open(target)).await;
            login.map_err(slow)?.map(Self::Ssh)
        };
        let Some(port) = target.streams.as_ref().and_then(free_port) else { return ssh.await };
        let greeted = tokio::time::timeout_at(deadline, Direct::greet(port, target));
        // A port that fails is no error while SSH may answer.
        let mut direct = pin!(async { greeted.await.ok()?.ok().map(Self::Direct) });
        match timeout(PATIENCE, &mut direct).await {
            Ok(Some(direct)) => return Ok(direct),
            Ok(None) => return ssh.await,
            Err(_) => tracing::debug!("the stream port is silent: trying SSH, too"),
        }
        let mut ssh = pin!(ssh);
        tokio::select! {
            direct = &mut direct => match direct {
                Some(direct) => Ok(direct),
                None => ssh.await,
            },
            // A network that is down does not concern the port. But an agent that reports it has
            // had the time to answer there.
            ssh = &mut ssh => match ssh {
                Ok(ssh) => Ok(ssh),
                Err(error) => timeout(PATIENCE, direct).await.ok().flatten().ok_or(error),
            },
        }
    }

    /// Connects over a free stream port, unless it stays silent.
    pub(super) async fn over_port(target: &Target) -> Option<Direct> {
        let port = target.streams.as_ref().and_then(free_port)?;
        timeout(PATIENCE, Direct::greet(port, target)).await.ok()?.ok()
    }

    /// Starts an SFTP server.
    pub(super) async fn files(&self) -> Result<(Incoming, Outgoing), SshError> {
        const SFTP: &str = "SFTP";
        match self {
            Self::Direct(direct) => {
                let target = stream::Target::Files { user: direct.user().to_owned() };
                direct.open_stream(&target, Bytes::new(), SFTP).await
            }
            Self::Ssh(login) => login.subsystem("sftp", SFTP).await,
        }
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
        self.is_reading_stopped() || timeout(limit, self.ping()).await.is_ok()
    }

    /// Waits until the guest has stopped answering.
    pub(super) async fn until_silent(&self) {
        loop {
            sleep(PING_INTERVAL).await;
            let has_answered = timeout(PING_LIMIT, self.ping_unless_lost()).await;
            let has_answered = has_answered.unwrap_or(false);
            // While our own output blocks, answers wait unread.
            if !has_answered && !self.is_reading_stopped() {
                return;
            }
        }
    }

    /// Waits for the answer to a ping. Returns `false` once the agent is known to be gone.
    async fn ping_unless_lost(&self) -> bool {
        let mut ping = pin!(self.ping());
        if timeout(PATIENCE, &mut ping).await.is_ok() {
            return true;
        }
        if let Self::Direct(direct) = self
            && direct.has_lost_agent().await
        {
            return false;
        }
        ping.await;
        true
    }

    /// Waits for the answer to a ping, or the end of the connection, which is noticed by its
    /// channels, too.
    async fn ping(&self) {
        match self {
            Self::Direct(direct) => direct.ping().await,
            Self::Ssh(login) => login.ping().await,
        }
    }

    fn is_reading_stopped(&self) -> bool {
        match self {
            // Each of its streams has a window, so a port is always read.
            Self::Direct(_) => false,
            Self::Ssh(login) => login.is_reading_stopped(),
        }
    }
}

/// Takes a stream port, if one can be used.
fn free_port(streams: &Streams) -> Option<TakenPort> {
    match streams.take() {
        Ok(Some(port)) => {
            tracing::debug!("taken a stream port");
            Some(port)
        }
        Ok(None) => {
            tracing::debug!("all stream ports are in use: using SSH");
            None
        }
        // If the sockets are gone, the VM may still answer over SSH.
        Err(error) => {
            tracing::debug!("no stream port: {error}");
            None
        }
    }
}
