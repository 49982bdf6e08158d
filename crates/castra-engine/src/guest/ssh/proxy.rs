//! Connections of other SSH clients to the guest's SSH server.

use std::io;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use castra_flow::{Incoming, Message};
use castra_wire::SSH_PORT;
use castra_wire::stream::{Host, Target as End};

use super::connection::Connection;
use super::exec::failure_of_feeding;
use super::stdio::{Input, Output, Written};
use super::{SshError, Target, block_on};

/// Joins streams of this process and the guest's SSH server, over a stream port, until the server
/// ends its side. Returns `false` if no port leads there; then nothing has been read.
///
/// # Errors
/// The guest stopped answering, or `stdout` failed. One without a reader is no error.
pub fn proxy(target: &Target, stdin: OwnedFd, stdout: OwnedFd) -> Result<bool, SshError> {
    let local = |source| SshError::Local { what: "start a thread", source };
    block_on(async {
        let Some(direct) = Connection::over_port(target).await else { return Ok(false) };
        let server = End::Tcp(Host { name: "127.0.0.1".to_owned(), port: SSH_PORT });
        let opened = direct.open_stream(&server, Bytes::new(), "SSH").await;
        let Ok((incoming, outgoing)) = opened else { return Ok(false) };
        let connection = Connection::Direct(direct);
        let output = Output::start(stdout).map_err(local)?;
        let input = Input::start(stdin).map_err(local)?;
        let written = tokio::select! {
            written = write_all(incoming, output) => written,
            error = failure_of_feeding(Some(input), &outgoing) => return Err(error),
            () = connection.until_silent() => return Err(SshError::Lost),
        };
        match written {
            Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
                Err(SshError::Local { what: "write to stdout", source })
            }
            _ => Ok(true),
        }
    })
}

/// Writes everything that the server sends.
async fn write_all(
    mut incoming: Incoming,
    (output, mut written): (Output, Written),
) -> io::Result<()> {
    while let Some(message) = incoming.next().await {
        let is_over = match message {
            Message::Data(data) => !output.put(data),
            Message::EndOfData | Message::Closed => true,
            _ => false,
        };
        if is_over {
            break;
        }
    }
    drop(output);
    written.end().await
}
