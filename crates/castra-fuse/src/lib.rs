//! Serves one directory of the host to a guest's kernel, by answers to the requests that the kernel
//! puts into its `/dev/fuse`.
//!
//! ```text
//! request ─► Header, Operation ─► Server ─► Nodes    ─► platform ─► the directory
//!            (bounded, typed)               Handles
//! reply ◄───────────────────────────────────────────┘
//! ```
//!
//! This crate has no transport: requests and replies are byte strings. It keeps these promises
//! whatever a guest sends:
//!
//! - **Nothing outside of the directory is reached.** Paths are resolved below the descriptor of
//!   the directory, without symbolic links and without `..`, at every request. A directory that the
//!   host has moved away is `ESTALE` inside, and so is everything in it.
//! - **An ID means one file.** A node has the names under which its file was found, and the file's
//!   device, inode and time of birth. What is now found there must be that file; else the answer is
//!   `ESTALE`, and Linux looks up the path again. IDs are never reused, and those of an earlier
//!   server are `ESTALE` unless [its state](Server::save) was taken over. A file whose last name
//!   the guest has taken is reached as long as it is open, and for a short time by those who have
//!   already found it.
//! - **Read-only is decided here.** Everything that changes the directory needs a token that a
//!   read-only [`Directory`] does not give.
//! - **No privileges come of it.** Set-user-id and set-group-id are neither shown nor set, device
//!   nodes are neither made nor opened, and what is opened has been checked to be a file. Extended
//!   attributes are not served.
//! - **Memory and descriptors are bounded.** A node is some 400 bytes and no descriptor. There are
//!   limits for nodes, handles, files that have just lost their name, and each reply.
//!
//! A directory named `.castra` is invisible at every depth, since castra's own state on the host is
//! in there.
//!
//! # Differences from a disk
//!
//! - All files have one owner, and every user of the guest acts with the rights of this process.
//!   `chown` to another owner is `EPERM`.
//! - Locks are those of the guest's kernel: they do not reach the host.
//! - There are no extended attributes, ACLs, `O_TMPFILE` and device nodes. FIFOs and sockets are
//!   made, and work inside the guest.
//! - Names, attributes and contents that the host changes are seen within a second.
//! - FLUSH is not needed, since data reach the host's kernel with each WRITE; FSYNC reaches its
//!   disk.

#![forbid(unsafe_code)]

mod abi;
mod directory;
mod fields;
mod handles;
mod nodes;
mod platform;
mod reply;
mod request;
mod server;
mod watches;

#[cfg(test)]
mod tests;

pub use directory::{Access, Directory, Owner, is_hidden};
pub use reply::refusal;
pub use server::{Change, ChangeKind, Changes, MAX_CHANGES, MAX_STATE, NUDGER, Notify, Server};
pub use watches::{MAX_WATCHES, Shortage};

/// Longest data of one READ or WRITE, in bytes: Linux sends at most 256 pages at once.
pub const MAX_WRITE: u32 = 1024 * 1024;

/// Longest request, in bytes: a WRITE with its headers. Linux wants the buffer that `/dev/fuse` is
/// read into to have room for it.
pub const MAX_REQUEST: usize = MAX_WRITE as usize + 4096;
