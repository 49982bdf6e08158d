//! Diagnosis of a silent SSH connection: the guest boots, hangs or is slow, or its network is down.
//! Only its agent can distinguish these.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep};

use super::Target;
use crate::cancel::Cancel;
use crate::guest::{AgentSocket, NetworkDown, NetworkFault, NetworkReport};

/// Silence after which the agent is asked, and interval of the questions.
const PATIENCE: Duration = Duration::from_secs(1);

/// Silence after which the network counts as down even though the agent reports it as complete. The
/// server's banner needs no more than the agent's answers, which come from the same thread.
const LONG_SILENCE: Duration = Duration::from_secs(10);

/// Minimum number of the agent's answers within that time: fewer come from a guest that is merely
/// slow.
const ENOUGH_ANSWERS: u32 = 3;

/// Flag that is set once anything has come back on a stream.
#[derive(Debug, Clone, Default)]
pub(super) struct Ear(Arc<AtomicBool>);

/// A stream whose [`Ear`] notices when data arrives.
pub(super) struct Heard<S> {
    stream: S,
    ear: Ear,
}

impl Ear {
    pub(super) fn at<S>(&self, stream: S) -> Heard<S> {
        Heard { stream, ear: self.clone() }
    }

    pub(super) fn has_heard(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Waits until the agent has reported the guest's network as down, or has answered repeatedly while
/// SSH stays silent. Keeps waiting while the agent is silent, too, or the guest still boots.
pub(super) async fn until_network_is_down(target: &Target, ear: &Ear) -> NetworkDown {
    let Some(agent) = &target.agent else { return std::future::pending().await };
    let (started, mut answers) = (Instant::now(), 0);
    loop {
        sleep(PATIENCE).await;
        if ear.has_heard() {
            return std::future::pending().await;
        }
        let report = ask(agent).await;
        let down = |fault| NetworkDown { vm: agent.vm.clone(), fault };
        match report {
            _ if ear.has_heard() => {}
            NetworkReport::Faulty(fault) => return down(fault),
            NetworkReport::Complete => answers += 1,
            NetworkReport::Unknown => answers = 0,
        }
        // An agent that answers while SSH is silent: packets are lost, though the network looks
        // complete from inside.
        if answers >= ENOUGH_ANSWERS && started.elapsed() >= LONG_SILENCE && !ear.has_heard() {
            return down(NetworkFault::Silent);
        }
    }
}

/// Asks on a thread, which ends with this call: the next command must find the control port free.
async fn ask(agent: &AgentSocket) -> NetworkReport {
    struct CancelOnDrop(Cancel);
    impl Drop for CancelOnDrop {
        fn drop(&mut self) {
            self.0.cancel();
        }
    }
    let guard = CancelOnDrop(Cancel::new());
    let (path, cancel) = (agent.path.clone(), guard.0.clone());
    let asked = tokio::task::spawn_blocking(move || NetworkReport::ask(&path, &cancel)).await;
    asked.ok().and_then(Result::ok).unwrap_or(NetworkReport::Unknown)
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        if buffer.filled().len() > before {
            self.ear.0.store(true, Ordering::Relaxed);
        }
        Poll::Ready(read)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
