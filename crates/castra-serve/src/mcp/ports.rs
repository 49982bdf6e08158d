//! Ports of this machine that lead into sandboxes.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use super::failure::Failure;
use crate::sandboxes::Sandbox;

/// Most ports at once, and connections to each.
const MAX_PORTS: usize = 64;
const MAX_CONNECTIONS: usize = 64;

/// Pause before the next try to accept a connection when this process has no more descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Ports of this machine that lead to ports of sandboxes, by the sandbox's name and its port.
#[derive(Default)]
pub(super) struct Ports(Mutex<BTreeMap<(String, u16), Forwarded>>);

struct Forwarded {
    address: SocketAddr,
    task: AbortHandle,
}

impl Ports {
    /// Returns the address of this machine that leads to a port of a sandbox, and begins to listen
    /// there.
    ///
    /// # Errors
    /// The port of this machine is in use, or there are too many.
    pub(super) async fn forward(
        &self,
        sandbox: Arc<Sandbox>,
        port: u16,
        local: Option<u16>,
    ) -> Result<SocketAddr, Failure> {
        let key = (sandbox.record().id, port);
        if let Some(known) = self.lock().get(&key)
            && local.is_none_or(|local| known.address.port() == local)
        {
            return Ok(known.address);
        }
        let wanted = local.unwrap_or(0);
        let failed = |error: io::Error| {
            let message = "without local_port, any port that is free is taken";
            Failure::new(format!("cannot listen at 127.0.0.1:{wanted}: {error}; {message}"))
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mut all = self.lock();
        if all.len() >= MAX_PORTS {
            let message = format!("{MAX_PORTS} ports are forwarded; stop_sandbox frees some");
            return Err(Failure::new(message));
        }
        let task = tokio::spawn(serve(listener, sandbox, port)).abort_handle();
        if let Some(older) = all.insert(key, Forwarded { address, task }) {
            older.task.abort();
        }
        Ok(address)
    }

    /// Returns the ports of a sandbox, and the addresses that lead there.
    pub(super) fn of(&self, id: &str) -> Vec<(u16, SocketAddr)> {
        let all = self.lock();
        let own = all.iter().filter(|((sandbox, _), _)| sandbox == id);
        own.map(|((_, port), forwarded)| (*port, forwarded.address)).collect()
    }

    /// Stops to listen for a sandbox.
    pub(super) fn remove(&self, id: &str) {
        self.lock().retain(|(sandbox, _), forwarded| {
            let is_others = sandbox != id;
            if !is_others {
                forwarded.task.abort();
            }
            is_others
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, u16), Forwarded>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Joins each connection with one of its own to the sandbox. They end with this.
async fn serve(listener: TcpListener, sandbox: Arc<Sandbox>, port: u16) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < MAX_CONNECTIONS => {
                    connections.spawn(join(Arc::clone(&sandbox), port, stream));
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn join(sandbox: Arc<Sandbox>, port: u16, mut stream: TcpStream) {
    // Its client sees the end of the connection if the sandbox is paused, or nothing listens there.
    if let Ok(session) = sandbox.session().await
        && let Ok(mut service) = session.connect(port).await
    {
        let _ = copy_bidirectional(&mut stream, &mut service).await;
    }
}
