//! Back-pressure for `russh` connections that cannot deadlock.
//!
//! An SSH channel has a window: the receiver grants bytes and grants more once it has *consumed* some. `russh` grants
//! more as soon as bytes *arrive*, and holds a fast sender back by blocking its whole session loop on the channel's
//! full mailbox. Then that loop does not write either, and `cat` deadlocks: it cannot write its output, so it does not
//! read its input, so the loop stays blocked.
//!
//! Here the mailbox is practically unbounded ([`MAILBOX_MESSAGES`]), so the loop never blocks, and TCP holds both
//! directions back, each by itself, below `russh` in the stream it reads and writes ([`Paced`]):
//!
//! - *In:* bytes that have arrived and not been consumed are counted per connection ([`Flow`]). Past
//!   [`QUEUE_LIMIT_BYTES`] nothing more is read, so the peer cannot write.
//! - *Out:* what the socket does not take is kept, and past [`KEPT_LIMIT_BYTES`] of it our senders wait.
//!
//! Two things that a sender waits for can only be *read*, and lie behind data that nobody consumes yet; so reading goes
//! on past the limit, and what bounds it is the window that the peer has already:
//!
//! - *The end of a key exchange.*
//! - *A client's grant.* Castra's own client grants so much at once ([`CLIENT_WINDOW_BYTES`]) that it is never waited
//!   for. Other clients grant less; they are granted [`SERVER_WINDOW_BYTES`], and past the limit next to nothing more
//!   ([`Flow::window_to_grant`]).

mod channel;
mod flow;
mod paced;

pub use channel::{Incoming, Message, Outgoing, Received, relay, split};
pub use flow::{Flow, Waiting};
pub use paced::Paced;

/// Bytes that a client may send on one channel before it needs a grant. OpenSSH's own size.
pub const SERVER_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Bytes that Castra's client lets the server send on one channel before a grant: TCP is what holds it back.
pub const CLIENT_WINDOW_BYTES: u32 = 1024 * 1024 * 1024;

/// Largest payload of one packet, in bytes. `russh` wants it below 64 KiB.
pub const PACKET_BYTES: u32 = 65535;

/// Arrived but unconsumed bytes of one connection past which it is not read.
pub const QUEUE_LIMIT_BYTES: i64 = 1024 * 1024;

/// Bytes that the socket has not taken past which senders wait.
pub const KEPT_LIMIT_BYTES: usize = 256 * 1024;

/// Capacity for `channel_buffer_size` of both `russh` configurations: more messages than the limits and the windows let
/// through, so that the session loop never blocks on a mailbox.
pub const MAILBOX_MESSAGES: usize = 1 << 24;
