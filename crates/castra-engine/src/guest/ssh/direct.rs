//! Sessions on a stream port.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use castra_flow::link::{Link, Side, receive_hello};
use castra_flow::{Incoming, Message, Outgoing};
use castra_wire::Session;
use castra_wire::stream::{
    self, Decoder, Expected, Hello, Refusal, STREAM_PROTOCOL_VERSION, padding,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::connection::LIMIT;
use super::{SshError, Target};
use crate::guest::{Streams, TakenPort};
use crate::host::random_bytes;
use crate::layout::SocketsLayout;
use crate::qemu::is_agent_there;

/// Time for the answer to the first hello. After that, the guest has probably lost its place in
/// the stream, or is still booting.
const FIRST_PAUSE: Duration = Duration::from_millis(150);

/// Interval of further hellos.
const PAUSE: Duration = Duration::from_secs(1);

/// A stream port on which the guest has answered.
pub(in crate::guest) struct Direct {
    link: Link,
    address: SocketAddr,
    user: String,
    /// Sockets of a VM whose QEMU can be asked; `None` if they are gone.
    sockets: Option<SocketsLayout>,
    driver: JoinHandle<()>,
}

/// A stream port in use. This descriptor is closed before the port is free for others.
struct Line {
    stream: UnixStream,
    _port: TakenPort,
}

impl Line {
    /// Returns both directions. Borrows the whole line: an async block that used a field of it
    /// would take only that, and free the port while the session lasts.
    fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        self.stream.split()
    }
}

impl Direct {
    /// Begins a session on a port. Waits until the guest answers.
    ///
    /// # Errors
    /// The port fails, or the guest's version of the protocol is another.
    pub(in crate::guest) async fn greet(port: TakenPort, target: &Target) -> io::Result<Self> {
        let stream = port.connection()?;
        stream.set_nonblocking(true)?;
        let mut line = Line { stream: UnixStream::from_std(stream)?, _port: port };
        let hello = Hello::of(Session::new(u64::from_ne_bytes(random_bytes()?)));
        let mut decoder = Decoder::new(Expected::Only(hello.session));
        let answer = exchange(&mut line.stream, &hello, &mut decoder).await?;
        if answer.version != STREAM_PROTOCOL_VERSION {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let link = Link::new(Side::Host, &hello);
        let driver = tokio::spawn({
            let link = link.clone();
            async move {
                let (reader, writer) = line.split();
                // Channels notice the end, whatever it is.
                link.drive(&mut decoder, reader, writer, drop).await;
            }
        });
        let sockets = match &target.streams {
            Some(Streams::Shared(ports)) => Some(ports.sockets.clone()),
            Some(Streams::Held(_)) | None => None,
        };
        Ok(Self { link, address: target.address, user: target.user.clone(), sockets, driver })
    }

    /// Returns `true` if QEMU says that the agent no longer runs.
    pub(super) async fn has_lost_agent(&self) -> bool {
        let Some(sockets) = self.sockets.clone() else { return false };
        let asked = tokio::task::spawn_blocking(move || is_agent_there(&sockets)).await;
        asked.ok().flatten() == Some(false)
    }

    /// Returns the guest's user.
    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// Opens a stream and sends its first data. Returns once the guest has opened it, too, which
    /// it does when it has its identity. `what` names the stream's end in an error.
    pub(super) async fn open_stream(
        &self,
        target: &stream::Target,
        first: Bytes,
        what: &'static str,
    ) -> Result<(Incoming, Outgoing), SshError> {
        self.request(target, first).await?.map_err(|refusal| match refusal {
            Refusal::UnknownUser => SshError::UnknownUser { user: self.user.clone() },
            _ => SshError::NotStarted { what },
        })
    }

    /// Opens a stream as [`Self::open_stream`] does, or returns why the guest refuses it.
    pub(in crate::guest) async fn request(
        &self,
        target: &stream::Target,
        first: Bytes,
    ) -> Result<Result<(Incoming, Outgoing), Refusal>, SshError> {
        let Ok(request) = target.encode() else { return Ok(Err(Refusal::Malformed)) };
        let (incoming, outgoing) = self.link.open(request).map_err(|_| SshError::Lost)?;
        let (mut incoming, outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
        let answered = timeout(LIMIT, async {
            // Fails if the guest refuses the stream, which it reports.
            let _ = outgoing.send(first).await;
            incoming.next().await
        });
        let slow = |_| SshError::TooSlow { address: self.address, limit: LIMIT };
        match answered.await.map_err(slow)? {
            Some(Message::Opened) => Ok(Ok((incoming, outgoing))),
            Some(Message::Refused(refusal)) => Ok(Err(refusal)),
            _ => Err(SshError::Lost),
        }
    }

    /// Returns `true` once the session has ended.
    pub(in crate::guest) fn has_ended(&self) -> bool {
        self.link.has_ended()
    }

    /// Waits for the answer to a ping, or the end of the session.
    pub(super) async fn ping(&self) {
        let _ = self.link.ping().await;
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Sends hellos until the guest answers one.
///
/// # Errors
/// The port fails, or QEMU has ended.
pub(in crate::guest) async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hello: &Hello,
    decoder: &mut Decoder,
) -> io::Result<Hello> {
    let repeated = [padding(), hello.encode()].concat();
    let (mut next, mut pause) = (&*hello.encode(), FIRST_PAUSE);
    loop {
        // Always to its end: frames must not follow half a hello.
        stream.write_all(next).await?;
        if let Ok(answer) = timeout(pause, receive_hello(decoder, stream)).await {
            return answer?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        }
        (next, pause) = (&*repeated, PAUSE);
    }
}

#[cfg(test)]
mod tests;
