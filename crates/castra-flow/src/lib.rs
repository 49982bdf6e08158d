//! Back-pressure for `russh` connections that cannot deadlock.
//!
//! An SSH channel has a window: the receiver grants bytes and grants more once it has *consumed* some. `russh` grants
//! more as soon as bytes *arrive*, and holds a fast sender back by blocking its whole session loop on the channel's
//! full mailbox. Then that loop does not write either, and `cat` deadlocks: it cannot write its output, so it does not
//! read its input, so the loop stays blocked.
//!
//! Here the mailbox is practically unbounded ([`MAILBOX_MESSAGES`]), so the loop never blocks, and the limit sits below
//! `russh`, in the stream it reads and writes ([`Paced`]). Bytes that have arrived and not been consumed are counted
//! ([`Flow`]), per connection. Past [`QUEUE_LIMIT_BYTES`]:
//!
//! | our own output is… | reading | writing |
//! | --- | --- | --- |
//! | moving | stops, so TCP holds the peer back | goes on |
//! | waiting for the peer's window | goes on: the grant lies behind data the peer has sent already | is held back, and with it our own grants, so that the peer runs out of window instead of filling our memory |
//! | waiting for a key exchange | goes on | goes on |
//!
//! So at most the limit plus one window a channel ([`WINDOW_BYTES`]) is queued, and a little more for each minute that
//! writing is held back. The price: while one channel of a multiplexed connection is past the limit, its neighbours may
//! wait.

mod channel;
mod flow;
mod paced;

pub use channel::{Incoming, Message, Outgoing, Received, relay, split};
pub use flow::{Flow, Waiting};
pub use paced::Paced;

/// Bytes a peer may send on one channel before it needs a grant. OpenSSH's own size.
pub const WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Largest payload of one packet, in bytes. `russh` wants it below 64 KiB.
pub const PACKET_BYTES: u32 = 65535;

/// Arrived but unconsumed bytes of one connection past which it is paced.
pub const QUEUE_LIMIT_BYTES: i64 = 1024 * 1024;

/// Capacity for `channel_buffer_size` of both `russh` configurations: more messages than [`QUEUE_LIMIT_BYTES`] and the
/// windows let through, so that the session loop never blocks on a mailbox.
pub const MAILBOX_MESSAGES: usize = 1 << 24;
