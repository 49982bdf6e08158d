//! Forwards: connections that the agent makes to TCP ports and sockets for the client, and ports of
//! the guest whose connections go to the client.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use castra_flow::Flow;
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelOpenFailure};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinHandle;

use super::ACCEPT_PAUSE;
use super::resolve;
use super::users::User;

/// Time limit for connecting to one address.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Ports below this are root's (`ip_unprivileged_port_start`).
const FIRST_FREE_PORT: u32 = 1024;

/// Connects to the address that a client's channel requests, and joins the two.
pub(super) async fn direct(
    channel: Channel<Msg>,
    host: String,
    port: u32,
    reply: ChannelOpenHandle,
    flow: Flow,
) {
    let connected = match u16::try_from(port) {
        Ok(port) => connect(&host, port).await,
        Err(_) => Err(io::ErrorKind::InvalidInput.into()),
    };
    join(channel, connected, reply, flow).await;
}

/// Connects to the Unix socket that a client's channel requests, and joins the two.
pub(super) async fn direct_to_socket(
    channel: Channel<Msg>,
    path: String,
    user: Arc<User>,
    reply: ChannelOpenHandle,
    flow: Flow,
) {
    join(channel, connect_to_socket(path, user).await, reply, flow).await;
}

async fn join(
    channel: Channel<Msg>,
    connected: io::Result<impl AsyncRead + AsyncWrite>,
    reply: ChannelOpenHandle,
    flow: Flow,
) {
    match connected {
        Ok(stream) => {
            let (incoming, outgoing) = castra_flow::split(channel, &flow);
            reply.accept().await;
            castra_flow::relay(incoming, outgoing, stream, None).await;
        }
        Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
    }
}

/// Connects on a thread that has the user's rights on files. The other end sees the user's ids
/// (`SO_PEERCRED`).
async fn connect_to_socket(path: String, user: Arc<User>) -> io::Result<UnixStream> {
    let stream = user.run_in_thread(move || connect_here(&path)).await?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn connect_here(path: &str) -> io::Result<std::os::unix::net::UnixStream> {
    let address = SocketAddrUnix::new(path)?;
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

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
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

/// Ports of the guest on which one connection listens. They close with it.
#[derive(Default)]
pub(super) struct Listeners(HashMap<(String, u32), JoinHandle<()>>);

impl Listeners {
    /// Listens on an address for the client; port 0 takes any. Returns the port.
    ///
    /// # Errors
    /// The address is not available, or is not permitted to this user.
    pub(super) async fn listen(
        &mut self,
        user: &User,
        address: &str,
        port: u32,
        handle: Handle,
        flow: Flow,
    ) -> io::Result<u32> {
        if (1..FIRST_FREE_PORT).contains(&port) && !user.uid.is_root() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let wanted = u16::try_from(port).map_err(|_| io::ErrorKind::InvalidInput)?;
        let listener = TcpListener::bind(SocketAddr::new(bind_address(address)?, wanted)).await?;
        let bound = u32::from(listener.local_addr()?.port());
        let task = tokio::spawn(accept(listener, address.to_owned(), bound, handle, flow));
        self.0.insert((address.to_owned(), bound), task);
        Ok(bound)
    }

    /// Stops listening; connections made so far stay open. Returns `true` if there was such a port.
    pub(super) fn cancel(&mut self, address: &str, port: u32) -> bool {
        self.0.remove(&(address.to_owned(), port)).map(|task| task.abort()).is_some()
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.0.values().for_each(JoinHandle::abort);
    }
}

/// Resolves the special names of RFC 4254, 7.1, or an IP address.
fn bind_address(address: &str) -> io::Result<IpAddr> {
    match address {
        "" | "*" => Ok(Ipv4Addr::UNSPECIFIED.into()),
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        other => other.parse().map_err(|_| io::ErrorKind::InvalidInput.into()),
    }
}

async fn accept(listener: TcpListener, address: String, port: u32, handle: Handle, flow: Flow) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (address, handle, flow) = (address.clone(), handle.clone(), flow.clone());
        tokio::spawn(async move {
            let opened = handle.channel_open_forwarded_tcpip(
                address,
                port,
                peer.ip().to_string(),
                u32::from(peer.port()),
            );
            // A client that refuses gets its connection closed.
            if let (Ok(channel), Ok(())) = (opened.await, stream.set_nodelay(true)) {
                let (incoming, outgoing) = castra_flow::split(channel, &flow);
                castra_flow::relay(incoming, outgoing, stream, None).await;
            }
        });
    }
}
