//! `castra ssh-proxy`: relays stdin and stdout to a VM's SSH server, as OpenSSH's `ProxyCommand`,
//! over a stream port or else over the guest's network.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::thread;

use castra_engine::error::Result;
use castra_engine::guest::ssh;
use castra_engine::vm;

use super::args::SshProxyArgs;
use super::context::CommandContext;
use super::error::CliError;

/// Size of a copy buffer, the capacity of a pipe.
const BUFFER_BYTES: usize = 64 * 1024;

/// Connects stdin and stdout to the SSH server of a running VM, at its current port, for ssh's
/// `ProxyCommand`.
pub(super) fn run(proxy: &SshProxyArgs, context: &CommandContext) -> Result<ExitCode> {
    if context.printer.is_json() {
        return Err(CliError::NoJson { what: "a connection" }.into());
    }
    if let Some(directory) = &proxy.directory {
        let failed = |source| CliError::File { action: "enter", path: directory.clone(), source };
        std::env::set_current_dir(directory).map_err(failed)?;
    }
    let project = context.project()?;
    let record = vm::running_vm(proxy.vm.as_deref(), project)?;
    let target = vm::ssh_target(&record, "root", project.layout)?;
    let [stdin, stdout] = streams().map_err(CliError::Streams)?;
    if ssh::proxy(&target, stdin, stdout)? {
        return Ok(ExitCode::SUCCESS);
    }
    let address = target.address;
    let unreachable = |source| CliError::NoSsh { vm: record.name.clone(), address, source };
    let server = TcpStream::connect(address).map_err(unreachable)?;
    relay(server).map_err(CliError::Streams)?;
    Ok(ExitCode::SUCCESS)
}

/// Copies both ways until the server ends its side. An ssh that is gone ends the relay without an
/// error.
fn relay(server: TcpStream) -> io::Result<()> {
    server.set_nodelay(true)?;
    let [stdin, stdout] = streams()?.map(File::from);
    let upstream = server.try_clone()?;
    // The thread ends with the process: no more input matters once the server is gone.
    thread::spawn(move || {
        let _ = copy(&stdin, &upstream);
        upstream.shutdown(Shutdown::Write)
    });
    match copy(&server, &stdout) {
        Err(error) if !is_end(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Returns stdin and stdout, without the buffers of the standard library, which delay interactive
/// bytes.
fn streams() -> io::Result<[OwnedFd; 2]> {
    Ok([io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?])
}

/// Copies until the end, each piece as soon as it arrives. `std::io::copy` splices from a pipe to a
/// socket, and a kernel that expects more data delays the last piece.
fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
