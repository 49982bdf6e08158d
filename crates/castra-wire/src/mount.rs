//! Messages on the stream of a mount: a directory of the host that the guest's kernel reaches by
//! FUSE.
//!
//! The agent mounts the directory and relays raw FUSE messages between `/dev/fuse` and the stream;
//! a process of the host answers them. Each message of the stream has a header:
//!
//! ```text
//! 0          4      5
//! │ length n │ kind │ payload of n - 1 bytes │
//! ```
//!
//! Before the machine is saved, the host drains the mount: the agent takes no further request from
//! the kernel and reports when the last one is answered. Requests that come meanwhile wait in the
//! guest's memory, and are saved with it. So is the state of the host's process, which the agent
//! gives to the next one, so that open files stay open.
//!
//! ```text
//! host                                   agent
//!  │ open {mount at /src} ──────────────► │
//!  │ ◄──────────────────────────── opened │
//!  │ ◄────────────────────────── state... │  (if the agent keeps one)
//!  │ ◄──────── mounted or resumed, or failed {reason}
//!  │ ◄─────────────────────────── request │  (FUSE, from the kernel)
//!  │ reply ─────────────────────────────► │
//!  │ ◄──────────────────── notice ──────► │  (FUSE, without an answer)
//!  │ drain ─────────────────────────────► │
//!  │ ◄─────────────────────────── drained │
//!  │ state... ──────────────────────────► │
//!  │ ◄────────────────────────────── kept │
//!  │ continue ──────────────────────────► │  (if the machine was not saved)
//!  │ verify ────────────────────────────► │
//!  │ ◄────────────── resumed or unmounted │
//!  │ unmount ───────────────────────────► │
//!  │ ◄───────────────── unmounted, or failed {reason}
//!  │ changes... ────────────────────────► │  (if the host has asked whether the agent knows them)
//!  │ ◄────────────────────────── repeated │
//! ```

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// Longest message, in bytes: the largest FUSE request, which writes 1 MiB, and some more.
pub const MAX_MOUNT_MESSAGE_BYTES: usize = 1024 * 1024 + 64 * 1024;

/// Longest state of a host's process that an agent keeps, in bytes.
pub const MAX_MOUNT_STATE_BYTES: usize = 16 * 1024 * 1024;

/// Longest reason of a failure that is sent, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// Bytes of a message's length.
const LENGTH_BYTES: usize = 4;

/// A message of a mount's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountMessage {
    /// Request of the guest's kernel, with its FUSE header.
    Request(Bytes),
    /// Answer for the guest's kernel, with its FUSE header.
    Reply(Bytes),
    /// FUSE message without an answer: a request of the guest's kernel that has none, or that the
    /// agent has answered, or a notification for the kernel.
    Notice(Bytes),
    /// The directory is mounted now.
    Mounted,
    /// The directory is mounted, and was before.
    Resumed,
    /// Request to check that the directory is still mounted: [`Self::Resumed`] if it is, and
    /// [`Self::Unmounted`] otherwise.
    Verify,
    /// Request for no further requests of the kernel.
    Drain,
    /// No request is unanswered, and none will follow.
    Drained,
    /// Part of the state of the host's process, for the next one. An empty part ends it.
    State(Bytes),
    /// The agent keeps the state.
    Kept,
    /// Request for requests again. The agent forgets the state.
    Continue,
    /// Request to unmount the directory.
    Unmount,
    /// The directory is unmounted.
    Unmounted,
    /// The directory could not be mounted or unmounted, for this reason.
    Failed(String),
    /// Encoded [`Changes`](crate::Changes) of the host. The next ones follow once these are
    /// repeated.
    Changes(Bytes),
    /// The changes are repeated in the guest, as far as they can be.
    Repeated,
}

/// Error for bytes that are no message of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a message of a mount")]
pub struct MountMessageError;

impl MountMessage {
    /// Returns the encoded message.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        let payload: &[u8] = match self {
            Self::Request(payload)
            | Self::Reply(payload)
            | Self::Notice(payload)
            | Self::Changes(payload)
            | Self::State(payload) => payload,
            Self::Failed(reason) => &reason.as_bytes()[..reason.len().min(MAX_REASON_BYTES)],
            _ => &[],
        };
        bytes.reserve(LENGTH_BYTES + 1 + payload.len());
        bytes.put_u32(u32::try_from(payload.len() + 1).unwrap_or(u32::MAX));
        bytes.put_u8(self.kind());
        bytes.put_slice(payload);
        bytes.freeze()
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Request(_) => 1,
            Self::Reply(_) => 2,
            Self::Mounted => 3,
            Self::Drain => 4,
            Self::Drained => 5,
            Self::Continue => 6,
            Self::Unmount => 7,
            Self::Unmounted => 8,
            Self::Failed(_) => 9,
            Self::Notice(_) => 10,
            Self::State(_) => 11,
            Self::Kept => 12,
            Self::Resumed => 13,
            Self::Verify => 14,
            Self::Changes(_) => 15,
            Self::Repeated => 16,
        }
    }

    fn decode(kind: u8, payload: Bytes) -> Result<Self, MountMessageError> {
        let empty = |message| if payload.is_empty() { Ok(message) } else { Err(MountMessageError) };
        match kind {
            3 => empty(Self::Mounted),
            4 => empty(Self::Drain),
            5 => empty(Self::Drained),
            6 => empty(Self::Continue),
            7 => empty(Self::Unmount),
            8 => empty(Self::Unmounted),
            1 => Ok(Self::Request(payload)),
            2 => Ok(Self::Reply(payload)),
            9 if payload.len() <= MAX_REASON_BYTES => {
                Ok(Self::Failed(String::from_utf8_lossy(&payload).into_owned()))
            }
            10 => Ok(Self::Notice(payload)),
            11 => Ok(Self::State(payload)),
            12 => empty(Self::Kept),
            13 => empty(Self::Resumed),
            14 => empty(Self::Verify),
            15 => Ok(Self::Changes(payload)),
            16 => empty(Self::Repeated),
            _ => Err(MountMessageError),
        }
    }
}

/// Splitter of a stream's bytes into messages. Holds at most one message and what was pushed last,
/// provided that [`Self::next_message`] is called until it returns `None` before the next push.
#[derive(Debug, Default)]
pub struct MountDecoder {
    held: BytesMut,
}

impl MountDecoder {
    /// Appends the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// Returns the next complete message.
    ///
    /// # Errors
    /// [`MountMessageError`], after which the stream is of no use.
    pub fn next_message(&mut self) -> Result<Option<MountMessage>, MountMessageError> {
        let Some(length) = self.held.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length == 0 || length > MAX_MOUNT_MESSAGE_BYTES {
            return Err(MountMessageError);
        }
        if self.held.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.held.advance(LENGTH_BYTES);
        let mut message = self.held.split_to(length).freeze();
        let kind = message.get_u8();
        MountMessage::decode(kind, message).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<MountMessage> {
        vec![
            MountMessage::Request(Bytes::from_static(b"request")),
            MountMessage::Reply(Bytes::new()),
            MountMessage::Notice(Bytes::from_static(b"notice")),
            MountMessage::Mounted,
            MountMessage::Resumed,
            MountMessage::Verify,
            MountMessage::Drain,
            MountMessage::Drained,
            MountMessage::State(Bytes::from_static(b"state")),
            MountMessage::State(Bytes::new()),
            MountMessage::Kept,
            MountMessage::Continue,
            MountMessage::Unmount,
            MountMessage::Unmounted,
            MountMessage::Failed("it is busy".into()),
            MountMessage::Changes(Bytes::from_static(b"changes")),
            MountMessage::Repeated,
        ]
    }

    #[test]
    fn messages_survive_a_stream_that_is_cut_anywhere() {
        let stream: Vec<u8> = all().iter().flat_map(|message| message.encode()).collect();
        for size in 1..stream.len() {
            let mut decoder = MountDecoder::default();
            let mut received = Vec::new();
            for part in stream.chunks(size) {
                decoder.push(part);
                while let Some(message) = decoder.next_message().expect("messages") {
                    received.push(message);
                }
            }
            assert_eq!(received, all(), "{size}");
        }
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for bytes in [
            &[0, 0, 0, 0][..],
            &[0xff; 5],
            &[0, 0, 0, 1, 99],
            &[0, 0, 0, 2, 3, 0],
            &[0, 0x20, 0, 0, 1],
        ] {
            let mut decoder = MountDecoder::default();
            decoder.push(bytes);
            assert_eq!(decoder.next_message(), Err(MountMessageError), "{bytes:?}");
        }
    }

    #[test]
    fn a_long_reason_is_cut() {
        let encoded = MountMessage::Failed("x".repeat(5000)).encode();
        assert_eq!(encoded.len(), LENGTH_BYTES + 1 + MAX_REASON_BYTES);
    }
}
