//! Virtio-serial ports, whose host may come and go.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::sleep;

use crate::kernel_fs::KernelFs;
use crate::watch::watch;

/// Interval at which a port is looked for at first. The driver names it some milliseconds after it
/// has found it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Interval once the port has not appeared soon; the machine may have none.
const LOOK_SELDOM: Duration = Duration::from_secs(1);

/// Number of looks at the short interval.
const EARLY_LOOKS: u32 = 200;

/// Most that Linux returns from one read of a port: a page.
const READ_BYTES: usize = 4096;

/// Waits for the port of this name to appear, and opens it.
pub(crate) async fn open(kernel_fs: &KernelFs, name: &str) -> io::Result<OwnedFd> {
    let mut looks = 0;
    let device = loop {
        if let Some(device) = find(kernel_fs, name) {
            break device;
        }
        looks += 1;
        sleep(if looks < EARLY_LOOKS { LOOK_EVERY } else { LOOK_SELDOM }).await;
    };
    kernel_fs.dev.open(&device, OFlags::RDWR | OFlags::NONBLOCK)
}

/// Returns the device's name, for instance `vport4p1`.
fn find(kernel_fs: &KernelFs, name: &str) -> Option<String> {
    let ports = kernel_fs.sys.names("class/virtio-ports").ok()?;
    ports.into_iter().find(|port| {
        let found = kernel_fs.sys.read(&format!("class/virtio-ports/{port}/name"));
        found.is_ok_and(|found| found == name) && kernel_fs.dev.has(port)
    })
}

/// Signal that a port is worth another try. A port whose host is away is only temporarily "hung
/// up", while tokio takes a hang-up as final: so the port is watched edge-triggered by an epoll of
/// its own, and tokio watches that.
pub(crate) struct Edges(AsyncFd<OwnedFd>);

impl Edges {
    pub(crate) fn of(port: impl AsFd, wanted: epoll::EventFlags) -> io::Result<Self> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&events, port, epoll::EventData::new_u64(0), wanted | epoll::EventFlags::ET)?;
        Ok(Self(watch(events, Interest::READABLE)?))
    }

    /// Waits for the next edge. An edge between the last try and this call is not lost.
    pub(crate) async fn next(&self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut ready = ready!(self.0.poll_read_ready(context))?;
        let mut events = Vec::with_capacity(1);
        let no_wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(self.0.get_ref(), spare_capacity(&mut events), Some(&no_wait))?;
        ready.clear_ready();
        Poll::Ready(Ok(()))
    }
}

/// The reading half of a port. Its end is that of one host; another one may follow.
pub(crate) struct Reader {
    port: OwnedFd,
    edges: Edges,
    /// Set once the kernel knows that the host is connected. It learns so on another queue than the
    /// one that carries data, so on a busy machine a host's first bytes may arrive before the host
    /// appears connected.
    host_is_there: bool,
}

/// The writing half of a port. Waits while no host is connected.
pub(crate) struct Writer {
    port: OwnedFd,
    edges: Edges,
}

/// Splits a port into its halves.
pub(crate) fn halves(port: OwnedFd) -> io::Result<(Reader, Writer)> {
    let (reads, writes) =
        (Edges::of(&port, epoll::EventFlags::IN)?, Edges::of(&port, epoll::EventFlags::OUT)?);
    let reader = Reader { port: port.try_clone()?, edges: reads, host_is_there: false };
    Ok((reader, Writer { port, edges: writes }))
}

impl AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let room = buffer.remaining().min(READ_BYTES);
            match rustix::io::read(&self.port, buffer.initialize_unfilled_to(room)) {
                Ok(0) if std::mem::take(&mut self.host_is_there) => return Poll::Ready(Ok(())),
                Ok(0) => {}
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => self.host_is_there = true,
                Err(Errno::INTR) => continue,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            ready!(self.edges.poll_next(context))?;
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::write(&self.port, bytes) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(Errno::AGAIN) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            ready!(self.edges.poll_next(context))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
