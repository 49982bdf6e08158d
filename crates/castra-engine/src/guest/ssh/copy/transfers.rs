//! Concurrent transfers of the files of one copy.

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::SshError;

/// Maximum number of files in flight. Small ones wait for answers most of the time.
const FILES: usize = 128;

/// Runner of many transfers, some at once, that reports each piece that has arrived. A failed
/// transfer does not end the others, unless the connection is lost.
pub(super) struct Transfers<'a> {
    tasks: JoinSet<Result<(), SshError>>,
    arrived: mpsc::UnboundedReceiver<u64>,
    arrival: mpsc::UnboundedSender<u64>,
    progress: &'a mut dyn FnMut(u64),
    done: Done,
}

/// Outcome of all transfers.
#[derive(Default)]
pub(super) struct Done {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) failed: Vec<SshError>,
}

impl<'a> Transfers<'a> {
    pub(super) fn new(progress: &'a mut dyn FnMut(u64)) -> Self {
        let (arrival, arrived) = mpsc::unbounded_channel();
        Self { tasks: JoinSet::new(), arrived, arrival, progress, done: Done::default() }
    }

    /// Starts a transfer; waits first if enough are in flight. `transfer` receives the sender to
    /// which it reports its pieces.
    pub(super) async fn start<F>(
        &mut self,
        transfer: impl FnOnce(mpsc::UnboundedSender<u64>) -> F,
    ) -> Result<(), SshError>
    where
        F: Future<Output = Result<(), SshError>> + Send + 'static,
    {
        self.wait_until_below(FILES).await?;
        self.tasks.spawn(transfer(self.arrival.clone()));
        Ok(())
    }

    /// Waits for all transfers.
    pub(super) async fn finish(mut self) -> Result<Done, SshError> {
        self.wait_until_below(1).await?;
        while let Ok(bytes) = self.arrived.try_recv() {
            self.report(bytes);
        }
        Ok(self.done)
    }

    async fn wait_until_below(&mut self, limit: usize) -> Result<(), SshError> {
        while self.tasks.len() >= limit {
            tokio::select! {
                // A task that panicked took its transfer with it.
                Some(done) = self.tasks.join_next() => match done.map_err(|_| SshError::Lost)? {
                    Ok(()) => self.done.files += 1,
                    Err(SshError::Lost) => return Err(SshError::Lost),
                    Err(error) => self.done.failed.push(error),
                },
                Some(bytes) = self.arrived.recv() => self.report(bytes),
            }
        }
        Ok(())
    }

    fn report(&mut self, bytes: u64) {
        self.done.bytes += bytes;
        (self.progress)(bytes);
    }
}
