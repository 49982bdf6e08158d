//! One command's channel, from its requests to its exit.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use castra_flow::{Incoming, Message, Outgoing, Received};
use russh::client::Msg;
use russh::{ChannelMsg, Pty, Sig};
use tokio::time::Instant;

use super::connection::Connection;
use super::exec::Command;
use super::{GuestExit, SshError, Tty, quote};

/// The number by which SSH knows stderr (RFC 4254, 5.2).
const STDERR: u32 = 1;

/// How long to listen for what comes after the exit: output of helpers that end just after their command. A background
/// process that keeps the output open does not keep us.
const AFTERMATH: Duration = Duration::from_millis(250);

/// Where a command's bytes belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

pub(super) struct Conversation {
    incoming: Incoming,
    outgoing: Arc<Outgoing<Msg>>,
    /// What the guest has not yet said yes or no to.
    requested: VecDeque<&'static str>,
}

impl Conversation {
    /// Asks for everything at once; the answers come while the command runs already.
    pub(super) async fn start(
        connection: &Connection,
        command: &Command,
        tty: Option<&Tty>,
        environment: &[(String, String)],
    ) -> Result<Self, SshError> {
        let (incoming, outgoing) = castra_flow::split(connection.session().await?, connection.flow());
        let half = outgoing.half();
        let mut requested = VecDeque::new();
        let lost = |_| SshError::Lost;
        for (name, value) in environment {
            half.set_env(false, name.as_str(), value.as_str()).await.map_err(lost)?;
        }
        if let Some(Tty { term, columns, rows }) = tty {
            let modes = [(Pty::IUTF8, 1)];
            half.request_pty(true, term, (*columns).into(), (*rows).into(), 0, 0, &modes)
                .await
                .map_err(lost)?;
            requested.push_back("a terminal");
        }
        match command {
            Command::Shell => half.request_shell(true).await,
            Command::Line(line) => half.exec(true, line.as_str()).await,
            Command::Argv(argv) => half.exec(true, quote(argv)).await,
        }
        .map_err(lost)?;
        requested.push_back("the command");
        Ok(Self { incoming, outgoing: Arc::new(outgoing), requested })
    }

    pub(super) fn outgoing(&self) -> Arc<Outgoing<Msg>> {
        Arc::clone(&self.outgoing)
    }

    /// Hands all output to `sink`, in order, until the command has ended, or `sink` wants no more.
    pub(super) async fn until_exit(
        &mut self,
        mut sink: impl FnMut(Stream, Received) -> ControlFlow<()>,
    ) -> Result<GuestExit, SshError> {
        let mut exit = None;
        let mut is_output_over = false;
        let mut deadline = None;
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
                ChannelMsg::ExitSignal { signal_name, .. } => {
                    exit = Some(GuestExit::Signal(name_of(&signal_name)));
                }
                ChannelMsg::Success => drop(self.requested.pop_front()),
                ChannelMsg::Failure => {
                    let what = self.requested.pop_front().unwrap_or("the command");
                    return Err(SshError::NotStarted { what });
                }
                ChannelMsg::Eof => is_output_over = true,
                ChannelMsg::Close => break,
                _ => {}
            }
            if exit.is_some() && deadline.is_none() {
                deadline = Some(Instant::now() + AFTERMATH);
            }
        }
        exit.ok_or(SshError::Lost)
    }

    async fn next(&mut self, deadline: Option<Instant>) -> Option<Message> {
        match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, self.incoming.next()).await.ok()?,
            None => self.incoming.next().await,
        }
    }
}

fn name_of(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => name.clone(),
        // russh names its variants as SSH names the signals.
        known => format!("{known:?}"),
    }
}
