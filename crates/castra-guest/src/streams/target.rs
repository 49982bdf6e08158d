//! Serves one stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use castra_flow::link::{self, Opening};
use castra_flow::{Incoming, Outgoing};
use castra_wire::stream::{self, Refusal, Target};
use russh::Pty;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Gate, Lasting};
use crate::connect::{connect, connect_to_socket};
use crate::file_events;
use crate::listeners;
use crate::programs::{self, Described, New, Terminal};
use crate::relay;
use crate::sftp;
use crate::users::User;

/// Serves the stream that the host requests, once the gate is open.
pub(super) async fn serve(requested: Opening, mut gate: Gate, lasting: Lasting) {
    let Opening { target, incoming, outgoing } = requested;
    let Lasting { mounts, programs: kept } = lasting;
    if gate.wait_for(|is_open| *is_open).await.is_err() {
        return;
    }
    match target {
        Target::Program { user, program, terminal } => match prepare(&user, terminal.as_ref()) {
            Ok((user, terminal)) => {
                let described = Described { user, kind: program, terminal, mounts };
                run(described, incoming, outgoing).await;
            }
            Err(reason) => refuse(&outgoing, reason),
        },
        Target::Kept { user, program, terminal, tag, limit_ms } => {
            match prepare(&user, terminal.as_ref()) {
                Ok((user, terminal)) => {
                    let described = Described { user, kind: program, terminal, mounts };
                    let limit = (limit_ms > 0).then_some(Duration::from_millis(limit_ms));
                    kept.start(New { described, tag, limit }, incoming, outgoing).await;
                }
                Err(reason) => refuse(&outgoing, reason),
            }
        }
        Target::Follow { program, from } => kept.follow(&program, from, incoming, outgoing).await,
        Target::Control { program, ends_stdin } => {
            kept.control(&program, ends_stdin, incoming, outgoing).await;
        }
        Target::KeptPrograms => kept.list(outgoing).await,
        Target::Watch { user, path, is_recursive } => match find(&user) {
            Ok(user) => file_events::report(user, path, is_recursive, incoming, outgoing).await,
            Err(reason) => refuse(&outgoing, reason),
        },
        Target::Files { user } => {
            let stream = find(&user).and_then(|user| sftp::start(user).map_err(unavailable));
            join(incoming, outgoing, stream, Some(0)).await;
        }
        Target::Tcp(host) => {
            let stream = connect(&host.name, host.port).await.map_err(unavailable);
            join(incoming, outgoing, stream, None).await;
        }
        Target::Socket { user, path } => {
            let stream = match find(&user) {
                Ok(user) => connect_to_socket(path, user).await.map_err(unavailable),
                Err(reason) => Err(reason),
            };
            join(incoming, outgoing, stream, None).await;
        }
        Target::Service(port) => {
            let stream = relay::connect(port).await.map_err(unavailable);
            join(incoming, outgoing, stream, None).await;
        }
        Target::Listeners => match mounts {
            Some(mounts) => listeners::report(mounts.kernel_fs(), incoming, outgoing).await,
            None => refuse(&outgoing, Refusal::Unavailable),
        },
        // It shows that this agent knows changes, and does nothing else.
        Target::Mount { path, is_read_only, sends_changes: _ } => match mounts {
            Some(mounts) => mounts.serve(path, is_read_only, incoming, outgoing).await,
            None => refuse(&outgoing, Refusal::Unavailable),
        },
    }
}

fn find(name: &str) -> Result<Arc<User>, Refusal> {
    User::find(name).map_err(unavailable)?.ok_or(Refusal::UnknownUser)
}

/// Returns the user and the terminal of a program.
fn prepare(
    user: &str,
    terminal: Option<&stream::Terminal>,
) -> Result<(Arc<User>, Option<Terminal>), Refusal> {
    let user = find(user)?;
    let terminal = terminal.map(|terminal| open(&user, terminal)).transpose()?;
    Ok((user, terminal))
}

fn open(user: &User, terminal: &stream::Terminal) -> Result<Terminal, Refusal> {
    Terminal::open(user, &terminal.term, terminal.window.into(), &[(Pty::IUTF8, 1)])
        .map_err(unavailable)
}

fn unavailable(_: io::Error) -> Refusal {
    Refusal::Unavailable
}

async fn run(described: Described, incoming: link::Incoming, outgoing: link::Outgoing) {
    // Fails if the host is gone, as everything below then does.
    let _ = outgoing.opened();
    let (mut incoming, outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
    let (started, stdin) = described.start(Vec::new(), &mut incoming).await;
    programs::run(started, stdin, incoming, outgoing).await;
}

/// Joins the host's stream and one of the guest, or refuses the former if there is none.
async fn join(
    incoming: link::Incoming,
    outgoing: link::Outgoing,
    stream: Result<impl AsyncRead + AsyncWrite, Refusal>,
    exit_status: Option<u32>,
) {
    match stream {
        Ok(stream) => {
            let _ = outgoing.opened();
            castra_flow::relay(incoming.into(), outgoing.into(), stream, exit_status).await;
        }
        Err(reason) => refuse(&outgoing, reason),
    }
}

fn refuse(outgoing: &link::Outgoing, reason: Refusal) {
    // Fails if the host is gone.
    let _ = outgoing.refuse(reason);
}
