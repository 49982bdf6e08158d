//! One command's channel, from its requests to its exit.

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use castra_flow::{Incoming, Message, Outgoing, Received};
use castra_wire::stream::{Program, Target, Terminal};
use castra_wire::{ExecHeader, MALFORMED_SIGNAL, StartDirectory, TOO_LONG_SIGNAL};
use tokio::time::Instant;

use super::connection::Connection;
use super::direct::Direct;
use super::{GuestExit, SshError, Tty, requests};

/// Time to keep reading after the exit, for output of helpers that end just after their command.
/// Output of a background process is not waited for.
const AFTERMATH: Duration = Duration::from_millis(250);

/// Name of the command, for an error.
pub(super) const COMMAND: &str = "the command";

/// Longest line for a shell: Linux takes 128 KiB for one argument, with the NUL at its end.
pub(super) const MAX_LINE_BYTES: usize = 128 * 1024 - 1;

/// Program to start in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A program and its arguments, each passed on unchanged: no shell parses them. The user's
    /// shell runs what is not found as a file, such as its built-ins.
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

/// A command, and what it gets at its start.
#[derive(Clone, Copy)]
pub(super) struct Start<'a> {
    pub(super) command: &'a Command,
    pub(super) tty: Option<&'a Tty>,
    pub(super) environment: &'a [(OsString, OsString)],
    pub(super) directory: Option<&'a StartDirectory>,
}

impl<'a> Start<'a> {
    /// Returns the start of a command that gets nothing.
    pub(super) fn of(command: &'a Command) -> Self {
        Self { command, tty: None, environment: &[], directory: None }
    }
}

pub(super) struct Conversation {
    incoming: Incoming,
    outgoing: Arc<Outgoing>,
    /// Set if the guest got a header with a directory.
    has_directory: bool,
    /// Message that arrived before the guest's last answer.
    early: Option<Message>,
}

impl Conversation {
    pub(super) fn new(incoming: Incoming, outgoing: Outgoing, early: Option<Message>) -> Self {
        Self { incoming, outgoing: Arc::new(outgoing), has_directory: false, early }
    }

    /// Returns the conversation with a guest that got this header.
    pub(super) fn described_by(self, header: &ExecHeader) -> Self {
        Self { has_directory: header.directory.is_some(), ..self }
    }

    /// Starts a command. Returns once the guest has granted it; nothing may be read from stdin
    /// before that.
    pub(super) async fn start(connection: &Connection, start: Start<'_>) -> Result<Self, SshError> {
        if matches!(start.command, Command::Line(line) if line.len() > MAX_LINE_BYTES) {
            return Err(SshError::TooLong);
        }
        match connection {
            Connection::Direct(direct) => Self::start_directly(direct, start).await,
            Connection::Ssh(login) => requests::start(login, start).await,
        }
    }

    async fn start_directly(direct: &Direct, start: Start<'_>) -> Result<Self, SshError> {
        let Start { command, tty, environment, directory } = start;
        let (program, arguments) = match command {
            Command::Argv(argv) => (Program::Arguments, argv.clone()),
            Command::Line(line) => (Program::Line, vec![line.into()]),
            Command::Shell => (Program::Shell, Vec::new()),
        };
        let (environment, directory) = (environment.to_vec(), directory.cloned());
        let header = ExecHeader { arguments, environment, directory };
        let encoded = header.encode().map_err(|_| SshError::TooLong)?;
        let terminal = tty.map(|tty| Terminal { term: tty.term.clone(), window: tty.window() });
        let target = Target::Program { user: direct.user().to_owned(), program, terminal };
        let (incoming, outgoing) = direct.open_stream(&target, encoded.into(), COMMAND).await?;
        Ok(Self::new(incoming, outgoing, None).described_by(&header))
    }

    pub(super) fn outgoing(&self) -> Arc<Outgoing> {
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
            let taken = match message {
                Message::Data(data) => sink(Stream::Stdout, data),
                Message::Stderr(data) => sink(Stream::Stderr, data),
                Message::ExitStatus(code) => {
                    exit = Some(GuestExit::Code(code));
                    ControlFlow::Continue(())
                }
                Message::ExitSignal(name) if name == TOO_LONG_SIGNAL => {
                    return Err(SshError::TooLong);
                }
                Message::ExitSignal(name) if name == MALFORMED_SIGNAL && self.has_directory => {
                    return Err(SshError::OldAgent { what: "a working directory" });
                }
                Message::ExitSignal(name) if name == MALFORMED_SIGNAL => {
                    return Err(SshError::NotStarted { what: COMMAND });
                }
                Message::ExitSignal(name) => {
                    exit = Some(GuestExit::Signal(name));
                    ControlFlow::Continue(())
                }
                Message::EndOfData => {
                    is_output_over = true;
                    ControlFlow::Continue(())
                }
                Message::Closed => break,
                _ => ControlFlow::Continue(()),
            };
            if taken.is_break() {
                return Ok(GuestExit::OutputClosed);
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
