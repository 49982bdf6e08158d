//! Protocol of a stream port, over which programs, files and connections of the guest reach the
//! host without its network.
//!
//! A guest has [`STREAM_PORTS`](crate::STREAM_PORTS) such virtio-serial ports; each serves one
//! castra at a time. That castra opens any number of streams on it: a [`Target`] each. The host
//! opens streams, never the guest. Nothing is encrypted: the port begins in a socket that only the
//! VM's owner can reach, and ends in the guest's kernel.
//!
//! ```text
//! host                                   agent
//!  │ hello {session} ───────────────────► │
//!  │ ◄──────────────────── hello {session}│
//!  │ open 1 {program of a user} ────────► │
//!  │ data 1 {argument array, then stdin}► │
//!  │ ◄─────────────────────────── opened 1│
//!  │ ◄──────────── data 1, stderr 1, grant│  (each side sends as much as the other has granted)
//!  │ end-of-data 1, signal 1, resize 1 ─► │
//!  │ ◄── end-of-data 1, exit 1, close 1   │
//! ```
//!
//! # Frames
//!
//! All numbers are big-endian. A frame ends with its session's tag:
//!
//! ```text
//! 0      1          2        4          8           8 + n      12 + n
//! │ kind │ zero     │ stream │ length n │ payload   │ tag      │
//! ```
//!
//! # Synchronization
//!
//! A castra may be killed in the middle of a frame, and neither QEMU nor the guest's kernel
//! delivers its end together with its last bytes. So a [`Hello`] begins with a magic number, and
//! each side looks for it whenever it has lost the thread ([`Decoder`]): a frame that continues
//! with another castra's bytes does not end with its session's tag. A host whose hello is not
//! answered completes the rest of a lost frame with [`padding`], and repeats the hello.

mod decoder;
mod frame;
mod target;

pub use decoder::{Decoder, Event, Expected};
pub use frame::{Frame, Hello, Tag, Window, padding};
pub use target::{Host, KeptProgram, Program, Target, TargetError, Terminal};

/// Version of this protocol, in each hello.
pub const STREAM_PROTOCOL_VERSION: u32 = 1;

/// Longest payload of a frame, in bytes: what Linux passes on from one write to a port.
pub const MAX_PAYLOAD_BYTES: usize = 32 * 1024 - FRAME_OVERHEAD_BYTES;

/// Bytes of a frame around its payload.
pub const FRAME_OVERHEAD_BYTES: usize = 12;

/// Returns the part of a window that a frame with this much data takes, in bytes. Tiny frames cost
/// memory, too.
pub fn frame_cost_bytes(data: usize) -> u32 {
    const OVERHEAD: u32 = 64;
    u32::try_from(data).unwrap_or(u32::MAX).saturating_add(OVERHEAD)
}

/// Bytes of one stream and direction that may be sent before the receiver has granted more.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;

/// Maximum number of streams that are open on one port.
pub const MAX_STREAMS: usize = 256;

/// Reason why the guest does not open a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The guest has no user of that name.
    UnknownUser,
    /// The request makes no sense to this agent.
    Malformed,
    /// The address or the socket does not answer, or the guest lacks resources.
    Unavailable,
    /// No such kept program, file or directory.
    NotFound,
}

impl Refusal {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::UnknownUser => 1,
            Self::Malformed => 2,
            Self::Unavailable => 3,
            Self::NotFound => 4,
        }
    }

    pub(crate) fn of_code(code: u8) -> Self {
        match code {
            1 => Self::UnknownUser,
            2 => Self::Malformed,
            4 => Self::NotFound,
            _ => Self::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests;
