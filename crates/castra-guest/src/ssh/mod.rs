//! The SSH server of the guest agent: commands, terminals, SFTP, forwards of TCP ports both ways and to Unix sockets, for the
//! VM's owner. It refuses to forward X11, an authentication agent, and Unix sockets to the client.
//!
//! It may listen long before it has a host key: until [`SshServer::personalise`] hands it one, connections wait. Only
//! public keys named there may log in, as any user of `/etc/passwd`. Where the agent is not root (in tests), only its
//! own user may.
//!
//! What it promises beyond `sshd`: a client's environment requests are all honoured (its key owns the VM anyway), and
//! the exit status is reported when the command ends and its output is drained, even if a background process keeps the
//! output open; the channel then stays open for that process, as with `sshd`.
//!
//! Commands come in two ways: as a line for the user's shell, and, by the subsystem [`castra_wire::EXEC_SUBSYSTEM`], as
//! an array of arguments that no shell reads.

mod exec;
mod forward;
mod header;
mod program;
mod pty;
mod pump;
mod resolve;
mod server;
mod session;
mod sftp;
mod users;

pub use server::{SshError, SshServer};
