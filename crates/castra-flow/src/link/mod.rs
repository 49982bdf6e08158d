//! Links: many streams over one stream port, with a window each.
//!
//! A [`Link`] is the state of one session. [`Link::drive`] moves its frames; channels are opened
//! with [`Link::open`] on the host, and reported as [`Opening`] in the guest. A receiver grants
//! bytes once it has *consumed* some, so an unread channel holds up no other, and the
//! memory of a link is bounded by its windows, whatever the peer sends.

mod channel;
mod state;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use castra_wire::stream::{Decoder, Event, Frame, Hello, Refusal, Target};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, oneshot};

pub(crate) use channel::Kind;
pub use channel::{Consumption, Incoming, Outgoing};
use state::State;

use crate::Gone;

/// Bytes that a link keeps for its port, past which senders wait.
const KEPT_LIMIT_BYTES: usize = 256 * 1024;

/// Room for one read while waiting for a hello, in bytes.
pub const HELLO_READ_BYTES: usize = 32 * 1024;

/// Room for further reads from the port, made once there is less than [`LEAST_READ_BYTES`]: making
/// room moves what has arrived of a frame, and a guest reads a page at a time.
const READ_BYTES: usize = 128 * 1024;
const LEAST_READ_BYTES: usize = 16 * 1024;

/// Side of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The host, which opens streams.
    Host,
    /// The guest, which serves them.
    Guest,
}

/// Session of a stream port. Clones are the same session.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Signals that there is something to write.
    output: Notify,
    /// Signals that senders may have room, or the link has ended.
    room: Notify,
}

/// Stream that the host has requested.
pub struct Opening {
    /// End of the stream.
    pub target: Target,
    /// Receiving half.
    pub incoming: Incoming,
    /// Sending half, on which the answer is expected: [`Outgoing::opened`] or
    /// [`Outgoing::refuse`].
    pub outgoing: Outgoing,
}

/// Reason why a link has ended.
#[derive(Debug)]
pub enum End {
    /// The other side has closed the port.
    HungUp,
    /// The port failed.
    Failed(io::Error),
    /// The other side has sent what is no frame of the session, or more than it may.
    Lost,
    /// Another host has begun a session.
    Replaced(Hello),
}

/// Waits for an expected hello. Returns `None` if the other side hangs up. Cancel-safe.
///
/// # Errors
/// The port failed.
pub async fn receive_hello(
    decoder: &mut Decoder,
    reader: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<Hello>> {
    loop {
        while let Some(event) = decoder.next_event() {
            if let Event::Hello(hello) = event {
                return Ok(Some(hello));
            }
        }
        decoder.buffer().reserve(HELLO_READ_BYTES);
        if reader.read_buf(decoder.buffer()).await? == 0 {
            return Ok(None);
        }
    }
}

impl Link {
    /// Returns a link for the session of a hello, which the guest answers and the host has sent.
    pub fn new(side: Side, hello: &Hello) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State::new(side, hello)),
            output: Notify::new(),
            room: Notify::new(),
        }))
    }

    /// Requests a stream. The halves may be used at once; the guest's answer comes first on the
    /// receiving one.
    ///
    /// # Errors
    /// The link has ended, or has too many streams.
    pub fn open(&self, target: Bytes) -> Result<(Incoming, Outgoing), Gone> {
        let (id, receiver) = self.state().open()?;
        self.queue(id, &Frame::Open(target))?;
        Ok(channel::halves(self, id, receiver))
    }

    /// Returns `true` once the link has ended.
    pub fn has_ended(&self) -> bool {
        self.state().has_ended()
    }

    /// Waits for a sign of life.
    ///
    /// # Errors
    /// The link has ended.
    pub async fn ping(&self) -> Result<(), Gone> {
        let (sender, receiver) = oneshot::channel();
        self.state().expect_pong(sender)?;
        self.queue(0, &Frame::Ping)?;
        receiver.await.map_err(|_| Gone)
    }

    /// Moves frames between the port and the channels until the link ends, and passes on each
    /// stream that the host requests. All channels have ended when this returns or is dropped.
    pub async fn drive(
        &self,
        decoder: &mut Decoder,
        reader: impl AsyncRead + Unpin,
        writer: impl AsyncWrite + Unpin,
        opening: impl FnMut(Opening),
    ) -> End {
        let _ended = EndOnDrop(self);
        tokio::select! {
            end = self.read(decoder, reader, opening) => end,
            error = self.write(writer) => End::Failed(error),
        }
    }

    async fn read(
        &self,
        decoder: &mut Decoder,
        mut reader: impl AsyncRead + Unpin,
        mut opening: impl FnMut(Opening),
    ) -> End {
        loop {
            while let Some(event) = decoder.next_event() {
                match event {
                    Event::Lost => return End::Lost,
                    Event::Hello(hello) => return End::Replaced(hello),
                    Event::Frame(stream, frame) => match self.receive(stream, frame) {
                        Ok(None) => {}
                        Ok(Some(requested)) => opening(requested),
                        Err(Violation) => return End::Lost,
                    },
                }
            }
            let buffer = decoder.buffer();
            if buffer.capacity() - buffer.len() < LEAST_READ_BYTES {
                buffer.reserve(READ_BYTES);
            }
            match reader.read_buf(decoder.buffer()).await {
                Ok(0) => return End::HungUp,
                Ok(_) => {}
                Err(error) => return End::Failed(error),
            }
        }
    }

    async fn write(&self, mut writer: impl AsyncWrite + Unpin) -> io::Error {
        loop {
            let waiting = self.0.output.notified();
            let bytes = self.state().take_output();
            if bytes.is_empty() {
                waiting.await;
                continue;
            }
            self.0.room.notify_waiters();
            if let Err(error) = writer.write_all(&bytes).await {
                return error;
            }
        }
    }

    /// Takes a frame. Returns the stream that it requests, if it is such a request.
    fn receive(&self, stream: u16, frame: Frame) -> Result<Option<Opening>, Violation> {
        let mut state = self.state();
        match frame {
            Frame::Ping => {
                state.queue_pong();
                drop(state);
                self.0.output.notify_one();
                return Ok(None);
            }
            Frame::Pong => state.pong(),
            Frame::Grant(bytes) => {
                state.granted(stream, bytes);
                drop(state);
                self.0.room.notify_waiters();
                return Ok(None);
            }
            Frame::Open(target) => {
                let receiver = state.opened_by_peer(stream)?;
                drop(state);
                return Ok(self.requested(stream, receiver, &target));
            }
            frame => {
                let is_close = frame == Frame::Close;
                let unreceived = state.deliver(self, stream, frame)?;
                drop(state);
                drop(unreceived);
                if is_close {
                    self.0.room.notify_waiters();
                }
            }
        }
        Ok(None)
    }

    fn requested(
        &self,
        stream: u16,
        receiver: Option<channel::Receiver>,
        target: &[u8],
    ) -> Option<Opening> {
        let Some(receiver) = receiver else {
            let _ = self.queue(stream, &Frame::Refused(Refusal::Unavailable));
            return None;
        };
        let (incoming, outgoing) = channel::halves(self, stream, receiver);
        match Target::decode(target) {
            Ok(target) => Some(Opening { target, incoming, outgoing }),
            Err(_) => {
                let _ = outgoing.refuse(Refusal::Malformed);
                None
            }
        }
    }

    fn queue(&self, stream: u16, frame: &Frame) -> Result<(), Gone> {
        self.state().queue(stream, frame)?;
        self.0.output.notify_one();
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// More than the protocol permits the other side.
#[derive(Debug)]
struct Violation;

struct EndOnDrop<'a>(&'a Link);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.state().end();
        self.0.0.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
