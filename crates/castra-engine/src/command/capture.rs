//! Captures a helper's output up to a bound, without waiting for a process that keeps the pipe
//! open.

use std::io::Read;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Maximum of one read, in bytes: the size of a pipe.
const CHUNK_BYTES: usize = 64 << 10;

/// Part of a stream that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// The first bytes, this many.
    First(usize),
    /// The last bytes, this many.
    Last(usize),
}

#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    is_too_much: bool,
}

/// A pipe that a thread reads to its end.
#[derive(Debug)]
pub(super) struct Capture {
    kept: Arc<Mutex<Kept>>,
    ended: Receiver<()>,
}

impl Capture {
    /// Starts reading.
    pub(super) fn start(pipe: Option<impl Read + Send + 'static>, keep: Keep) -> Self {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let (reading, ended) = mpsc::channel();
        let shared = Arc::clone(&kept);
        thread::spawn(move || {
            // Dropped at the end, which notifies the other side.
            let _reading: mpsc::Sender<()> = reading;
            let mut chunk = vec![0; CHUNK_BYTES];
            let Some(mut pipe) = pipe else { return };
            // A broken pipe has no more data.
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                shared.lock().unwrap_or_else(PoisonError::into_inner).take(&chunk[..count], keep);
            }
        });
        Self { kept, ended }
    }

    /// Returns `true` if more arrived than a [`Keep::First`] keeps.
    pub(super) fn is_too_much(&self) -> bool {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).is_too_much
    }

    /// Returns the kept bytes after the end of the stream or after this time, whichever is first. A
    /// thread that still reads is left behind: it holds no more than the bound, and ends with its
    /// pipe.
    pub(super) fn finish(self, patience: Duration) -> Vec<u8> {
        let _ = self.ended.recv_timeout(patience);
        std::mem::take(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner).bytes)
    }
}

impl Kept {
    fn take(&mut self, chunk: &[u8], keep: Keep) {
        match keep {
            Keep::First(most) => {
                let room = most.saturating_sub(self.bytes.len());
                self.is_too_much |= chunk.len() > room;
                self.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
            }
            Keep::Last(most) => {
                self.bytes.extend_from_slice(chunk);
                let surplus = self.bytes.len().saturating_sub(most);
                self.bytes.drain(..surplus);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_or_the_end_is_kept() {
        let text = || Some(&b"0123456789"[..]);
        for (keep, expected, too_much) in [
            (Keep::First(4), &b"0123"[..], true),
            (Keep::First(10), b"0123456789", false),
            (Keep::Last(4), b"6789", false),
        ] {
            let capture = Capture::start(text(), keep);
            let _ = capture.ended.recv();
            assert_eq!(capture.is_too_much(), too_much, "{keep:?}");
            assert_eq!(capture.finish(Duration::MAX), expected, "{keep:?}");
        }
    }
}
