//! Connections that the agent makes inside the guest for the host.

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpStream, UnixStream};

use crate::resolve;
use crate::users::User;

/// Time limit for connecting to one address.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Connects on a thread that has the user's rights on files. The other end sees the user's ids
/// (`SO_PEERCRED`).
pub(crate) async fn connect_to_socket(path: OsString, user: Arc<User>) -> io::Result<UnixStream> {
    let stream = user.run_in_thread(move || connect_here(&path)).await?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn connect_here(path: &OsStr) -> io::Result<std::os::unix::net::UnixStream> {
    let address = SocketAddrUnix::new(path.as_bytes())?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // A service that does not accept may have its queue full; this bounds the wait for room in it.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(CONNECT_LIMIT))?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket.into())
}

/// Connects to the first address of a host that answers.
///
/// # Errors
/// None does, within [`CONNECT_LIMIT`] each.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in resolve::addresses(host).await? {
        let attempt = TcpStream::connect(SocketAddr::new(address, port));
        match tokio::time::timeout(CONNECT_LIMIT, attempt).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}
