//! Stdin and the end of the server.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::thread;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;

/// Time for answers to what a client asked for before it closed stdin.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// End of the server, for which its calls wait. Cheap to clone.
#[derive(Clone)]
pub(super) struct Ending(watch::Sender<bool>);

impl Ending {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Ends what waits.
    pub(super) fn begin(&self) {
        self.0.send_replace(true);
    }

    /// Waits until the server ends.
    pub(super) async fn begun(&self) {
        // This one sends, so there is one that sends.
        let _ = self.0.subscribe().wait_for(|has_begun| *has_begun).await;
    }
}

/// Returns stdin. Calls have a moment once it has ended.
///
/// tokio's own stdin would keep the runtime from ending: nothing interrupts its reads.
///
/// # Errors
/// The system has no more descriptors.
pub(super) fn stdin(ending: Ending) -> io::Result<UnixStream> {
    let (ours, mut theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut theirs);
        drop(theirs);
        thread::sleep(LAST_ANSWERS);
        ending.begin();
    });
    UnixStream::from_std(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_reaches_those_who_waited_and_those_who_come_late() {
        let ending = Ending::new();
        let other = ending.clone();
        let waiting = tokio::spawn(async move { other.begun().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        ending.begin();
        waiting.await.expect("no panic");
        ending.begun().await;
    }
}
