//! Forwards: connections that the agent makes to TCP ports and sockets for the client, and ports of
//! the guest whose connections go to the client.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use castra_flow::Flow;
use russh::server::{ChannelOpenHandle, Handle, Msg};
use russh::{Channel, ChannelOpenFailure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::ACCEPT_PAUSE;
use crate::connect::{connect, connect_to_socket};
use crate::users::User;

/// Ports below this are root's (`ip_unprivileged_port_start`).
const FIRST_FREE_PORT: u32 = 1024;

/// Channel that a client requests.
pub(super) struct Requested {
    pub(super) channel: Channel<Msg>,
    pub(super) reply: ChannelOpenHandle,
    pub(super) handle: Handle,
}

/// Connects to the address that a client's channel requests, and joins the two.
pub(super) async fn direct(requested: Requested, host: String, port: u32, flow: Flow) {
    let connected = match u16::try_from(port) {
        Ok(port) => connect(&host, port).await,
        Err(_) => Err(io::ErrorKind::InvalidInput.into()),
    };
    join(requested, connected, flow).await;
}

/// Connects to the Unix socket that a client's channel requests, and joins the two.
pub(super) async fn direct_to_socket(
    requested: Requested,
    path: String,
    user: Arc<User>,
    flow: Flow,
) {
    join(requested, connect_to_socket(path.into(), user).await, flow).await;
}

async fn join(
    requested: Requested,
    connected: io::Result<impl AsyncRead + AsyncWrite>,
    flow: Flow,
) {
    let Requested { channel, reply, handle } = requested;
    match connected {
        Ok(stream) => {
            let (incoming, outgoing) = castra_flow::split_server(channel, &flow, handle);
            reply.accept().await;
            castra_flow::relay(incoming, outgoing, stream, None).await;
        }
        Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
    }
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
                let (incoming, outgoing) = castra_flow::split_server(channel, &flow, handle);
                castra_flow::relay(incoming, outgoing, stream, None).await;
            }
        });
    }
}
