//! Channels of SSH, with back-pressure.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use russh::{Channel, ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::sync::Mutex;

use crate::Flow;
use crate::channel::Received;

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
        Received::of_ssh(data, self.id, self.flow.clone())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.flow.forget(self.id);
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
