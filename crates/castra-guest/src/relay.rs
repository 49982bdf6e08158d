//! Relays of forwarded ports: connections to a port of the host reach a service of the guest,
//! whatever address that listens on.
//!
//! QEMU's user-mode network delivers a forwarded connection to one address and port of the guest.
//! Many services listen on 127.0.0.1 alone, where it never arrives. So QEMU delivers it to a port
//! of the agent, and the agent connects to the service as a program of the guest would: at the
//! guest's address first, then on the loopback interface.
//!
//! The agent does not listen on the service's own port while that is free: a service that starts
//! later needs it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use castra_wire::{GATEWAY_ADDRESS, GUEST_ADDRESS, RELAYS_ON_COMMAND_LINE, Relay};
use rustix::net::sockopt;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Time limit for connecting to one address of a service. A firewall may silently drop packets.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Pause after a connection could not be accepted because file descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Buffer of each direction, in bytes. Larger ones were not faster.
const BUFFER_BYTES: usize = 64 * 1024;

/// Maximum number of connections that are relayed at a time, with two descriptors each. Further
/// ones wait in the kernel's queue: commands need descriptors as well.
const MAX_CONNECTIONS: usize = 1024;

/// Listening relays.
pub(crate) struct Relays {
    /// The listeners, by port.
    listening: HashMap<u16, Listening>,
    connections: Arc<Semaphore>,
}

impl Default for Relays {
    fn default() -> Self {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { listening: HashMap::new(), connections }
    }
}

/// One listener, and the service's port to which its next connection goes.
struct Listening {
    to: Arc<AtomicU16>,
    task: JoinHandle<()>,
}

impl Relays {
    /// Listens for these relays and for no others. Existing connections continue.
    ///
    /// # Errors
    /// The last reason why a relay does not listen; the others do.
    pub(crate) fn set(&mut self, wanted: &[Relay]) -> io::Result<()> {
        self.listening.retain(|port, listening| {
            let stays = wanted.iter().any(|relay| relay.port == *port);
            if !stays {
                listening.task.abort();
            }
            stays
        });
        let mut outcome = Ok(());
        for relay in wanted {
            if let Err(error) = self.add(*relay) {
                outcome =
                    Err(io::Error::new(error.kind(), format!("port {}: {error}", relay.port)));
            }
        }
        outcome
    }

    fn add(&mut self, relay: Relay) -> io::Result<()> {
        // The listener is kept: a new one might find the port still in use for a moment.
        if let Some(listening) = self.listening.get(&relay.port) {
            listening.to.store(relay.to, Ordering::Relaxed);
            return Ok(());
        }
        let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, relay.port))?;
        listener.set_nonblocking(true)?;
        let to = Arc::new(AtomicU16::new(relay.to));
        let (listener, connections) =
            (TcpListener::from_std(listener)?, Arc::clone(&self.connections));
        let task = tokio::spawn(serve(listener, Arc::clone(&to), connections));
        self.listening.insert(relay.port, Listening { to, task });
        Ok(())
    }
}

/// Parses the relays on a kernel's command line. Skips malformed ones.
pub(crate) fn on_command_line(line: &str) -> Vec<Relay> {
    let relay = |text: &str| {
        let (port, to) = text.split_once(':')?;
        Some(Relay { port: port.parse().ok()?, to: to.parse().ok()? })
    };
    let mut words = line.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    let found = words.find(|(name, _)| *name == RELAYS_ON_COMMAND_LINE);
    found.map_or("", |(_, relays)| relays).split(',').filter_map(relay).collect()
}

async fn serve(listener: TcpListener, to: Arc<AtomicU16>, connections: Arc<Semaphore>) {
    // Fails only if the semaphore is closed, which it never is.
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        match listener.accept().await {
            // Anything else that can reach the guest's address, such as its containers, must not
            // reach its loopback.
            Ok((stream, peer)) if is_host(peer) => {
                let to = to.load(Ordering::Relaxed);
                tokio::spawn(async move {
                    relay(stream, to).await;
                    drop(permit);
                });
            }
            Ok((stream, _)) => reset(&stream),
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

fn is_host(peer: SocketAddr) -> bool {
    peer.ip() == IpAddr::V4(Ipv4Addr::from(GATEWAY_ADDRESS))
}

async fn relay(mut outside: TcpStream, to: u16) {
    let Ok(mut service) = connect(to).await else { return reset(&outside) };
    if outside.set_nodelay(true).is_ok() {
        // A side that fails is gone, and the other notices when its connection ends.
        let _ =
            copy_bidirectional_with_sizes(&mut outside, &mut service, BUFFER_BYTES, BUFFER_BYTES)
                .await;
    }
}

/// Connects to a service of the guest: at the guest's address, as without a relay, then on the
/// loopback interface.
///
/// # Errors
/// Nothing accepts, or everything takes longer than [`CONNECT_LIMIT`].
pub(crate) async fn connect(port: u16) -> io::Result<TcpStream> {
    let addresses = [
        IpAddr::V4(Ipv4Addr::from(GUEST_ADDRESS)),
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    for address in addresses {
        let connected = timeout(CONNECT_LIMIT, TcpStream::connect((address, port))).await;
        if let Ok(Ok(stream)) = connected
            && !is_with_itself(&stream)
        {
            stream.set_nodelay(true)?;
            return Ok(stream);
        }
    }
    Err(io::ErrorKind::ConnectionRefused.into())
}

/// Returns `true` for a connection that was given its own destination port as source port, because
/// nothing listens there.
fn is_with_itself(stream: &TcpStream) -> bool {
    stream.local_addr().ok() == stream.peer_addr().ok()
}

/// Resets an accepted connection, as the kernel does where nothing listens.
fn reset(stream: &TcpStream) {
    // If this fails the connection is closed instead, which the client hardly distinguishes.
    let _ = sockopt::set_socket_linger(stream, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_names_relays() {
        let line = "root=/dev/vda castra.relay=61022:80,61023:5432 quiet";
        assert_eq!(
            on_command_line(line),
            [Relay { port: 61022, to: 80 }, Relay { port: 61023, to: 5432 }]
        );
        for nothing in ["root=/dev/vda", "castra.relay=", "castra.relay=a:b,1,70000:1,:"] {
            assert_eq!(on_command_line(nothing), [], "{nothing}");
        }
    }
}
