//! Frames and hellos, found in a byte stream that may begin anywhere.

use bytes::{Buf as _, Bytes, BytesMut};

use super::frame::{HEADER_BYTES, HELLO_BYTES, Hello, MAGIC};
use super::{FRAME_OVERHEAD_BYTES, Frame, MAX_PAYLOAD_BYTES, Tag};
use crate::Session;

/// Hellos that begin a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Any: the guest takes the session of each host.
    Any,
    /// The answer to the host's own hello; what belongs to other sessions is skipped.
    Only(Session),
}

/// Next thing found in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A new session; all streams of the one before have ended.
    Hello(Hello),
    /// A frame of the session, and the stream it concerns.
    Frame(u16, Frame),
    /// Bytes that are no frame of the session, which has thereby ended.
    Lost,
}

/// Decoder of a stream port's bytes.
#[derive(Debug)]
pub struct Decoder {
    expected: Expected,
    buffer: BytesMut,
    /// Tag of the session; `None` while looking for a hello.
    tag: Option<Tag>,
}

impl Decoder {
    /// Returns a decoder that looks for a hello.
    pub fn new(expected: Expected) -> Self {
        Self { expected, buffer: BytesMut::new(), tag: None }
    }

    /// Returns the buffer, to append received bytes to.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Forgets everything received: the other side has hung up.
    pub fn clear(&mut self) {
        self.buffer.clear();
        self.tag = None;
    }

    /// Returns the next event, or `None` until more bytes have been received.
    pub fn next_event(&mut self) -> Option<Event> {
        let Some(tag) = self.tag else { return self.find_hello().map(Event::Hello) };
        if self.buffer.starts_with(&MAGIC) {
            let Some(hello) = Hello::decode(self.buffer.first_chunk::<HELLO_BYTES>()?) else {
                return self.lost();
            };
            self.buffer.advance(HELLO_BYTES);
            return match self.expected {
                Expected::Only(session) if session != hello.session => self.lost(),
                // The answer to a repeated hello.
                Expected::Only(_) => self.next_event(),
                Expected::Any => {
                    self.tag = Some(hello.tag());
                    Some(Event::Hello(hello))
                }
            };
        }
        // A hello may be incomplete.
        if !self.buffer.is_empty() && MAGIC.starts_with(&self.buffer) {
            return None;
        }
        let header: &[u8; HEADER_BYTES] = self.buffer.first_chunk()?;
        let [kind, zero, s0, s1, l0, l1, l2, l3] = *header;
        let length = usize::try_from(u32::from_be_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        if zero != 0 || kind == 0 || length > MAX_PAYLOAD_BYTES {
            return self.lost();
        }
        if self.buffer.len() < length + FRAME_OVERHEAD_BYTES {
            return None;
        }
        if self.buffer[HEADER_BYTES + length..length + FRAME_OVERHEAD_BYTES] != tag.0 {
            return self.lost();
        }
        self.buffer.advance(HEADER_BYTES);
        // A copy: a slice would keep all bytes around it in memory, and those are in no window.
        let payload = Bytes::copy_from_slice(&self.buffer[..length]);
        self.buffer.advance(length + tag.0.len());
        match Frame::decode(kind, payload) {
            Some(frame) => Some(Event::Frame(u16::from_be_bytes([s0, s1]), frame)),
            None => self.lost(),
        }
    }

    /// Ends the session. The next hello may lie inside what seemed to be a frame, so nothing is
    /// dropped yet.
    #[expect(clippy::unnecessary_wraps, reason = "each caller returns it")]
    fn lost(&mut self) -> Option<Event> {
        self.tag = None;
        Some(Event::Lost)
    }

    /// Looks for an expected hello, and drops everything before it.
    fn find_hello(&mut self) -> Option<Hello> {
        loop {
            let start = self.buffer.windows(MAGIC.len()).position(|bytes| bytes == MAGIC);
            let Some(start) = start else {
                // The magic number may have begun.
                let rest = self.buffer.len().saturating_sub(MAGIC.len() - 1);
                self.buffer.advance(rest);
                return None;
            };
            self.buffer.advance(start);
            let Some(hello) = Hello::decode(self.buffer.first_chunk::<HELLO_BYTES>()?) else {
                self.buffer.advance(1);
                continue;
            };
            self.buffer.advance(HELLO_BYTES);
            if matches!(self.expected, Expected::Only(session) if session != hello.session) {
                continue;
            }
            self.tag = Some(hello.tag());
            return Some(hello);
        }
    }
}
