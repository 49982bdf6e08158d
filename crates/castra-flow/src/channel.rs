use std::io;
use std::ops::Deref;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex, mpsc};

use crate::{Flow, PACKET_BYTES};

/// Longest time a session loop takes to accept a message outside a key exchange, when it needs
/// microseconds.
const STALL: Duration = Duration::from_millis(50);

/// Splits a channel into its halves and starts counting its data.
pub fn split<S>(channel: Channel<S>, flow: &Flow) -> (Incoming, Outgoing<S>)
where
    S: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
{
    let id = channel.id();
    flow.listen(id);
    let (incoming, outgoing) = channel.split();
    (
        Incoming { half: incoming, id, flow: flow.clone() },
        Outgoing { half: outgoing, flow: flow.clone(), turn: Mutex::new(()) },
    )
}

/// A message received on a channel.
pub enum Message {
    /// Data; with a number, extended data (1 is stderr).
    Data(Option<u32>, Received),
    /// Anything else.
    Other(ChannelMsg),
}

/// The receiving half of a channel. Data that has arrived but was not received when the half is
/// dropped no longer counts.
pub struct Incoming {
    half: ChannelReadHalf,
    id: ChannelId,
    flow: Flow,
}

impl Incoming {
    /// Receives the next message; `None` once the connection has ended.
    pub async fn next(&mut self) -> Option<Message> {
        Some(match self.half.wait().await? {
            ChannelMsg::Data { data } => Message::Data(None, self.received(data)),
            ChannelMsg::ExtendedData { data, ext } => Message::Data(Some(ext), self.received(data)),
            other => Message::Other(other),
        })
    }

    fn received(&self, data: Bytes) -> Received {
        Received { counted: data.len(), data, id: self.id, flow: self.flow.clone() }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.flow.forget(self.id);
    }
}

/// Data that has arrived. Dropping it reports it to the flow as consumed.
pub struct Received {
    data: Bytes,
    /// Number of bytes that arrived, including those skipped.
    counted: usize,
    id: ChannelId,
    flow: Flow,
}

impl Received {
    /// Drops the first bytes from the front, because they have been used already. They keep
    /// counting until the rest is consumed.
    pub fn skip(&mut self, bytes: usize) {
        self.data.advance(bytes.min(self.data.len()));
    }
}

impl Deref for Received {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.flow.consumed(self.id, self.counted);
    }
}

/// The sending half of a channel. Waits for the socket and for the peer's window, and reports those
/// waits to the flow.
pub struct Outgoing<S: From<(ChannelId, ChannelMsg)>> {
    half: ChannelWriteHalf<S>,
    flow: Flow,
    /// Held by one sender at a time, so that the window it has seen is still there when it uses it.
    turn: Mutex<()>,
}

impl<S: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static> Outgoing<S> {
    /// Returns the channel's own half, for everything but data.
    pub fn half(&self) -> &ChannelWriteHalf<S> {
        &self.half
    }

    /// Sends data, or extended data (`ext` 1 is stderr), once the socket and the peer's window have
    /// room for it.
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn send(&self, ext: Option<u32>, mut data: Bytes) -> Result<(), russh::Error> {
        let _turn = self.turn.lock().await;
        while !data.is_empty() {
            self.flow.room_to_send().await;
            let room = self.half.writable_packet_size().await;
            if room == 0 {
                let _starved = self.flow.starved();
                // One byte only: the rest is sent once the new window is known.
                self.put(ext, data.split_to(1)).await?;
                continue;
            }
            let mut put = pin!(self.put(ext, data.split_to(room.min(data.len()))));
            if let Ok(sent) = tokio::time::timeout(STALL, put.as_mut()).await {
                sent?;
            } else {
                let _stalled = self.flow.stalled();
                put.await?;
            }
        }
        Ok(())
    }

    async fn put(&self, ext: Option<u32>, data: Bytes) -> Result<(), russh::Error> {
        match ext {
            None => self.half.data_bytes(data).await,
            Some(ext) => self.half.extended_data_bytes(ext, data).await,
        }
    }
}

/// Joins a channel and a stream until both directions have ended or the peer closes; each direction
/// may end by itself. Then reports `exit_status`, for a channel on which a program was requested.
pub async fn relay<S, T>(
    mut incoming: Incoming,
    outgoing: Outgoing<S>,
    stream: T,
    exit_status: Option<u32>,
) where
    S: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
    T: AsyncRead + AsyncWrite,
{
    let (mut from_stream, mut to_stream) = tokio::io::split(stream);
    let (sender, mut received) = mpsc::unbounded_channel();

    let mut copy_in = pin!(async {
        while let Some(data) = received.recv().await {
            let data: Received = data;
            to_stream.write_all(&data).await?;
        }
        to_stream.shutdown().await
    });
    let copy_out = async {
        let mut buffer = vec![0; PACKET_BYTES as usize];
        loop {
            let count = from_stream.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            outgoing
                .send(None, Bytes::copy_from_slice(&buffer[..count]))
                .await
                .map_err(io::Error::other)?;
        }
        outgoing.half().eof().await.map_err(io::Error::other)
    };
    let is_closed = tokio::select! {
        () = forward_until_closed(&mut incoming, sender) => true,
        // Either end of the stream may fail first; the channel closes with both.
        _ = async { tokio::join!(&mut copy_in, copy_out) } => false,
    };
    if is_closed {
        // The peer wants no more, but data that it sent before is still in flight.
        let _ = copy_in.await;
        return;
    }
    // An error means that the connection is gone, and the channel with it.
    if let Some(status) = exit_status {
        let _ = outgoing.half().exit_status(status).await;
    }
    let _ = outgoing.half().close().await;
}

async fn forward_until_closed(incoming: &mut Incoming, sender: mpsc::UnboundedSender<Received>) {
    let mut sender = Some(sender);
    while let Some(message) = incoming.next().await {
        match message {
            Message::Data(None, data) => {
                if let Some(sender) = &sender {
                    // There is no writer any more: dropping the data counts it as consumed.
                    let _ = sender.send(data);
                }
            }
            Message::Other(ChannelMsg::Eof) => sender = None,
            Message::Other(ChannelMsg::Close) => break,
            _ => {}
        }
    }
}
