//! SFTP (version 3 with OpenSSH's extensions), on a thread that has the user's rights on files.
//!
//! A thread suffices, because the kernel keeps credentials per thread: nothing has to be executed,
//! and memory holds no second copy of the agent. The thread has its own working directory and
//! umask, too (`unshare`), so relative paths start at the user's home.

mod listing;
mod server;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use bytes::Bytes;
use castra_sftp::{Code, Reply, Request, read_packet, write_packet};
use rustix::fs::Mode;
use rustix::thread::UnshareFlags;
use tokio::io::{AsyncWriteExt as _, BufReader, BufWriter};

use self::server::Server;
use crate::users::User;

/// Size of the stream's buffers, so that many small packets cost few system calls.
const BUFFER_BYTES: usize = 64 * 1024;

/// Starts a server for a user, and returns the client's end of its stream.
///
/// # Errors
/// The thread or the socket cannot be created.
pub(crate) fn start(user: Arc<User>) -> io::Result<tokio::net::UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    std::thread::Builder::new().name("castra-sftp".into()).spawn(move || {
        // On failure the stream is dropped, and the client sees the channel end.
        let _ = serve(&user, theirs);
    })?;
    tokio::net::UnixStream::from_std(ours)
}

fn serve(user: &User, stream: UnixStream) -> io::Result<()> {
    own_working_directory()?;
    user.act_in_thread()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if rustix::process::chdir(&user.home).is_err() {
        rustix::process::chdir("/")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async { answer(tokio::net::UnixStream::from_std(stream)?).await })
}

/// Separates the calling thread's working directory and umask from the process's.
#[expect(
    unsafe_code,
    reason = "rustix has no safe unshare, since other flags than this one are dangerous"
)]
fn own_working_directory() -> io::Result<()> {
    // SAFETY: only descriptor tables (`UnshareFlags::FILES`) concern memory safety.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    Ok(())
}

/// Answers one request after another until the client has gone.
async fn answer(stream: tokio::net::UnixStream) -> io::Result<()> {
    let (input, output) = stream.into_split();
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    let mut output = BufWriter::with_capacity(BUFFER_BYTES, output);
    let Some(greeting) = read_packet(&mut input).await? else { return Ok(()) };
    Request::parse_init(greeting).map_err(io::Error::other)?;
    write_packet(&mut output, &Reply::version(server::EXTENSIONS)).await?;
    output.flush().await?;
    let mut server = Server::default();
    while let Some(packet) = read_packet(&mut input).await? {
        let (id, reply) = match Request::parse(packet) {
            Ok((id, request)) => (id, server.answer(request)),
            Err(Some(id)) => {
                (id, Reply::Status(Code::BAD_MESSAGE, Bytes::from_static(b"bad message")))
            }
            Err(None) => return Err(io::ErrorKind::InvalidData.into()),
        };
        write_packet(&mut output, &reply.encode(id)).await?;
        if input.buffer().is_empty() {
            output.flush().await?;
        }
    }
    Ok(())
}
