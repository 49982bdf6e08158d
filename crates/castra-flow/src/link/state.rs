//! State of a link: its streams, their windows, and what waits for the port.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use castra_wire::stream::{Frame, Hello, MAX_STREAMS, STREAM_WINDOW_BYTES, Tag, frame_cost_bytes};
use tokio::sync::{mpsc, oneshot};

use super::channel::{Consumption, Receiver};
use super::{KEPT_LIMIT_BYTES, Link, Side, Violation};
use crate::Gone;
use crate::channel::{Message, Received};

/// Consumed bytes that are granted together.
const GRANT_BYTES: u32 = STREAM_WINDOW_BYTES / 4;

/// Messages without data that may wait for a channel's receiver.
const MAX_PENDING: usize = 1024;

pub(super) struct State {
    side: Side,
    tag: Tag,
    output: BytesMut,
    streams: HashMap<u16, Stream>,
    next: u16,
    pongs: VecDeque<oneshot::Sender<()>>,
    has_ended: bool,
}

struct Stream {
    inbox: mpsc::UnboundedSender<Message>,
    /// Number of messages without data in the inbox.
    pending: Arc<AtomicUsize>,
    /// Bytes that we may still send.
    may_send: u32,
    /// Bytes that the peer may still send.
    may_receive: u32,
    /// Bytes that were consumed and not granted again.
    consumed: u32,
    is_closed_here: bool,
    is_closed_there: bool,
}

impl State {
    pub(super) fn new(side: Side, hello: &Hello) -> Self {
        let output = match side {
            Side::Host => BytesMut::new(),
            Side::Guest => Hello::of(hello.session).encode().into(),
        };
        Self {
            side,
            tag: hello.tag(),
            output,
            streams: HashMap::new(),
            next: 0,
            pongs: VecDeque::new(),
            has_ended: false,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Makes a stream with a number that is free.
    pub(super) fn open(&mut self) -> Result<(u16, Receiver), Gone> {
        if self.has_ended || self.streams.len() >= MAX_STREAMS {
            return Err(Gone);
        }
        loop {
            self.next = self.next.wrapping_add(1).max(1);
            if !self.streams.contains_key(&self.next) {
                return Ok((self.next, self.add(self.next)));
            }
        }
    }

    /// Makes the stream that the host requests; `None` if there are too many.
    pub(super) fn opened_by_peer(&mut self, id: u16) -> Result<Option<Receiver>, Violation> {
        if self.side == Side::Host || id == 0 || self.streams.contains_key(&id) {
            return Err(Violation);
        }
        Ok((self.streams.len() < MAX_STREAMS).then(|| self.add(id)))
    }

    fn add(&mut self, id: u16) -> Receiver {
        let (inbox, messages) = mpsc::unbounded_channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let stream = Stream {
            inbox,
            pending: Arc::clone(&pending),
            may_send: STREAM_WINDOW_BYTES,
            may_receive: STREAM_WINDOW_BYTES,
            consumed: 0,
            is_closed_here: false,
            is_closed_there: false,
        };
        self.streams.insert(id, stream);
        Receiver { messages, pending }
    }

    /// Queues a frame that needs no window.
    pub(super) fn queue(&mut self, id: u16, frame: &Frame) -> Result<(), Gone> {
        if self.has_ended {
            return Err(Gone);
        }
        frame.encode(id, self.tag, &mut self.output);
        Ok(())
    }

    /// Queues a frame of a stream that is open.
    pub(super) fn queue_on(&mut self, id: u16, frame: &Frame) -> Result<(), Gone> {
        if self.streams.get(&id).is_none_or(|stream| stream.is_closed_here) {
            return Err(Gone);
        }
        self.queue(id, frame)
    }

    /// Returns the number of bytes of this data that can be queued now; 0 if there is no room.
    pub(super) fn room(&self, id: u16, wanted: usize) -> Result<usize, Gone> {
        let stream = self.streams.get(&id).filter(|stream| !stream.is_closed_here).ok_or(Gone)?;
        if self.has_ended || stream.is_closed_there {
            return Err(Gone);
        }
        if self.output.len() >= KEPT_LIMIT_BYTES {
            return Ok(0);
        }
        let window = stream.may_send.saturating_sub(frame_cost_bytes(0));
        Ok(wanted.min(window as usize))
    }

    /// Queues data for which there is [room](Self::room).
    pub(super) fn queue_data(&mut self, id: u16, frame: &Frame, bytes: usize) -> Result<(), Gone> {
        let stream = self.streams.get_mut(&id).ok_or(Gone)?;
        stream.may_send = stream.may_send.saturating_sub(frame_cost_bytes(bytes));
        self.queue(id, frame)
    }

    /// Queues the answer to a ping, unless answers pile up.
    pub(super) fn queue_pong(&mut self) {
        if self.output.len() < 2 * KEPT_LIMIT_BYTES {
            // A link that has ended has no peer.
            let _ = self.queue(0, &Frame::Pong);
        }
    }

    pub(super) fn take_output(&mut self) -> Bytes {
        self.output.split().freeze()
    }

    pub(super) fn expect_pong(&mut self, sender: oneshot::Sender<()>) -> Result<(), Gone> {
        if self.has_ended {
            return Err(Gone);
        }
        self.pongs.retain(|waiting| !waiting.is_closed());
        self.pongs.push_back(sender);
        Ok(())
    }

    pub(super) fn pong(&mut self) {
        // Without a waiting sender it answers an earlier ping.
        if let Some(sender) = self.pongs.pop_front() {
            let _ = sender.send(());
        }
    }

    pub(super) fn granted(&mut self, id: u16, bytes: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.may_send = stream.may_send.saturating_add(bytes).min(STREAM_WINDOW_BYTES);
        }
    }

    /// Passes a frame to its channel. Returns a message without a receiver, to be dropped
    /// without this state's lock, which counting it as consumed needs.
    pub(super) fn deliver(
        &mut self,
        link: &Link,
        id: u16,
        frame: Frame,
    ) -> Result<Option<Message>, Violation> {
        let side = self.side;
        // The rest of a stream that is closed here.
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        let mut received = |bytes: Bytes| {
            let cost = frame_cost_bytes(bytes.len());
            stream.may_receive = stream.may_receive.checked_sub(cost).ok_or(Violation)?;
            Ok::<_, Violation>(Received::of_link(bytes, Consumption::new(link, id, cost)))
        };
        let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
        let message = match (frame, side) {
            (Frame::Data(bytes), _) => Message::Data(received(bytes)?),
            (Frame::Stderr(bytes), Side::Host) => Message::Stderr(received(bytes)?),
            (Frame::EndOfData, _) => Message::EndOfData,
            (Frame::Close, _) => {
                stream.is_closed_there = true;
                Message::Closed
            }
            (Frame::Opened, Side::Host) => Message::Opened,
            (Frame::Refused(reason), Side::Host) => Message::Refused(reason),
            (Frame::ExitStatus(code), Side::Host) => Message::ExitStatus(code),
            (Frame::ExitSignal(name), Side::Host) => Message::ExitSignal(text(name)),
            (Frame::Signal(name), Side::Guest) => Message::Signal(text(name)),
            (Frame::Resize(window), Side::Guest) => Message::Resize(window),
            _ => return Err(Violation),
        };
        if !matches!(message, Message::Data(_) | Message::Stderr(_))
            && stream.pending.fetch_add(1, Ordering::Relaxed) >= MAX_PENDING
        {
            return Err(Violation);
        }
        let unreceived = stream.inbox.send(message).err().map(|unsent| unsent.0);
        if stream.is_closed_here && stream.is_closed_there {
            self.streams.remove(&id);
        }
        Ok(unreceived)
    }

    /// Counts consumed bytes, and queues a grant once there are enough. Returns `true` if it has.
    pub(super) fn consumed(&mut self, id: u16, bytes: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        stream.consumed += bytes;
        if stream.consumed < GRANT_BYTES {
            return false;
        }
        let granted = std::mem::take(&mut stream.consumed);
        stream.may_receive += granted;
        self.queue(id, &Frame::Grant(granted)).is_ok()
    }

    /// Closes a stream on this side. Returns `true` the first time.
    pub(super) fn close(&mut self, id: u16) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        if std::mem::replace(&mut stream.is_closed_here, true) {
            return false;
        }
        if stream.is_closed_there {
            self.streams.remove(&id);
        }
        self.queue(id, &Frame::Close).is_ok()
    }

    /// Ends the link: nothing more is sent or received.
    pub(super) fn end(&mut self) {
        self.has_ended = true;
        self.streams.clear();
        self.pongs.clear();
        self.output.clear();
    }
}
