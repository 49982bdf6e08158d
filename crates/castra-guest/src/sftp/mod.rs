//! SFTP (version 3 with OpenSSH's extensions), on a thread that has the user's rights on files.
//!
//! A thread suffices, because the kernel keeps credentials per thread: nothing has to be executed,
//! and memory holds no second copy of the agent. The thread has its own working directory and
//! umask, too (`unshare`), so relative paths start at the user's home.

mod listing;
mod server;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use castra_sftp::{Code, Reply, Request, read_packet, write_packet};
use rustix::fs::Mode;
use rustix::thread::UnshareFlags;
use tokio::io::{AsyncWriteExt as _, BufReader, BufWriter, DuplexStream};

use self::server::Server;
use crate::users::User;

/// Size of the thread's buffers, so that many small packets cost few wake-ups.
const BUFFER_BYTES: usize = 64 * 1024;
/// Bytes that may be on their way to the thread, and from it.
const STREAM_BYTES: usize = 4 * BUFFER_BYTES;

/// Starts a server for a user, and returns the client's end of its stream.
///
/// # Errors
/// The thread cannot be created.
pub(crate) fn start(user: Arc<User>) -> io::Result<DuplexStream> {
    let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
    std::thread::Builder::new().name("castra-sftp".into()).spawn(move || {
        // On failure the stream is dropped, and the client sees the channel end.
        let _ = serve(&user, theirs);
    })?;
    Ok(ours)
}

fn serve(user: &User, stream: DuplexStream) -> io::Result<()> {
    own_working_directory()?;
    user.act_in_thread()?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if rustix::process::chdir(&user.home).is_err() {
        rustix::process::chdir("/")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(answer(stream))
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
async fn answer(stream: DuplexStream) -> io::Result<()> {
    let (input, output) = tokio::io::split(stream);
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
