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

/// Bytes that may wait for a host that does not read. A message that does not fit takes the place
/// of all the others, which the next hello repeats.
const OUTBOX_BYTES: usize = 64 * 1024;

/// The control port. The host may open and close its end at any time.
///
/// The kernel learns that on another queue than the one that carries data, so a host's first
/// message, and the answer to it, may be there before the end of the host before it. Such an end
/// therefore voids nothing: each message has its session, and a line that a host leaves unfinished
/// is terminated by the next one.
pub(crate) struct ControlPort {
    file: OwnedFd,
    edges: Edges,
    lines: Lines,
    outbox: Outbox,
}

impl ControlPort {
    /// Waits for the port to appear and opens it.
    pub(crate) async fn open(kernel_fs: &KernelFs) -> io::Result<Self> {
        let file = port::open(kernel_fs, PORT_NAME).await?;
        let edges = Edges::of(&file, epoll::EventFlags::IN | epoll::EventFlags::OUT)?;
        Ok(Self { file, edges, lines: Lines::new(), outbox: Outbox::default() })
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
                // No host is there, or it has sent no more.
                Ok(0) | Err(Errno::AGAIN) => self.edges.next().await?,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a message as soon as the host reads. Never waits.
    pub(crate) fn send(&mut self, message: &Envelope<GuestMessage>) -> io::Result<()> {
        self.outbox.push(&castra_wire::encode(message));
        self.flush()
    }

    fn read(&mut self) -> Result<usize, Errno> {
        let mut chunk = Vec::with_capacity(4096);
        let length = rustix::io::read(&self.file, spare_capacity(&mut chunk))?;
        self.lines.push(&chunk);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(bytes) = self.outbox.first() {
            match rustix::io::write(&self.file, bytes) {
                Ok(written) => self.outbox.remove(written),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Lines for the host.
#[derive(Default)]
struct Outbox(VecDeque<u8>);

impl Outbox {
    fn push(&mut self, line: &[u8]) {
        if self.0.len() + line.len() > OUTBOX_BYTES {
            self.0.clear();
            // Terminates a line of which a part has been sent.
            self.0.push_back(b'\n');
        }
        self.0.extend(line);
    }

    /// Returns the next bytes to send.
    fn first(&self) -> Option<&[u8]> {
        let (first, _) = self.0.as_slices();
        (!first.is_empty()).then_some(first)
    }

    fn remove(&mut self, count: usize) {
        self.0.drain(..count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_message_is_never_dropped() {
        let mut outbox = Outbox::default();
        let line = [b"x".repeat(999), b"\n".to_vec()].concat();
        outbox.push(&line);
        outbox.remove(500);
        for _ in 0..=OUTBOX_BYTES / line.len() {
            outbox.push(&line);
        }
        outbox.push(b"newest\n");
        let sent: Vec<u8> = outbox.0.iter().copied().collect();
        // What follows a line that was sent in part is a line of its own.
        assert_eq!(sent, [b"\n", line.as_slice(), b"newest\n"].concat());
        outbox.remove(sent.len());
        assert_eq!(outbox.first(), None);
    }
}
