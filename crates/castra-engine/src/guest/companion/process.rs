//! The companion's process: one session with the guest's agent, and orders of castra's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use castra_flow::link::{End, Link, Side};
use castra_wire::Session;
use castra_wire::stream::{Decoder, Expected, Hello};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{sleep, timeout};

use super::{Answer, Order, confine};
use crate::guest::mounts::{MAX_MOUNTS, Mount, Served};
use crate::guest::ports::Forwards;
use crate::guest::ssh::exchange;
use crate::guest::stream_port::{StreamPort, StreamPorts, try_lock};
use crate::host::random_bytes;

/// Time for a stream port to become free.
const PORT_LIMIT: Duration = Duration::from_secs(10);

/// Interval of attempts to take a port.
const PORT_POLL: Duration = Duration::from_millis(20);

/// Pause before the next session with an agent that has ended one.
const SESSION_PAUSE: Duration = Duration::from_millis(200);

/// Time for the guest's first report of what listens, which follows within milliseconds.
const REPORT_LIMIT: Duration = Duration::from_millis(500);

/// Longest order, in bytes.
const MAX_ORDER_BYTES: u64 = 64 * 1024;

/// State that the tasks of a companion share.
struct Shared {
    mounts: Mutex<BTreeMap<String, Served>>,
    ports: Mutex<Forwards>,
    /// Signals the first work. The process starts while the guest is restored or boots, and a
    /// guest that does not run yet would lose its hello.
    begun: Notify,
    /// Session with the guest's agent, while there is one.
    link: watch::Sender<Option<Link>>,
}

/// Serves a VM until its QEMU ends. Returns at once if another process does.
///
/// # Errors
/// Fails if all stream ports stay in use, or the companion's socket cannot be made.
pub fn accompany(ports: &StreamPorts) -> io::Result<()> {
    let Some(_lock) = try_lock(&ports.sockets.companion_lock())? else { return Ok(()) };
    confine::limit_process();
    let port = acquire(ports)?;
    let socket = ports.sockets.companion();
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdUnixListener::bind(&socket)?;
    listener.set_nonblocking(true)?;
    let connection = port.connection()?;
    connection.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let link = watch::Sender::new(None);
        let shared = Arc::new(Shared {
            mounts: Mutex::default(),
            ports: Mutex::new(Forwards::new(link.subscribe())),
            begun: Notify::new(),
            link,
        });
        tokio::spawn(accept(UnixListener::from_std(listener)?, Arc::clone(&shared)));
        converse(UnixStream::from_std(connection)?, &shared).await
    })
}

fn acquire(ports: &StreamPorts) -> io::Result<StreamPort> {
    let end = Instant::now() + PORT_LIMIT;
    loop {
        match StreamPort::acquire(ports)? {
            Some(port) => return Ok(port),
            None if Instant::now() < end => thread::sleep(PORT_POLL),
            None => return Err(io::ErrorKind::ResourceBusy.into()),
        }
    }
}

/// Keeps a session with the guest's agent until QEMU has ended.
async fn converse(mut stream: UnixStream, shared: &Shared) -> io::Result<()> {
    tokio::select! {
        () = shared.begun.notified() => {}
        () = end_of(&stream) => return Ok(()),
    }
    loop {
        let hello = Hello::of(Session::new(u64::from_ne_bytes(random_bytes()?)));
        let mut decoder = Decoder::new(Expected::Only(hello.session));
        match exchange(&mut stream, &hello, &mut decoder).await {
            Ok(_) => {}
            // QEMU has ended.
            Err(_) => return Ok(()),
        }
        let link = Link::new(Side::Host, &hello);
        shared.link.send_replace(Some(link.clone()));
        let (reader, writer) = stream.split();
        let end = link.drive(&mut decoder, reader, writer, drop).await;
        shared.link.send_replace(None);
        match end {
            End::HungUp | End::Failed(_) => return Ok(()),
            // The guest has rebooted, or its agent was started again.
            End::Lost | End::Replaced(_) => sleep(SESSION_PAUSE).await,
        }
    }
}

/// Waits until QEMU has ended. What the guest sends until then is for an earlier process.
async fn end_of(stream: &UnixStream) {
    let mut bytes = [0; 4096];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let shared = Arc::clone(&shared);
                // One that fails has a client that is gone.
                tokio::spawn(async move { obey(connection, &shared).await });
            }
            Err(_) => sleep(PORT_POLL).await,
        }
    }
}

/// Carries out the orders of one connection.
async fn obey(connection: UnixStream, shared: &Shared) -> io::Result<()> {
    let mut connection = BufReader::new(connection);
    let mut is_drained = false;
    let outcome = loop {
        let mut line = String::new();
        match (&mut connection).take(MAX_ORDER_BYTES).read_line(&mut line).await {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
        let answer = match serde_json::from_str(&line) {
            Err(error) => Answer::Failed(error.to_string()),
            Ok(Order::Drain) => {
                is_drained = true;
                drain(shared).await
            }
            Ok(order) => carry_out(order, shared).await,
        };
        let mut line = serde_json::to_vec(&answer).map_err(io::Error::other)?;
        line.push(b'\n');
        if let Err(error) = connection.write_all(&line).await {
            break Err(error);
        }
    };
    if is_drained {
        for served in shared.mounts.lock().await.values() {
            served.resume();
        }
    }
    outcome
}

/// Carries out an order. None waits for the guest with the lock held, which others need.
async fn carry_out(order: Order, shared: &Shared) -> Answer {
    match order {
        Order::Mount { mount, hidden } => match mount_one(mount, hidden, shared).await {
            Ok(()) => Answer::Done,
            Err(reason) => Answer::Failed(reason),
        },
        Order::Unmount { guest } => {
            let unmounted = shared.mounts.lock().await.get(&guest).map(Served::unmount);
            // The guest may have unmounted it by itself.
            let Some(unmounted) = unmounted else { return Answer::Done };
            match unmounted.await {
                Ok(()) => {
                    shared.mounts.lock().await.remove(&guest);
                    Answer::Done
                }
                Err(reason) => Answer::Failed(reason),
            }
        }
        Order::List => {
            let mut mounts = shared.mounts.lock().await;
            mounts.retain(|_, served| !served.is_gone());
            let states = mounts.values().map(|served| (served.mount().clone(), served.state()));
            Answer::Mounts(states.collect())
        }
        Order::Forward(plan) => {
            let has_report = {
                let mut ports = shared.ports.lock().await;
                ports.set(&plan).await;
                ports.has_report()
            };
            shared.begun.notify_one();
            if let Some(mut has_report) = has_report {
                // The guest may be slow, and then its ports are announced later.
                let _ = timeout(REPORT_LIMIT, has_report.wait_for(|has_report| *has_report)).await;
            }
            Answer::Ports(shared.ports.lock().await.list(false).await)
        }
        Order::Ports { is_announced } => {
            Answer::Ports(shared.ports.lock().await.list(is_announced).await)
        }
        Order::Drain => drain(shared).await,
    }
}

/// Mounts a directory, unless it is mounted as it shall be.
async fn mount_one(mount: Mount, hidden: Vec<PathBuf>, shared: &Shared) -> Result<(), String> {
    let guest = mount.guest.clone();
    let verified = {
        let mounts = shared.mounts.lock().await;
        let same = mounts.get(&guest).filter(|served| *served.mount() == mount);
        same.filter(|served| served.state().is_mounted()).map(Served::verify)
    };
    if let Some(verified) = verified {
        verified.await;
    }
    let mut mounts = shared.mounts.lock().await;
    mounts.retain(|_, served| !served.is_gone());
    let is_same = |served: &&Served| *served.mount() == mount && !served.has_failed();
    if mounts.get(&guest).filter(is_same).is_none() {
        if mounts.len() >= MAX_MOUNTS {
            return Err(format!("a VM has at most {MAX_MOUNTS} mounts"));
        }
        let served = Served::start(mount, hidden, shared.link.subscribe());
        mounts.insert(guest.clone(), served);
        shared.begun.notify_one();
    }
    let settled = mounts.get(&guest).map(Served::settled);
    drop(mounts);
    match settled {
        Some(settled) => settled.await,
        None => Err("it is gone".into()),
    }
}

async fn drain(shared: &Shared) -> Answer {
    let draining: Vec<_> = shared.mounts.lock().await.values().map(Served::drain).collect();
    for drained in draining {
        drained.await;
    }
    Answer::Done
}
