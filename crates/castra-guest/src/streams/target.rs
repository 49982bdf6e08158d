//! Serves one stream.

use std::sync::Arc;

use castra_flow::link::{self, Opening};
use castra_flow::{Incoming, Outgoing, relay};
use castra_wire::stream::{self, Refusal, Target};
use russh::Pty;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Gate;
use crate::connect::{connect, connect_to_socket};
use crate::programs::{self, Program, Terminal};
use crate::sftp;
use crate::users::User;

/// Serves the stream that the host requests, once the gate is open.
pub(super) async fn serve(requested: Opening, mut gate: Gate) {
    let Opening { target, incoming, outgoing } = requested;
    if gate.wait_for(|is_open| *is_open).await.is_err() {
        return;
    }
    let refused = match target {
        Target::Program { user, program, terminal } => {
            let Some(user) = find(&user) else { return refuse(&outgoing, Refusal::UnknownUser) };
            let Ok(terminal) = terminal.map(|terminal| open(&user, &terminal)).transpose() else {
                return refuse(&outgoing, Refusal::Unavailable);
            };
            return run(&user, program, terminal, incoming, outgoing).await;
        }
        Target::Files { user } => match find(&user) {
            None => Refusal::UnknownUser,
            Some(user) => match sftp::start(user) {
                Ok(stream) => return join(incoming, outgoing, stream, Some(0)).await,
                Err(_) => Refusal::Unavailable,
            },
        },
        Target::Tcp(host) => match connect(&host.name, host.port).await {
            Ok(stream) => return join(incoming, outgoing, stream, None).await,
            Err(_) => Refusal::Unavailable,
        },
        Target::Socket { user, path } => match find(&user) {
            None => Refusal::UnknownUser,
            Some(user) => match connect_to_socket(path, user).await {
                Ok(stream) => return join(incoming, outgoing, stream, None).await,
                Err(_) => Refusal::Unavailable,
            },
        },
    };
    refuse(&outgoing, refused);
}

fn find(name: &str) -> Option<Arc<User>> {
    User::find(name).map(Arc::new)
}

fn open(user: &User, terminal: &stream::Terminal) -> std::io::Result<Terminal> {
    Terminal::open(user, &terminal.term, terminal.window.into(), &[(Pty::IUTF8, 1)])
}

async fn run(
    user: &Arc<User>,
    program: stream::Program,
    terminal: Option<Terminal>,
    incoming: link::Incoming,
    outgoing: link::Outgoing,
) {
    // Fails if the host is gone, as everything below then does.
    let _ = outgoing.opened();
    let (mut incoming, outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
    let described = programs::read_header(&mut incoming).await;
    let (started, stdin) = match described {
        Ok((header, stdin)) => {
            let started = Program::of(program, header.arguments)
                .and_then(|program| programs::start(user, &program, header.environment, terminal));
            (started, stdin)
        }
        Err(not_started) => (Err(not_started), None),
    };
    programs::run(started, stdin, incoming, outgoing).await;
}

async fn join(
    incoming: link::Incoming,
    outgoing: link::Outgoing,
    stream: impl AsyncRead + AsyncWrite,
    exit_status: Option<u32>,
) {
    let _ = outgoing.opened();
    relay(incoming.into(), outgoing.into(), stream, exit_status).await;
}

fn refuse(outgoing: &link::Outgoing, reason: Refusal) {
    // Fails if the host is gone.
    let _ = outgoing.refuse(reason);
}
