use std::io;
use std::ops::Deref;
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex, mpsc};

use crate::{Flow, PACKET_BYTES};

/// A session loop that does not take a message this long is in a key exchange: otherwise it takes microseconds.
const STALL: Duration = Duration::from_millis(50);

/// The two halves of a channel, and its data counted from now on.
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

/// What comes on a channel.
pub enum Message {
    /// Data; with a number, extended data (1 is stderr).
    Data(Option<u32>, Received),
    /// Anything else.
    Other(ChannelMsg),
}

/// The receiving half of a channel. What has come and not been taken when it is dropped counts no longer.
pub struct Incoming {
    half: ChannelReadHalf,
    id: ChannelId,
    flow: Flow,
}

impl Incoming {
    /// The next message; nothing once the connection has ended.
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

/// Data that has arrived. Dropping it tells the flow that it is consumed.
pub struct Received {
    data: Bytes,
    /// Bytes that arrived, those skipped included.
    counted: usize,
    id: ChannelId,
    flow: Flow,
}

impl Received {
    /// Leaves out the first bytes, which have been used already. They count as long as the rest.
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

/// The sending half of a channel, which waits for the socket and for the peer's window, and says so to the flow.
pub struct Outgoing<S: From<(ChannelId, ChannelMsg)>> {
    half: ChannelWriteHalf<S>,
    flow: Flow,
    /// One sender at a time: the window seen must be the window used.
    turn: Mutex<()>,
}

impl<S: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static> Outgoing<S> {
    /// The half itself, for everything but data.
    pub fn half(&self) -> &ChannelWriteHalf<S> {
        &self.half
    }

    /// Sends data, or extended data (`ext` 1 is stderr), once the socket and the peer's window have room for it.
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
                // One byte: what follows is sent knowing the new window.
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

/// Joins a channel and a stream, half-close by half-close, until both directions have ended or the peer closes. Then
/// reports `exit_status`, for a channel on which a program was asked for.
pub async fn relay<S, T>(mut incoming: Incoming, outgoing: Outgoing<S>, stream: T, exit_status: Option<u32>)
where
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
            outgoing.send(None, Bytes::copy_from_slice(&buffer[..count])).await.map_err(io::Error::other)?;
        }
        outgoing.half().eof().await.map_err(io::Error::other)
    };
    let is_closed = tokio::select! {
        () = forward_until_closed(&mut incoming, sender) => true,
        // Either end of the stream may fail first; the channel closes with both.
        _ = async { tokio::join!(&mut copy_in, copy_out) } => false,
    };
    if is_closed {
        // The peer wants no more, but what it has sent before is still on its way.
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
                    // Nobody writes any more: the data is dropped, and so counted as consumed.
                    let _ = sender.send(data);
                }
            }
            Message::Other(ChannelMsg::Eof) => sender = None,
            Message::Other(ChannelMsg::Close) => break,
            _ => {}
        }
    }
}
