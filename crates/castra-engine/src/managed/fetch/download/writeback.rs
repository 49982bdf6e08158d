//! Early writeback of a download, so that little is left to sync at the end.

use std::fs::File;
use std::io;
use std::thread::{self, JoinHandle};

/// Bytes that arrive before the disk is asked to write them, enough that the disk works in long
/// pieces.
const PUSH_BYTES: u64 = 16 << 20;

/// Writeback of a growing file on its own thread, one push at a time.
#[derive(Default)]
pub(super) struct Writeback {
    pushed: u64,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl Writeback {
    /// Starts a push if the file has grown enough; `length` is its current length.
    ///
    /// # Errors
    /// Returns errors of an earlier push. The kernel reports each failure once, so none may be
    /// ignored.
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

    /// Waits for the push in progress.
    ///
    /// # Errors
    /// Returns errors as [`Self::grown`] does.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        match self.running.take().map(JoinHandle::join) {
            Some(Ok(pushed)) => pushed,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }

    /// Starts over after the file was emptied.
    ///
    /// # Errors
    /// Returns errors as [`Self::grown`] does.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.pushed = 0;
        self.settle()
    }
}
