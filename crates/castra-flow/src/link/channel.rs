//! Halves of a stream.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use castra_wire::stream::{Frame, MAX_PAYLOAD_BYTES, Refusal, Window};
use tokio::sync::mpsc;

use super::Link;
use crate::Gone;
use crate::channel::Message;

/// Messages of a stream, as its link delivers them.
pub(super) struct Receiver {
    pub(super) messages: mpsc::UnboundedReceiver<Message>,
    /// Number of messages without data among them.
    pub(super) pending: Arc<AtomicUsize>,
}

/// Destination of a program's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Data,
    Stderr,
}

/// The receiving half of a stream.
pub struct Incoming(Receiver);

/// The sending half of a stream. Dropping it closes the stream.
pub struct Outgoing {
    link: Link,
    id: u16,
}

/// Part of a window that received data takes, until this is dropped.
pub struct Consumption {
    link: Link,
    id: u16,
    bytes: u32,
}

pub(super) fn halves(link: &Link, id: u16, receiver: Receiver) -> (Incoming, Outgoing) {
    (Incoming(receiver), Outgoing { link: link.clone(), id })
}

impl Incoming {
    pub(crate) async fn next(&mut self) -> Option<Message> {
        let message = self.0.messages.recv().await?;
        if !matches!(message, Message::Data(_) | Message::Stderr(_)) {
            self.0.pending.fetch_sub(1, Ordering::Relaxed);
        }
        Some(message)
    }
}

impl Outgoing {
    pub(crate) async fn send(&self, mut data: Bytes, kind: Kind) -> Result<(), Gone> {
        while !data.is_empty() {
            let mut room = pin!(self.link.0.room.notified());
            room.as_mut().enable();
            {
                let mut state = self.link.state();
                let count = state.room(self.id, data.len().min(MAX_PAYLOAD_BYTES))?;
                if count > 0 {
                    let part = data.split_to(count);
                    let frame = match kind {
                        Kind::Data => Frame::Data(part),
                        Kind::Stderr => Frame::Stderr(part),
                    };
                    state.queue_data(self.id, &frame, count)?;
                    self.link.0.output.notify_one();
                    continue;
                }
            }
            room.await;
        }
        Ok(())
    }

    pub(crate) fn end_data(&self) -> Result<(), Gone> {
        self.put(&Frame::EndOfData)
    }

    pub(crate) fn close(&self) -> Result<(), Gone> {
        if self.link.state().close(self.id) {
            self.link.0.output.notify_one();
            self.link.0.room.notify_waiters();
        }
        Ok(())
    }

    pub(crate) fn exit_status(&self, code: u32) -> Result<(), Gone> {
        self.put(&Frame::ExitStatus(code))
    }

    pub(crate) fn exit_signal(&self, name: &str) -> Result<(), Gone> {
        self.put(&Frame::ExitSignal(Bytes::copy_from_slice(name.as_bytes())))
    }

    pub(crate) fn signal(&self, name: &str) -> Result<(), Gone> {
        self.put(&Frame::Signal(Bytes::copy_from_slice(name.as_bytes())))
    }

    pub(crate) fn resize(&self, window: Window) -> Result<(), Gone> {
        self.put(&Frame::Resize(window))
    }

    /// Grants the request for the stream.
    ///
    /// # Errors
    /// The link has ended.
    pub fn opened(&self) -> Result<(), Gone> {
        self.put(&Frame::Opened)
    }

    /// Refuses the request for the stream, and closes it.
    ///
    /// # Errors
    /// The link has ended.
    pub fn refuse(&self, reason: Refusal) -> Result<(), Gone> {
        self.put(&Frame::Refused(reason))?;
        self.close()
    }

    fn put(&self, frame: &Frame) -> Result<(), Gone> {
        self.link.state().queue_on(self.id, frame)?;
        self.link.0.output.notify_one();
        Ok(())
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // Fails if the link has ended, and the stream with it.
        let _ = self.close();
    }
}

impl Consumption {
    pub(super) fn new(link: &Link, id: u16, bytes: u32) -> Self {
        Self { link: link.clone(), id, bytes }
    }
}

impl Drop for Consumption {
    fn drop(&mut self) {
        if self.link.state().consumed(self.id, self.bytes) {
            self.link.0.output.notify_one();
        }
    }
}

impl std::fmt::Debug for Consumption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumption").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
