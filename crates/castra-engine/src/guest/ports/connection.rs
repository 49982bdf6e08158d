//! One connection to a forwarded port.

use std::time::Duration;

use castra_flow::{Incoming, Message, Outgoing, relay};
use castra_wire::stream::Target;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::forwards::Ways;

/// Time for a session with the guest's agent, which has just rebooted.
const SESSION_LIMIT: Duration = Duration::from_secs(5);

/// Joins a client and a service of the guest until both directions have ended. Resets the client's
/// connection if no service accepts it.
pub(super) async fn serve(client: TcpStream, guest: u16, ways: Ways) {
    let Some((incoming, outgoing)) = connect(guest, ways).await else { return reset(&client) };
    // If this fails the client is gone, as the relay notices.
    let _ = client.set_nodelay(true);
    relay(incoming, outgoing, client, None).await;
}

async fn connect(guest: u16, mut ways: Ways) -> Option<(Incoming, Outgoing)> {
    let session = timeout(SESSION_LIMIT, ways.session()).await.ok()??;
    let (incoming, outgoing) = session.open(Target::Service(guest).encode().ok()?).ok()?;
    let mut incoming = Incoming::from(incoming);
    match incoming.next().await? {
        Message::Opened => Some((incoming, outgoing.into())),
        _ => None,
    }
}

/// Resets an accepted connection, as the kernel does where nothing listens.
fn reset(client: &TcpStream) {
    // If this fails the connection is closed instead, which the client hardly distinguishes.
    let _ = sockopt::set_socket_linger(client, Some(Duration::ZERO));
}
