//! Frames, and how they are encoded.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{FRAME_OVERHEAD_BYTES, MAX_PAYLOAD_BYTES, Refusal, STREAM_PROTOCOL_VERSION};
use crate::Session;

/// First bytes of a hello. No kind of frame begins with such a byte.
pub(super) const MAGIC: [u8; 8] = *b"\xc5castra\n";

/// Size of a hello: magic number, version, session, and the session once more with all bits
/// inverted, since a hello may be cut off, too.
pub(super) const HELLO_BYTES: usize = MAGIC.len() + 4 + 8 + 8;

/// Size of a frame's header.
pub(super) const HEADER_BYTES: usize = 8;

/// Longest name of a signal, in bytes. Names are in no window.
const MAX_NAME_BYTES: usize = 64;

/// End of each frame of a session: its first four bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub(super) [u8; 4]);

/// First message of a session, from each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Version of the sender's protocol.
    pub version: u32,
    /// Session that the host has chosen.
    pub session: Session,
}

impl Hello {
    /// Returns the hello of this version for a session.
    pub fn of(session: Session) -> Self {
        Self { version: STREAM_PROTOCOL_VERSION, session }
    }

    /// Returns the tag of the session's frames: four bytes of it, and never those of padding.
    pub fn tag(&self) -> Tag {
        let [a, b, c, d, ..] = self.session.0.to_be_bytes();
        Tag([a | 0x80, b, c, d])
    }

    /// Returns the encoded hello.
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HELLO_BYTES);
        bytes.put_slice(&MAGIC);
        bytes.put_u32(self.version);
        bytes.put_u64(self.session.0);
        bytes.put_u64(!self.session.0);
        bytes.freeze()
    }

    /// Decodes what follows the magic number; `None` if it is no hello.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        bytes.advance(MAGIC.len());
        let (version, session, inverted) =
            (bytes.try_get_u32().ok()?, bytes.try_get_u64().ok()?, bytes.try_get_u64().ok()?);
        (session == !inverted).then_some(Self { version, session: Session(session) })
    }
}

/// Returns bytes that complete any frame and are none: the receiver of half a frame finds a wrong
/// tag at its end, and looks for the next hello.
pub fn padding() -> Bytes {
    Bytes::from_static(&[0; MAX_PAYLOAD_BYTES + FRAME_OVERHEAD_BYTES])
}

/// Size of a terminal's window, in characters and pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Width, in characters.
    pub columns: u16,
    /// Height, in characters.
    pub rows: u16,
    /// Width, in pixels; 0 if unknown.
    pub width_px: u16,
    /// Height, in pixels; 0 if unknown.
    pub height_px: u16,
}

/// Content of a frame, about the stream that its header names. Pings concern no stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes: a program's stdin or stdout, a packet of SFTP, a connection's bytes.
    Data(Bytes),
    /// Bytes of a program's stderr.
    Stderr(Bytes),
    /// End of this side's data.
    EndOfData,
    /// End of the stream: its sender neither sends nor receives anything more on it.
    Close,
    /// Number of further bytes that the receiver of this frame may send.
    Grant(u32),
    /// Request of the host for a new stream, as [`Target`](super::Target) encodes it.
    Open(Bytes),
    /// The guest has opened the stream.
    Opened,
    /// The guest does not open the stream.
    Refused(Refusal),
    /// Signal for the program, by SSH's name for it (RFC 4254, 6.10).
    Signal(Bytes),
    /// New size of the program's terminal.
    Resize(Window),
    /// Exit code of the program.
    ExitStatus(u32),
    /// Name of the signal that ended the program, or a reason why none was started.
    ExitSignal(Bytes),
    /// Question for a sign of life.
    Ping,
    /// Answer to a ping.
    Pong,
}

impl Frame {
    /// Appends the encoded frame. Payloads longer than [`MAX_PAYLOAD_BYTES`] are the caller's to
    /// split.
    ///
    /// # Panics
    /// The payload is too long.
    pub fn encode(&self, stream: u16, tag: Tag, output: &mut BytesMut) {
        let number;
        let window;
        let refusal;
        let payload: &[u8] = match self {
            Self::Data(bytes)
            | Self::Stderr(bytes)
            | Self::Open(bytes)
            | Self::Signal(bytes)
            | Self::ExitSignal(bytes) => bytes,
            Self::Grant(value) | Self::ExitStatus(value) => {
                number = value.to_be_bytes();
                &number
            }
            Self::Resize(size) => {
                window = encode_window(*size);
                &window
            }
            Self::Refused(reason) => {
                refusal = [reason.code()];
                &refusal
            }
            Self::EndOfData | Self::Close | Self::Opened | Self::Ping | Self::Pong => &[],
        };
        assert!(payload.len() <= MAX_PAYLOAD_BYTES, "a payload of {} bytes", payload.len());
        output.reserve(payload.len() + FRAME_OVERHEAD_BYTES);
        output.put_u8(self.kind());
        output.put_u8(0);
        output.put_u16(stream);
        output.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        output.put_slice(payload);
        output.put_slice(&tag.0);
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Data(_) => 1,
            Self::Stderr(_) => 2,
            Self::EndOfData => 3,
            Self::Close => 4,
            Self::Grant(_) => 5,
            Self::Open(_) => 6,
            Self::Opened => 7,
            Self::Refused(_) => 8,
            Self::Signal(_) => 9,
            Self::Resize(_) => 10,
            Self::ExitStatus(_) => 11,
            Self::ExitSignal(_) => 12,
            Self::Ping => 13,
            Self::Pong => 14,
        }
    }

    /// Returns the frame of a kind with this payload; `None` if there is no such kind, or the
    /// payload does not fit it.
    pub(super) fn decode(kind: u8, payload: Bytes) -> Option<Self> {
        let number = || Some(u32::from_be_bytes(payload.as_ref().try_into().ok()?));
        let empty = |frame| payload.is_empty().then_some(frame);
        let name = || (payload.len() <= MAX_NAME_BYTES).then(|| payload.clone());
        match kind {
            3 => empty(Self::EndOfData),
            4 => empty(Self::Close),
            5 => number().map(Self::Grant),
            7 => empty(Self::Opened),
            8 => Some(Self::Refused(Refusal::of_code(*payload.first()?))),
            10 => Some(Self::Resize(decode_window(&payload)?)),
            11 => number().map(Self::ExitStatus),
            13 => empty(Self::Ping),
            14 => empty(Self::Pong),
            1 => Some(Self::Data(payload)),
            2 => Some(Self::Stderr(payload)),
            6 => Some(Self::Open(payload)),
            9 => name().map(Self::Signal),
            12 => name().map(Self::ExitSignal),
            _ => None,
        }
    }
}

fn encode_window(window: Window) -> [u8; 8] {
    let Window { columns, rows, width_px, height_px } = window;
    let mut bytes = [0; 8];
    for (place, value) in bytes.chunks_mut(2).zip([columns, rows, width_px, height_px]) {
        place.copy_from_slice(&value.to_be_bytes());
    }
    bytes
}

fn decode_window(bytes: &[u8]) -> Option<Window> {
    let [c0, c1, r0, r1, w0, w1, h0, h1] = *<&[u8; 8]>::try_from(bytes).ok()?;
    Some(Window {
        columns: u16::from_be_bytes([c0, c1]),
        rows: u16::from_be_bytes([r0, r1]),
        width_px: u16::from_be_bytes([w0, w1]),
        height_px: u16::from_be_bytes([h0, h1]),
    })
}
