//! Virtio-serial ports, whose host may come and go.

use std::future::Future as _;
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
use tokio::time::{Sleep, sleep};

use crate::kernel_fs::KernelFs;
use crate::watch::watch;

/// Interval at which a port is looked for at first. The driver names it some milliseconds after it
/// has found it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Interval once the port has not appeared soon; the machine may have none.
const LOOK_SELDOM: Duration = Duration::from_secs(1);

/// Number of looks at the short interval.
const EARLY_LOOKS: u32 = 200;

/// Time for a host whose bytes have come to appear connected, in a guest whose CPUs are busy.
const TIME_TO_APPEAR: Duration = Duration::from_secs(1);

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
    presence: Presence,
}

/// Presence of the host, as far as the kernel knows. It learns that on another queue than the one
/// that carries data, so on a busy machine a host's first bytes may arrive before the host appears
/// connected, and before the end of the host before it.
enum Presence {
    /// The port has shown no host since the last end.
    Away,
    /// The host is connected, and has sent no more.
    There,
    /// Bytes have come from a host that was there. An end may be that of the host before their
    /// sender, which then has some time to appear.
    Heard(Option<Pin<Box<Sleep>>>),
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
    let reader = Reader { port: port.try_clone()?, edges: reads, presence: Presence::Away };
    Ok((reader, Writer { port, edges: writes }))
}

impl Presence {
    /// Takes note of bytes.
    fn hear(&mut self) {
        // One that was away is not yet there.
        if !matches!(self, Self::Away) {
            *self = Self::Heard(None);
        }
    }

    /// Takes note of an end. Returns `true` if it is that of the host that was there last.
    fn end(&mut self, context: &mut Context<'_>) -> bool {
        let has_left = match self {
            Self::Away => false,
            Self::There => true,
            Self::Heard(appearing) => {
                let appearing = appearing.get_or_insert_with(|| Box::pin(sleep(TIME_TO_APPEAR)));
                appearing.as_mut().poll(context).is_ready()
            }
        };
        if has_left {
            *self = Self::Away;
        }
        has_left
    }
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
                Ok(0) if self.presence.end(context) => return Poll::Ready(Ok(())),
                Ok(0) => {}
                Ok(count) => {
                    self.presence.hear();
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => self.presence = Presence::There,
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

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// A pipe whose writers come and go, as the hosts of a port do.
    struct Hosts {
        reading: OwnedFd,
    }

    impl Hosts {
        fn new() -> (Self, Reader, OwnedFd) {
            let (reading, host) = pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
            let reader = halves(reading.try_clone().expect("cloned")).expect("halves").0;
            (Self { reading }, reader, host)
        }

        /// Connects another host.
        fn connect(&self) -> OwnedFd {
            use std::os::fd::AsRawFd as _;
            let path = format!("/proc/self/fd/{}", self.reading.as_raw_fd());
            let mode = rustix::fs::Mode::empty();
            rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK, mode).expect("opened")
        }
    }

    /// Reads without waiting. Returns `None` if the port has neither bytes nor an end.
    async fn glance(reader: &mut Reader) -> Option<Vec<u8>> {
        let mut bytes = [0; 16];
        let mut buffer = ReadBuf::new(&mut bytes);
        let polled = std::future::poll_fn(|context| {
            Poll::Ready(Pin::new(&mut *reader).poll_read(context, &mut buffer).map(|read| {
                read.expect("readable");
            }))
        });
        polled.await.is_ready().then(|| buffer.filled().to_vec())
    }

    fn send(host: &OwnedFd, bytes: &[u8]) {
        assert_eq!(rustix::io::write(host, bytes), Ok(bytes.len()));
    }

    #[tokio::test]
    async fn the_end_of_a_silent_host_is_seen_at_once() {
        let (_hosts, mut reader, host) = Hosts::new();
        assert_eq!(glance(&mut reader).await, None);
        drop(host);
        assert_eq!(glance(&mut reader).await, Some(Vec::new()));
    }

    #[tokio::test]
    async fn the_end_of_one_host_does_not_end_the_next_which_was_heard_before() {
        let (hosts, mut reader, host) = Hosts::new();
        assert_eq!(glance(&mut reader).await, None);
        send(&host, b"next");
        drop(host);
        assert_eq!(glance(&mut reader).await, Some(b"next".to_vec()));
        // The kernel has heard the next host, and does not yet know that it is there.
        assert_eq!(glance(&mut reader).await, None);
        let host = hosts.connect();
        assert_eq!(glance(&mut reader).await, None);
        send(&host, b"more");
        assert_eq!(glance(&mut reader).await, Some(b"more".to_vec()));
        // One that was heard and does not appear again has left.
        drop(host);
        assert_eq!(glance(&mut reader).await, None);
        assert_eq!(reader.read(&mut [0; 16]).await.expect("readable"), 0);
        assert_eq!(glance(&mut reader).await, None);
    }
}
