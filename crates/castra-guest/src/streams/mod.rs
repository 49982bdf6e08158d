//! Streams of the host's over its stream ports: programs, files and connections, without the
//! guest's network.
//!
//! They have a thread of their own, so that neither SSH nor the control port can hold them up.

mod target;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use castra_flow::link::{End, Link, Side, receive_hello};
use castra_wire::stream::{Decoder, Expected, Hello};
use castra_wire::{STREAM_PORT_PREFIX, STREAM_PORTS, Session};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::kernel_fs::KernelFs;
use crate::mounts::Mounts;
use crate::port;
use crate::programs::KeptPrograms;

/// Time for which a thread that has started a program waits for the next one: for ever.
const STARTER_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A session that no host has chosen.
const NO_SESSION: Session = Session::new(0);

/// State that outlives the streams of all ports.
#[derive(Clone, Default)]
struct Lasting {
    /// The guest's mounts, which need its kernel.
    mounts: Option<Mounts>,
    programs: KeptPrograms,
}

/// Gate that opens once the VM has its identity: no program may run before.
pub type Gate = watch::Receiver<bool>;

/// Serves all stream ports, on a thread of its own.
///
/// # Errors
/// The thread cannot be started.
pub(crate) fn start(kernel_fs: Arc<KernelFs>, gate: Gate) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(STARTER_LIFETIME)
        .build()?;
    std::thread::Builder::new().name("castra-streams".into()).spawn(move || {
        runtime.block_on(async {
            // The thread that will start programs, so that the first command needs not make it.
            let _ = tokio::task::spawn_blocking(|| ()).await;
            let lasting = Lasting {
                mounts: Some(Mounts::new(Arc::clone(&kernel_fs))),
                programs: KeptPrograms::default(),
            };
            let ports: Vec<_> = (0..STREAM_PORTS)
                .map(|number| {
                    let (kernel_fs, lasting) = (Arc::clone(&kernel_fs), lasting.clone());
                    tokio::spawn(serve_port(number, kernel_fs, gate.clone(), lasting))
                })
                .collect();
            for port in ports {
                // One that fails ends by itself.
                let _ = port.await;
            }
        });
    })?;
    Ok(())
}

/// Serves the hosts of one port, one after another, until the port fails.
async fn serve_port(
    number: u32,
    kernel_fs: Arc<KernelFs>,
    gate: Gate,
    lasting: Lasting,
) -> io::Result<()> {
    let opened = port::open(&kernel_fs, &format!("{STREAM_PORT_PREFIX}{number}")).await?;
    end_earlier_session(&opened);
    let (mut reader, mut writer) = port::halves(opened)?;
    loop {
        serve_sessions(&mut reader, &mut writer, &gate, &lasting).await?;
    }
}

/// Ends the session that a connected host may have with an agent before this one, whose guest has
/// rebooted or which was killed: a hello in a session of another ends it, and begins none.
fn end_earlier_session(port: &OwnedFd) {
    // Without a host, which is the rule, the port does not take it.
    let _ = rustix::io::write(port, &Hello::of(NO_SESSION).encode());
}

/// Serves sessions until the host has hung up, without mounts, which need a guest's kernel. Needs a
/// tokio runtime with I/O and time.
///
/// # Errors
/// The port failed.
pub async fn serve(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    gate: &Gate,
) -> io::Result<()> {
    serve_sessions(reader, writer, gate, &Lasting::default()).await
}

async fn serve_sessions(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    gate: &Gate,
    lasting: &Lasting,
) -> io::Result<()> {
    let mut decoder = Decoder::new(Expected::Any);
    let mut next = None;
    loop {
        let hello = match next.take() {
            Some(hello) => hello,
            None => match receive_hello(&mut decoder, reader).await? {
                Some(hello) => hello,
                None => return Ok(()),
            },
        };
        let link = Link::new(Side::Guest, &hello);
        let opening = |opening| {
            tokio::spawn(target::serve(opening, gate.clone(), lasting.clone()));
        };
        match link.drive(&mut decoder, &mut *reader, &mut *writer, opening).await {
            End::HungUp => return Ok(()),
            End::Failed(error) => return Err(error),
            End::Lost => {}
            End::Replaced(hello) => next = Some(hello),
        }
    }
}
