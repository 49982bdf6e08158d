//! One command's channel, from its requests to its exit.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use castra_flow::{Incoming, Message, Outgoing, Received};
use castra_wire::{EXEC_SUBSYSTEM, ExecHeader, MALFORMED_SIGNAL, TOO_LONG_SIGNAL};
use russh::client::Msg;
use russh::{ChannelMsg, Pty, Sig};
use tokio::time::Instant;

use super::connection::Connection;
use super::{GuestExit, SshError, Tty, quote};

/// The number by which SSH knows stderr (RFC 4254, 5.2).
const STDERR: u32 = 1;

/// Time to keep reading after the exit, for output of helpers that end just after their command.
/// Output of a background process is not waited for.
const AFTERMATH: Duration = Duration::from_millis(250);

/// Name of the command, for an error.
const COMMAND: &str = "the command";

/// Longest line for a shell: Linux takes 128 KiB for one argument, with the NUL at its end.
const MAX_LINE_BYTES: usize = 128 * 1024 - 1;

/// Program that the guest user's shell runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A program and its arguments, each passed on unchanged. The shell finds the program (or has
    /// it built in), and parses none of them.
    Argv(Vec<OsString>),
    /// A line for the shell to parse.
    Line(String),
    /// The shell itself, as a login shell.
    Shell,
}

/// Destination of a command's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The command's standard output.
    Stdout,
    /// The command's standard error.
    Stderr,
}

pub(super) struct Conversation {
    incoming: Incoming,
    outgoing: Arc<Outgoing<Msg>>,
    /// Message that arrived before the guest's last answer.
    early: Option<Message>,
}

impl Conversation {
    /// Starts a command. Returns once the guest has granted it. An agent of an older castra refuses
    /// an array and is sent a line instead, so anything read from stdin before that would be lost.
    pub(super) async fn start(
        connection: &Connection,
        command: &Command,
        tty: Option<&Tty>,
        environment: &[(OsString, OsString)],
    ) -> Result<Self, SshError> {
        let argv = match command {
            Command::Argv(argv) => argv,
            Command::Line(line) if line.len() > MAX_LINE_BYTES => return Err(SshError::TooLong),
            Command::Line(line) => {
                let line = Request::Line(line.as_bytes().to_vec());
                return Self::request(connection, line, tty, environment).await;
            }
            Command::Shell => {
                return Self::request(connection, Request::Shell, tty, environment).await;
            }
        };
        let header = ExecHeader { arguments: argv.clone(), environment: environment.to_vec() };
        let header = header.encode().map_err(|_| SshError::TooLong)?;
        if let Some(started) = Self::describe(connection, header.into(), tty).await? {
            return Ok(started);
        }
        let line = quote(argv);
        if line.len() > MAX_LINE_BYTES {
            return Err(SshError::OldAgent { what: "more than 128 KiB of arguments" });
        }
        Self::request(connection, Request::Line(line), tty, environment).await
    }

    /// Starts a command whose arguments no shell parses; returns `None` if the guest does not
    /// support that. The header is sent along with the request if the guest's window permits, so
    /// that it costs no round trip.
    async fn describe(
        connection: &Connection,
        mut header: Bytes,
        tty: Option<&Tty>,
    ) -> Result<Option<Self>, SshError> {
        let mut requests = Requests::open(connection).await?;
        requests.terminal(tty).await?;
        requests.outgoing.half().request_subsystem(true, EXEC_SUBSYSTEM).await.map_err(lost)?;
        requests.awaited.push_back(COMMAND);
        if header.len() <= requests.outgoing.half().writable_packet_size().await {
            requests.outgoing.send(None, std::mem::take(&mut header)).await.map_err(lost)?;
        }
        match requests.granted().await {
            Ok(early) => {
                // Sends nothing if everything has been sent.
                requests.outgoing.send(None, header).await.map_err(lost)?;
                Ok(Some(requests.start(early)))
            }
            Err(SshError::NotStarted { what: COMMAND }) => {
                requests.outgoing.half().close().await.map_err(lost)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn request(
        connection: &Connection,
        request: Request,
        tty: Option<&Tty>,
        environment: &[(OsString, OsString)],
    ) -> Result<Self, SshError> {
        let mut requests = Requests::open(connection).await?;
        let half = requests.outgoing.half();
        for (name, value) in environment {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
                return Err(SshError::OldAgent { what: "a variable that is not UTF-8" });
            };
            half.set_env(false, name, value).await.map_err(lost)?;
        }
        requests.terminal(tty).await?;
        match request {
            Request::Line(line) => requests.outgoing.half().exec(true, line).await,
            Request::Shell => requests.outgoing.half().request_shell(true).await,
        }
        .map_err(lost)?;
        requests.awaited.push_back(COMMAND);
        let early = requests.granted().await?;
        Ok(requests.start(early))
    }

    pub(super) fn outgoing(&self) -> Arc<Outgoing<Msg>> {
        Arc::clone(&self.outgoing)
    }

    /// Passes all output to `sink`, in order, until the command has ended, or `sink` breaks.
    pub(super) async fn until_exit(
        &mut self,
        mut sink: impl FnMut(Stream, Received) -> ControlFlow<()>,
    ) -> Result<GuestExit, SshError> {
        let mut exit = None;
        let mut is_output_over = false;
        let mut deadline = None;
        // The exit and the end of the output may come in either order.
        while exit.is_none() || !is_output_over {
            let Some(message) = self.next(deadline).await else { break };
            let answer = match message {
                Message::Data(ext, data) => {
                    let wanted = match ext {
                        None => sink(Stream::Stdout, data),
                        Some(STDERR) => sink(Stream::Stderr, data),
                        Some(_) => ControlFlow::Continue(()),
                    };
                    if wanted.is_break() {
                        return Ok(GuestExit::OutputClosed);
                    }
                    continue;
                }
                Message::Other(answer) => answer,
            };
            match answer {
                ChannelMsg::ExitStatus { exit_status } => exit = Some(GuestExit::Code(exit_status)),
                ChannelMsg::ExitSignal { signal_name: Sig::Custom(name), .. }
                    if name == TOO_LONG_SIGNAL =>
                {
                    return Err(SshError::TooLong);
                }
                ChannelMsg::ExitSignal { signal_name: Sig::Custom(name), .. }
                    if name == MALFORMED_SIGNAL =>
                {
                    return Err(SshError::NotStarted { what: COMMAND });
                }
                ChannelMsg::ExitSignal { signal_name, .. } => {
                    exit = Some(GuestExit::Signal(name_of(&signal_name)));
                }
                ChannelMsg::Eof => is_output_over = true,
                ChannelMsg::Close => break,
                _ => {}
            }
            // A background process may keep the output open.
            if exit.is_some() && deadline.is_none() {
                deadline = Some(Instant::now() + AFTERMATH);
            }
        }
        exit.ok_or(SshError::Lost)
    }

    async fn next(&mut self, deadline: Option<Instant>) -> Option<Message> {
        if let Some(early) = self.early.take() {
            return Some(early);
        }
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, self.incoming.next()).await.ok()?,
            None => self.incoming.next().await,
        }
    }
}

/// A request in SSH's own terms.
enum Request {
    /// A line for the user's shell.
    Line(Vec<u8>),
    /// The shell itself.
    Shell,
}

/// A new channel and its requests.
struct Requests {
    incoming: Incoming,
    outgoing: Outgoing<Msg>,
    /// Requests that the guest has neither granted nor refused yet.
    awaited: VecDeque<&'static str>,
}

impl Requests {
    async fn open(connection: &Connection) -> Result<Self, SshError> {
        let (incoming, outgoing) =
            castra_flow::split(connection.session().await?, connection.flow());
        Ok(Self { incoming, outgoing, awaited: VecDeque::new() })
    }

    async fn terminal(&mut self, tty: Option<&Tty>) -> Result<(), SshError> {
        let Some(Tty { term, columns, rows }) = tty else { return Ok(()) };
        let modes = [(Pty::IUTF8, 1)];
        let half = self.outgoing.half();
        half.request_pty(true, term, (*columns).into(), (*rows).into(), 0, 0, &modes)
            .await
            .map_err(lost)?;
        self.awaited.push_back("a terminal");
        Ok(())
    }

    /// Waits until the guest has granted all requests. Returns a message of the command itself, if
    /// one came first.
    async fn granted(&mut self) -> Result<Option<Message>, SshError> {
        while let Some(what) = self.awaited.front().copied() {
            match self.incoming.next().await.ok_or(SshError::Lost)? {
                Message::Other(ChannelMsg::Success) => drop(self.awaited.pop_front()),
                Message::Other(ChannelMsg::Failure) => return Err(SshError::NotStarted { what }),
                Message::Other(ChannelMsg::Close) => return Err(SshError::Lost),
                Message::Other(ChannelMsg::WindowAdjusted { .. }) => {}
                early => return Ok(Some(early)),
            }
        }
        Ok(None)
    }

    fn start(self, early: Option<Message>) -> Conversation {
        Conversation { incoming: self.incoming, outgoing: Arc::new(self.outgoing), early }
    }
}

fn lost(_: russh::Error) -> SshError {
    SshError::Lost
}

fn name_of(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.clone(),
        // russh names its variants as SSH names the signals.
        known => format!("{known:?}"),
    }
}
