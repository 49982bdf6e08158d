//! The open forwards of a companion.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::time::Duration;

use castra_flow::link::Link;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::auto::{self, Auto};
use super::{
    LiveForward, LiveOrigin, LivePort, LivePorts, LiveState, MAX_ADDED_FORWARDS, PortPlan,
    connection,
};

/// Maximum number of connections of a VM at a time. Further ones wait in the kernel's queue. Each
/// is a stream of the link, which has 256 for mounts as well, and may take the memory of a window.
const MAX_CONNECTIONS: usize = 128;

/// Pause after a connection could not be accepted because descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Forwards of a companion.
pub(in crate::guest) struct Forwards {
    /// Forwards that the user has added, by port of this machine.
    added: BTreeMap<u16, Added>,
    auto: Option<Following>,
    ways: Ways,
}

/// Forwards that follow what listens in the guest, and the task that opens and closes them.
struct Following {
    auto: Arc<Mutex<Auto>>,
    task: JoinHandle<()>,
    has_report: watch::Receiver<bool>,
}

/// A forward that the user has added. Its port is open, unless that failed.
struct Added {
    guest: u16,
    listening: Result<Listening, String>,
}

/// An open port.
pub(super) struct Listening(JoinHandle<()>);

/// Ways into the guest, for connections to any port.
#[derive(Clone)]
pub(super) struct Ways {
    link: watch::Receiver<Option<Link>>,
    connections: Arc<Semaphore>,
}

impl Forwards {
    /// Returns no forwards, for the sessions of this link.
    pub(in crate::guest) fn new(link: watch::Receiver<Option<Link>>) -> Self {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { added: BTreeMap::new(), auto: None, ways: Ways { link, connections } }
    }

    /// Opens the planned ports, and closes all others. Those that are open stay open, those that
    /// could not be opened are tried again. Connections continue.
    pub(in crate::guest) async fn set(&mut self, plan: &PortPlan) {
        let wanted = plan.added.iter().take(MAX_ADDED_FORWARDS);
        let wanted: BTreeMap<u16, u16> = wanted.map(|one| (one.host, one.guest)).collect();
        for (host, added) in std::mem::take(&mut self.added) {
            if added.listening.is_ok() && wanted.get(&host) == Some(&added.guest) {
                self.added.insert(host, added);
            } else {
                added.close().await;
            }
        }
        // One that was found may have a port that shall lead elsewhere.
        self.follow(plan).await;
        for (host, guest) in wanted {
            if !self.added.contains_key(&host) {
                let listening = self.ways.listen(host, guest);
                let listening = listening.map(|(_, it)| it).map_err(|error| error.to_string());
                self.added.insert(host, Added { guest, listening });
            }
        }
    }

    /// Follows what listens in the guest, if that is planned.
    async fn follow(&mut self, plan: &PortPlan) {
        let Some(wanted) = &plan.auto else {
            if let Some(Following { auto, task, .. }) = self.auto.take() {
                task.abort();
                auto.lock().await.close(|_| true).await;
            }
            return;
        };
        let following = self.auto.get_or_insert_with(|| {
            let auto = Arc::new(Mutex::new(Auto::default()));
            let (reported, has_report) = watch::channel(false);
            let task = tokio::spawn(auto::follow(Arc::clone(&auto), self.ways.clone(), reported));
            Following { auto, task, has_report }
        });
        following.auto.lock().await.plan(wanted, &plan.added).await;
    }

    #[cfg(test)]
    pub(super) fn ways(&self) -> &Ways {
        &self.ways
    }

    /// Returns a signal that what listens in the guest is known, if it is followed.
    pub(in crate::guest) fn has_report(&self) -> Option<watch::Receiver<bool>> {
        self.auto.as_ref().map(|following| following.has_report.clone())
    }

    /// Returns the forwards and their states. With `is_announced`, all count as announced.
    pub(in crate::guest) async fn list(&self, is_announced: bool) -> LivePorts {
        let of_added = |(host, added): (&u16, &Added)| LivePort {
            forward: LiveForward { host: *host, guest: added.guest },
            origin: LiveOrigin::Added,
            state: match &added.listening {
                Ok(_) => LiveState::Open,
                Err(reason) => LiveState::Failed(reason.clone()),
            },
            is_new: false,
        };
        let mut ports: Vec<LivePort> = self.added.iter().map(of_added).collect();
        let mut trouble = None;
        if let Some(following) = &self.auto {
            let mut auto = following.auto.lock().await;
            ports.extend(auto.list(is_announced));
            trouble = auto.trouble();
        }
        LivePorts { ports, trouble }
    }
}

impl Ways {
    /// Opens a port of 127.0.0.1 that leads to one of the guest; 0 is one that is free. Returns the
    /// port.
    pub(super) fn listen(&self, host: u16, guest: u16) -> io::Result<(u16, Listening)> {
        let listener = StdTcpListener::bind((Ipv4Addr::LOCALHOST, host))?;
        listener.set_nonblocking(true)?;
        let host = listener.local_addr()?.port();
        let listener = TcpListener::from_std(listener)?;
        Ok((host, Listening(tokio::spawn(accept(listener, guest, self.clone())))))
    }

    /// Waits for a session with the guest's agent.
    pub(super) async fn session(&mut self) -> Option<Link> {
        self.link.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Waits for the end of a session.
    pub(super) async fn end_of_session(&mut self) {
        // Fails if the companion ends.
        let _ = self.link.wait_for(Option::is_none).await;
    }
}

impl Added {
    async fn close(self) {
        if let Ok(listening) = self.listening {
            listening.close().await;
        }
    }
}

impl Listening {
    /// Closes the port, which is free once this returns.
    pub(super) async fn close(self) {
        self.0.abort();
        // The task has dropped its listener once it has ended.
        let _ = self.0.await;
    }
}

async fn accept(listener: TcpListener, guest: u16, ways: Ways) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Only for a client that is there: a port that waits for one takes none of them. Fails only
        // if the semaphore is closed, which it never is.
        let permit = Arc::clone(&ways.connections).acquire_owned().await;
        let ways = ways.clone();
        tokio::spawn(async move {
            connection::serve(client, guest, ways).await;
            drop(permit);
        });
    }
}
