//! SSH server of the guest agent: commands, terminals, SFTP, forwards of TCP ports both ways and to
//! Unix sockets, and of the client's authentication agent, for the VM's owner. Does not forward
//! X11, or Unix sockets to the client.
//!
//! The server may listen long before it has a host key: connections wait until
//! [`SshServer::personalise`] provides one. Only public keys named there may log in, as any user of
//! `/etc/passwd`. Where the agent is not root (in tests), only its own user may.
//!
//! Two guarantees exceed those of `sshd`: a client's environment requests are all honoured (its key
//! owns the VM anyway), and the exit status is reported when the command ends and its output is
//! drained, even if a background process keeps the output open; the channel then stays open for
//! that process, as with `sshd`.
//!
//! Commands arrive in two ways: as a line for the user's shell, and, through the subsystem
//! [`castra_wire::EXEC_SUBSYSTEM`], as an array of arguments that no shell parses.

mod auth_agent;
mod forward;
mod identity;
mod logins;
mod server;
mod session;

use std::time::Duration;

pub(crate) use server::Keys;
pub use server::{SshError, SshServer};

/// Pause after a connection could not be accepted because file descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
