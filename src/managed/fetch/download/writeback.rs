//! Bytes on their way to the disk while more of them arrive, so that little is left to wait for at the end.

use std::fs::File;
use std::io;
use std::thread::{self, JoinHandle};

/// How much comes before the disk is asked to write it; large enough that the disk works in long pieces.
const PUSH_BYTES: u64 = 16 << 20;

/// Writes a growing file back, on a thread of its own, one push at a time.
#[derive(Default)]
pub(super) struct Writeback {
    pushed: u64,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl Writeback {
    /// The file is so long now.
    ///
    /// # Errors
    /// Those of an earlier push. The kernel tells of each failure once, so none may be passed over.
    pub(super) fn grown(&mut self, file: &File, length: u64) -> io::Result<()> {
        let is_busy = self.running.as_ref().is_some_and(|push| !push.is_finished());
        if is_busy || length < self.pushed.saturating_add(PUSH_BYTES) {
            return Ok(());
        }
        self.settle()?;
        let file = file.try_clone()?;
        self.pushed = length;
        self.running = Some(thread::spawn(move || file.sync_data()));
        Ok(())
    }

    /// Waits for the push that is under way.
    ///
    /// # Errors
    /// As for [`Self::grown`].
    pub(super) fn settle(&mut self) -> io::Result<()> {
        match self.running.take().map(JoinHandle::join) {
            Some(Ok(pushed)) => pushed,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }

    /// The file is empty again.
    ///
    /// # Errors
    /// As for [`Self::grown`].
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.pushed = 0;
        self.settle()
    }
}
