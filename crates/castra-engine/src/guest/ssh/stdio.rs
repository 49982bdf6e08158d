//! Local streams of a command. Each has a thread: terminals, pipes and files may all block, and
//! files cannot be polled.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc as blocking;
use std::thread;

use bytes::Bytes;
use castra_flow::Received;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

/// Bytes per read: a Linux pipe's capacity.
const READ_BYTES: usize = 64 * 1024;

/// Number of reads ahead of the connection.
const READ_AHEAD: usize = 4;

/// Sources and destinations of a command's streams.
pub struct Stdio {
    /// Read until it ends; `None` means `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Receives the command's stdout, or all of a terminal's output.
    pub stdout: OwnedFd,
    /// Receives the command's stderr.
    pub stderr: OwnedFd,
}

impl Stdio {
    /// Returns this process's own streams.
    ///
    /// # Errors
    /// One of them is closed, or stdin is a directory.
    pub fn inherit() -> io::Result<Self> {
        Ok(Self { stdin: Some(own_stdin()?), ..Self::without_stdin()? })
    }

    /// Returns this process's stdout and stderr, without a stdin.
    ///
    /// # Errors
    /// One of them is closed.
    pub fn without_stdin() -> io::Result<Self> {
        Ok(Self {
            stdin: None,
            stdout: io::stdout().as_fd().try_clone_to_owned()?,
            stderr: io::stderr().as_fd().try_clone_to_owned()?,
        })
    }
}

/// Returns this process's stdin.
///
/// # Errors
/// It is closed, or is a directory ([`io::ErrorKind::IsADirectory`]), which no command can read.
pub fn own_stdin() -> io::Result<OwnedFd> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    match FileType::from_raw_mode(rustix::fs::fstat(&stdin)?.st_mode) {
        FileType::Directory => Err(Errno::ISDIR.into()),
        _ => Ok(stdin),
    }
}

/// Input of a command whose output is received in pieces.
#[derive(Debug)]
pub enum Stdin {
    /// None: `/dev/null`.
    Null,
    /// Read until it ends.
    Descriptor(OwnedFd),
    /// These bytes.
    Bytes(Bytes),
}

/// Data for a command's stdin.
pub(super) enum Input {
    /// Data read by a thread. Reading stops when this is dropped, so that nothing meant for the
    /// next program is consumed.
    Read {
        chunks: mpsc::Receiver<io::Result<Bytes>>,
        /// Closed on drop, which makes its other end readable and so ends the reading thread.
        _stop: OwnedFd,
    },
    /// Data in memory that is left.
    Given(Bytes),
}

impl Input {
    pub(super) fn of(stdin: Stdin) -> io::Result<Option<Self>> {
        Ok(match stdin {
            Stdin::Null => None,
            Stdin::Descriptor(descriptor) => Some(Self::start(descriptor)?),
            Stdin::Bytes(bytes) => Some(Self::Given(bytes)),
        })
    }

    pub(super) fn start(stdin: OwnedFd) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let stopped = OwnedFd::from(stopped);
        let (sender, chunks) = mpsc::channel(READ_AHEAD);
        thread::Builder::new().name("castra-stdin".into()).spawn(move || {
            let may_vanish = rustix::termios::isatty(&stdin);
            while let Some(chunk) = read(&stdin, &stopped) {
                // A terminal that has hung up, and what nohup gives instead of one, end.
                let is_end = |error: &io::Error| {
                    may_vanish || error.raw_os_error() == Some(Errno::BADF.raw_os_error())
                };
                let is_over = chunk.is_err();
                if chunk.as_ref().is_err_and(is_end) || sender.blocking_send(chunk).is_err() {
                    return;
                }
                if is_over {
                    return;
                }
            }
        })?;
        Ok(Self::Read { chunks, _stop: stop.into() })
    }

    /// Returns the next bytes; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        match self {
            Self::Read { chunks, .. } => chunks.recv().await,
            Self::Given(left) if left.is_empty() => None,
            Self::Given(left) => Some(Ok(left.split_to(left.len().min(READ_BYTES)))),
        }
    }
}

fn read(stdin: &OwnedFd, stopped: &OwnedFd) -> Option<io::Result<Bytes>> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let mut waiting = [PollFd::new(stdin, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        match poll(&mut waiting, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return None,
            Ok(_) if !waiting[1].revents().is_empty() => return None,
            Ok(_) => {}
        }
        match rustix::io::read(stdin, &mut buffer) {
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(0) => return None,
            Err(error) => return Some(Err(error.into())),
            Ok(count) => {
                buffer.truncate(count);
                return Some(Ok(buffer.into()));
            }
        }
    }
}

/// A queue of bytes for stdout or stderr, which a thread writes.
pub(super) struct Output(blocking::Sender<Received>);

/// End of writing to an [`Output`].
pub(super) struct Written(oneshot::Receiver<io::Result<()>>);

impl Output {
    pub(super) fn start(descriptor: OwnedFd) -> io::Result<(Self, Written)> {
        let (data, received) = blocking::channel();
        let (done, written) = oneshot::channel();
        thread::Builder::new().name("castra-output".into()).spawn(move || {
            let result =
                received.into_iter().try_for_each(|data: Received| write_all(&descriptor, &data));
            // The receiver is gone if a signal ended the call.
            let _ = done.send(result);
        })?;
        Ok((Self(data), Written(written)))
    }

    /// Queues bytes. Returns `false` if writing has failed.
    pub(super) fn put(&self, data: Received) -> bool {
        self.0.send(data).is_ok()
    }
}

impl Written {
    /// Waits until writing fails, or the queue is dropped and everything in it is written.
    ///
    /// # Errors
    /// Writing failed, now or before.
    pub(super) async fn end(&mut self) -> io::Result<()> {
        (&mut self.0).await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }
}

fn write_all(descriptor: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(descriptor, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // Another process that shares our stdout may have made it non-blocking.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(descriptor, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
