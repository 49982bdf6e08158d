//! Channels between Castra and its guest agent, with back-pressure that cannot deadlock.
//!
//! [`Incoming`] and [`Outgoing`] are the halves of a channel, over SSH ([`ssh`]) or over a stream
//! port ([`link`]). The code that uses a channel is the same for both.
//!
//! # SSH
//!
//! An SSH channel has a window: the receiver grants bytes and grants more once it has *consumed*
//! some. `russh` grants more as soon as bytes *arrive*, and holds a fast sender back by blocking
//! its whole session loop on the channel's full mailbox. Then that loop does not write either, and
//! `cat` deadlocks: it cannot write its output, so it does not read its input, so the loop stays
//! blocked.
//!
//! Here the mailbox is practically unbounded ([`MAILBOX_MESSAGES`]), so the loop never blocks.
//! Instead TCP holds each direction back independently, below `russh`, in the stream that it reads
//! and writes ([`Paced`]):
//!
//! - *In:* bytes that have arrived and not been consumed are counted per connection ([`Flow`]).
//!   Past [`QUEUE_LIMIT_BYTES`] nothing more is read, so the peer cannot write.
//! - *Out:* what the socket does not take is buffered, and past [`KEPT_LIMIT_BYTES`] our senders
//!   wait.
//!
//! Two things that a sender waits for can only be *read*, and lie behind data that is not consumed
//! yet. While a sender waits for one of them, reading therefore continues past the limit, bounded
//! by the window that the peer already has:
//!
//! - *The end of a key exchange.*
//! - *A client's grant.* Castra's own client grants so much at once ([`CLIENT_WINDOW_BYTES`]) that
//!   its grants are never waited for. Other clients grant less; they are granted
//!   [`SERVER_WINDOW_BYTES`], and past the limit next to nothing more ([`Flow::window_to_grant`]).

mod channel;
mod flow;
pub mod link;
mod paced;
pub mod ssh;

pub use channel::{Gone, Incoming, Message, Outgoing, Received, relay, split_server};
pub use flow::{Flow, Waiting};
pub use paced::Paced;

/// Bytes that a client may send on one channel before it needs a grant. OpenSSH's own size.
pub const SERVER_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Bytes that Castra's client lets the server send on one channel before a grant: the flow is
/// controlled by TCP instead.
pub const CLIENT_WINDOW_BYTES: u32 = 1024 * 1024 * 1024;

/// Largest payload of one packet, in bytes. `russh` requires less than 64 KiB.
pub const PACKET_BYTES: u32 = 65535;

/// Limit on a connection's unconsumed bytes past which it is not read.
pub const QUEUE_LIMIT_BYTES: i64 = 1024 * 1024;

/// Limit on buffered output, in bytes, past which senders wait for the socket.
pub const KEPT_LIMIT_BYTES: usize = 256 * 1024;

/// Value for `channel_buffer_size` in both `russh` configurations: more messages than the limits
/// and windows let through, so that the session loop never blocks on a mailbox.
pub const MAILBOX_MESSAGES: usize = 1 << 24;
