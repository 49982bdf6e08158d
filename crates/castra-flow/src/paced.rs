use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::Flow;
use crate::flow::Reading;

/// Pause between two reads from a peer that may only trickle. Each grant is two bytes and their
/// overhead, so a megabyte takes hours.
const TRICKLE_PAUSE: Duration = Duration::from_millis(20);

/// Stream for `russh` that reads only as fast as the connection's [`Flow`] permits.
///
/// Writes never block: what the socket does not take is buffered here, and the flow makes senders
/// wait.
pub struct Paced<S> {
    stream: S,
    flow: Flow,
    kept: BytesMut,
    pause: Pin<Box<Sleep>>,
}

impl<S> Paced<S> {
    /// Paces a stream. Needs a tokio runtime with time.
    pub fn new(stream: S, flow: Flow) -> Self {
        Self {
            stream,
            flow,
            kept: BytesMut::new(),
            pause: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }
}

impl<S> Drop for Paced<S> {
    fn drop(&mut self) {
        // Senders that wait for room learn from russh that the connection is gone.
        self.flow.keeps(0);
    }
}

impl<S: AsyncWrite + Unpin> Paced<S> {
    /// Writes buffered bytes, as far as the socket takes them.
    fn poll_write_kept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.kept))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.kept.advance(written);
            self.flow.keeps(self.kept.len());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // russh polls its reader whenever the session wakes; nothing else would write the
        // buffered bytes.
        if let Poll::Ready(Err(error)) = self.poll_write_kept(context) {
            return Poll::Ready(Err(error));
        }
        match self.flow.poll_reading(context) {
            Reading::Freely => {}
            Reading::Slowly => {
                ready!(self.pause.as_mut().poll(context));
                self.pause.as_mut().reset(Instant::now() + TRICKLE_PAUSE);
            }
            Reading::Stopped => return Poll::Pending,
            Reading::Aborted => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Err(error)) = self.poll_write_kept(context) {
            return Poll::Ready(Err(error));
        }
        let mut rest = bytes;
        while self.kept.is_empty() && !rest.is_empty() {
            match Pin::new(&mut self.stream).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => rest = &rest[written..],
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        self.kept.extend_from_slice(rest);
        self.flow.keeps(self.kept.len());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Flushing would block the session loop; `poll_read` writes the buffered bytes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_kept(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
