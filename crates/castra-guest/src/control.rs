//! The control port: a virtio-serial port as a stream of messages.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use castra_wire::{DecodeError, Envelope, GuestMessage, HostMessage, Lines, PORT_NAME};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fs::OFlags;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::kernel_fs::KernelFs;
use crate::watch::watch;

/// Interval at which the port is looked for at first. The driver names it some milliseconds after
/// it has found it.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Interval once the port has not appeared soon; the machine may have none.
const LOOK_SELDOM: Duration = Duration::from_secs(1);

/// Number of looks at the short interval.
const EARLY_LOOKS: u32 = 200;

/// Bytes that may wait for a host that does not read. Messages that do not fit are dropped: the
/// next hello repeats them all.
const OUTBOX_BYTES: usize = 64 * 1024;

/// The control port. The host may open and close its end at any time.
pub(crate) struct ControlPort {
    file: OwnedFd,
    /// Signals when the port is worth another try. A port whose host is away is only temporarily
    /// "hung up", while tokio takes a hang-up as final: so the port is watched edge-triggered by an
    /// epoll of its own, and tokio watches that.
    events: AsyncFd<OwnedFd>,
    lines: Lines,
    outbox: VecDeque<u8>,
    /// Set once the kernel knows that the host is connected. It learns so on another queue than the
    /// one that carries data, so on a busy machine a host's first message may arrive before the
    /// host appears connected.
    host_is_there: bool,
}

impl ControlPort {
    /// Waits for the port to appear and opens it.
    pub(crate) async fn open(kernel_fs: &KernelFs) -> io::Result<Self> {
        let mut looks = 0;
        let name = loop {
            if let Some(name) = find(kernel_fs) {
                break name;
            }
            looks += 1;
            sleep(if looks < EARLY_LOOKS { LOOK_EVERY } else { LOOK_SELDOM }).await;
        };
        let file = kernel_fs.dev.open(&name, OFlags::RDWR | OFlags::NONBLOCK)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wanted = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&events, &file, epoll::EventData::new_u64(0), wanted)?;
        let events = watch(events, Interest::READABLE)?;
        Ok(Self {
            file,
            events,
            lines: Lines::new(),
            outbox: VecDeque::new(),
            host_is_there: false,
        })
    }

    /// Receives the next message, or the error for a line that is none. Cancel-safe: dropping the
    /// future loses nothing.
    pub(crate) async fn receive(
        &mut self,
    ) -> io::Result<Result<Envelope<HostMessage>, DecodeError>> {
        loop {
            if let Some(line) = self.lines.next_line() {
                return Ok(line.and_then(castra_wire::decode));
            }
            self.flush()?;
            match self.read() {
                Ok(0) => {
                    if std::mem::take(&mut self.host_is_there) {
                        // The host has closed its end; whatever it was sending or waiting for is
                        // void. The next host may be connected already and receive some of it: the
                        // session in each message prevents confusion.
                        self.lines.clear();
                        self.outbox.clear();
                    }
                    self.wait().await?;
                }
                Ok(_) => {}
                Err(Errno::AGAIN) => {
                    self.host_is_there = true;
                    self.wait().await?;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a message as soon as the host reads. Never waits.
    pub(crate) fn send(&mut self, message: &Envelope<GuestMessage>) -> io::Result<()> {
        let line = castra_wire::encode(message);
        if self.outbox.len() + line.len() <= OUTBOX_BYTES {
            self.outbox.extend(line);
        }
        self.flush()
    }

    fn read(&mut self) -> Result<usize, Errno> {
        let mut chunk = Vec::with_capacity(4096);
        let length = rustix::io::read(&self.file, spare_capacity(&mut chunk))?;
        self.lines.push(&chunk);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            let (first, _) = self.outbox.as_slices();
            match rustix::io::write(&self.file, first) {
                Ok(written) => drop(self.outbox.drain(..written)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn wait(&self) -> io::Result<()> {
        let mut ready = self.events.readable().await?;
        let mut events = Vec::with_capacity(1);
        let no_wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(self.events.get_ref(), spare_capacity(&mut events), Some(&no_wait))?;
        ready.clear_ready();
        Ok(())
    }
}

/// Returns the device's name, for instance `vport4p1`.
fn find(kernel_fs: &KernelFs) -> Option<String> {
    let ports = kernel_fs.sys.names("class/virtio-ports").ok()?;
    ports.into_iter().find(|port| {
        let name = kernel_fs.sys.read(&format!("class/virtio-ports/{port}/name"));
        name.is_ok_and(|name| name == PORT_NAME) && kernel_fs.dev.has(port)
    })
}
