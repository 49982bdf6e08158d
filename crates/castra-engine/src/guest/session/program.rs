//! Kept programs of a guest.

use std::ffi::OsString;
use std::time::Duration;

use bytes::Bytes;
use castra_flow::{Incoming, Message, Outgoing};
use castra_wire::stream::{Terminal, Window};
use castra_wire::{MALFORMED_SIGNAL, TOO_LONG_SIGNAL};

use super::SessionError;
use crate::guest::ssh::GuestExit;

/// Kind of terminal in the `TERM` of programs.
const TERM: &str = "xterm-256color";

/// Most bytes of a reason why a program was not started that are kept.
const MAX_REASON_BYTES: usize = 4096;

/// Program to start.
#[derive(Debug, Clone, Default)]
pub struct NewProgram {
    /// User who runs it.
    pub user: String,
    /// The program and its arguments. No shell parses them.
    pub arguments: Vec<OsString>,
    /// Variables of its environment, which override the guest's.
    pub environment: Vec<(OsString, OsString)>,
    /// Directory in which it starts, relative to the user's home; `None` for that.
    pub directory: Option<OsString>,
    /// Size of its terminal, if it gets one.
    pub terminal: Option<WindowSize>,
    /// Name by which it is found again; may be empty.
    pub tag: String,
    /// Keeps its stdin open. Without this, it reads an end of file at once.
    pub has_stdin: bool,
    /// Time after which it is killed with its process group, whether a session is there or not.
    pub limit: Option<Duration>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Width.
    pub columns: u16,
    /// Height.
    pub rows: u16,
}

impl WindowSize {
    pub(super) fn terminal(self) -> Terminal {
        Terminal { term: TERM.to_owned(), window: self.window() }
    }

    fn window(self) -> Window {
        Window { columns: self.columns, rows: self.rows, width_px: 0, height_px: 0 }
    }
}

/// Something that a program has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramEvent {
    /// Output to its stdout or its terminal.
    Stdout(Bytes),
    /// Output to its stderr.
    Stderr(Bytes),
    /// End of the program. Nothing follows.
    Ended(GuestExit),
}

/// A kept program that runs. Dropping it leaves the program alone.
pub struct RunningProgram {
    pid: u32,
    /// Bytes of its output that were received, and of what was before that.
    received: u64,
    incoming: Incoming,
    _outgoing: Outgoing,
}

impl RunningProgram {
    /// Waits for the guest's word that the program runs.
    pub(super) async fn started(
        mut incoming: Incoming,
        outgoing: Outgoing,
    ) -> Result<Self, SessionError> {
        let mut reason = Vec::new();
        loop {
            match incoming.next().await.ok_or(SessionError::Lost)? {
                Message::Data(data) => {
                    let (pid, place) = data.split_first_chunk().ok_or(SessionError::Lost)?;
                    let received = place.first_chunk().ok_or(SessionError::Lost)?;
                    let (pid, received) = (u32::from_be_bytes(*pid), u64::from_be_bytes(*received));
                    return Ok(Self { pid, received, incoming, _outgoing: outgoing });
                }
                Message::Stderr(data) => {
                    let room = MAX_REASON_BYTES.saturating_sub(reason.len());
                    reason.extend_from_slice(&data[..data.len().min(room)]);
                }
                Message::ExitStatus(status) => {
                    let reason = String::from_utf8_lossy(&reason);
                    let reason = reason.trim().trim_start_matches("castra: ").to_owned();
                    return Err(SessionError::NotStarted { status, reason });
                }
                Message::ExitSignal(name) if name == TOO_LONG_SIGNAL => {
                    return Err(SessionError::TooLong);
                }
                Message::ExitSignal(name) if name == MALFORMED_SIGNAL => {
                    let reason = "no program, or a NUL in its description".to_owned();
                    return Err(SessionError::NotStarted { status: 126, reason });
                }
                // It ended before this session could follow it.
                Message::EndOfData | Message::Closed => return Err(SessionError::NotFound),
                _ => {}
            }
        }
    }

    /// Returns the pid in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the place in the program's output up to which this has received it, in bytes.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Waits for the next event. Cancel-safe. The program waits once some output was not received.
    ///
    /// # Errors
    /// The session has ended; the program may still run.
    pub async fn next(&mut self) -> Result<ProgramEvent, SessionError> {
        loop {
            return Ok(match self.incoming.next().await.ok_or(SessionError::Lost)? {
                Message::Data(data) => {
                    self.received += data.len() as u64;
                    ProgramEvent::Stdout(Bytes::copy_from_slice(&data))
                }
                Message::Stderr(data) => {
                    self.received += data.len() as u64;
                    ProgramEvent::Stderr(Bytes::copy_from_slice(&data))
                }
                Message::ExitStatus(code) => ProgramEvent::Ended(GuestExit::Code(code)),
                Message::ExitSignal(name) => ProgramEvent::Ended(GuestExit::Signal(name)),
                Message::Closed => return Err(SessionError::Lost),
                _ => continue,
            });
        }
    }
}

/// Control of a kept program.
pub struct Control {
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
}

impl Control {
    /// Sends bytes to the program's stdin or terminal.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), SessionError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(castra_flow::PACKET_BYTES as usize));
            self.outgoing.send(piece).await.map_err(|_| SessionError::Lost)?;
        }
        Ok(())
    }

    /// Sends a signal to the program and its process group, by its name without `SIG`.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn signal(&self, name: &str) -> Result<(), SessionError> {
        self.outgoing.signal(name).await.map_err(|_| SessionError::Lost)
    }

    /// Gives the program's terminal another size.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn resize(&self, size: WindowSize) -> Result<(), SessionError> {
        self.outgoing.resize(size.window()).await.map_err(|_| SessionError::Lost)
    }

    /// Waits until everything is delivered. Returns `false` if the program reads no more.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn finish(mut self) -> Result<bool, SessionError> {
        self.outgoing.end_data().await.map_err(|_| SessionError::Lost)?;
        loop {
            match self.incoming.next().await {
                Some(Message::ExitStatus(status)) => return Ok(status == 0),
                None | Some(Message::Closed) => return Err(SessionError::Lost),
                Some(_) => {}
            }
        }
    }
}

/// Returns the next data of a stream, or `None` at its end.
pub(super) async fn next_data(incoming: &mut Incoming) -> Result<Option<Bytes>, SessionError> {
    loop {
        match incoming.next().await.ok_or(SessionError::Lost)? {
            Message::Data(data) => return Ok(Some(Bytes::copy_from_slice(&data))),
            Message::EndOfData | Message::Closed => return Ok(None),
            _ => {}
        }
    }
}
