//! The control port: a virtio-serial port as a stream of messages.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use castra_wire::{DecodeError, Envelope, GuestMessage, HostMessage, Lines, PORT_NAME};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;

use crate::kernel_fs::KernelFs;
use crate::port::{self, Edges};

/// Bytes that may wait for a host that does not read. Messages that do not fit are dropped: the
/// next hello repeats them all.
const OUTBOX_BYTES: usize = 64 * 1024;

/// The control port. The host may open and close its end at any time.
pub(crate) struct ControlPort {
    file: OwnedFd,
    edges: Edges,
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
        let file = port::open(kernel_fs, PORT_NAME).await?;
        let edges = Edges::of(&file, epoll::EventFlags::IN | epoll::EventFlags::OUT)?;
        Ok(Self { file, edges, lines: Lines::new(), outbox: VecDeque::new(), host_is_there: false })
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
                    self.edges.next().await?;
                }
                Ok(_) => {}
                Err(Errno::AGAIN) => {
                    self.host_is_there = true;
                    self.edges.next().await?;
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
}
