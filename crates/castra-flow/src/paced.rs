use std::io;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::Flow;

/// How long writes are held back at first, and at most: twice as long each time in a row. What is held may be a key
/// exchange, which would never end otherwise, so it must go some time; but with it go grants, one window at most, and
/// that is what a stalled connection may grow by in this time.
const HOLD: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(60);

/// The stream to hand to `russh`: reads and writes as the connection's [`Flow`] permits.
///
/// Writes never block: what the socket does not take is kept here. A peer takes only as much as its windows allow, so
/// that is what bounds it.
pub struct Paced<S> {
    stream: S,
    flow: Flow,
    kept: BytesMut,
    /// When what is held back goes after all, and how long that took to wait for.
    release: Option<(Pin<Box<Sleep>>, Duration)>,
}

impl<S> Paced<S> {
    /// Paces a stream.
    pub fn new(stream: S, flow: Flow) -> Self {
        Self { stream, flow, kept: BytesMut::new(), release: None }
    }
}

impl<S: AsyncWrite + Unpin> Paced<S> {
    /// Writes what is kept, as far as the socket takes it.
    fn poll_write_kept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.kept.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.kept))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.kept.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Whether what is held back has been held long enough.
    fn poll_release(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (sleep, held) =
            self.release.get_or_insert_with(|| (Box::pin(tokio::time::sleep(*HOLD.start())), *HOLD.start()));
        ready!(sleep.as_mut().poll(context));
        *held = (*held * 2).min(*HOLD.end());
        sleep.as_mut().reset(Instant::now() + *held);
        // Polled once more, or the new time would wake nobody.
        let _ = sleep.as_mut().poll(context);
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let permits = self.flow.poll_permits(context);
        if permits.aborted {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if permits.write {
            self.release = None;
        }
        // russh polls its reader whenever the session wakes; nothing else would write what is kept.
        let may_write = permits.write || (!self.kept.is_empty() && self.poll_release(context).is_ready());
        if may_write && let Poll::Ready(Err(error)) = self.poll_write_kept(context) {
            return Poll::Ready(Err(error));
        }
        if !permits.read {
            return Poll::Pending;
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
        let mut rest = bytes;
        if self.flow.permits().write {
            if let Poll::Ready(Err(error)) = self.poll_write_kept(context) {
                return Poll::Ready(Err(error));
            }
            while self.kept.is_empty() && !rest.is_empty() {
                match Pin::new(&mut self.stream).poll_write(context, rest) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => rest = &rest[written..],
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => break,
                }
            }
        }
        self.kept.extend_from_slice(rest);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Flushing would block the session loop; `poll_read` writes what is kept.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_kept(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
