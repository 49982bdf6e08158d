//! Capture of a command's output in a VM, for `--json`. The VM decides how long the output is, so
//! castra keeps no more of it than it prints.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use castra_engine::Kept;
use castra_engine::guest::ssh::{GuestExit, Stream};
use schemars::JsonSchema;
use serde::Serialize;

/// Most bytes of each stream that are printed. Longer output is read from the streams themselves,
/// without `--json`.
const MOST_BYTES: usize = 16 << 20;

/// Outcome and output of a command in a VM.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Captured {
    /// Exit code: the command's own, 128 plus the number of a signal, or 124 after the time limit.
    exit_code: u8,
    /// Signal that ended the command, without `SIG`.
    signal: Option<String>,
    /// True if the command was ended by its time limit.
    timed_out: bool,
    /// Time that the command took, the connection included.
    duration_ms: u64,
    /// Output on stdout. Bytes that are not UTF-8 are replaced.
    stdout: String,
    /// Exact bytes of stdout, if they are not UTF-8.
    stdout_base64: Option<String>,
    /// Output on stderr. Bytes that are not UTF-8 are replaced.
    stderr: String,
    /// Exact bytes of stderr, if they are not UTF-8.
    stderr_base64: Option<String>,
    /// True if one of the streams had more than was kept.
    truncated: bool,
}

/// Capture of a command's stdout and stderr.
pub(super) struct Capture {
    started: Instant,
    kept: Kept,
}

impl Capture {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), kept: Kept::up_to(MOST_BYTES) }
    }

    /// Keeps bytes of a stream, and drops what is beyond the limit.
    pub(super) fn take(&mut self, stream: Stream, bytes: &[u8]) {
        self.kept.take(stream, bytes);
    }

    /// Returns what was captured so far. `exit` is `None` for a command that ran into its time
    /// limit, whose exit code is then `timed_out`.
    pub(super) fn finish(self, exit: Option<&GuestExit>, timed_out: u8) -> Captured {
        let duration_ms = millis(self.started.elapsed());
        let Kept { stdout, stderr, truncated, .. } = self.kept;
        let signal = match exit {
            Some(GuestExit::Signal(name)) => Some(name.clone()),
            _ => None,
        };
        Captured {
            exit_code: exit.map_or(timed_out, GuestExit::code),
            signal,
            timed_out: exit.is_none(),
            duration_ms,
            stdout_base64: exact(&stdout),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr_base64: exact(&stderr),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            truncated,
        }
    }
}

fn exact(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).is_err().then(|| STANDARD.encode(bytes))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_as_text_and_bytes_exactly() {
        let mut capture = Capture::new();
        capture.take(Stream::Stdout, "grün\n".as_bytes());
        capture.take(Stream::Stderr, b"\xff\x00");
        let captured = capture.finish(Some(&GuestExit::Signal("TERM".into())), 124);
        assert_eq!((captured.stdout.as_str(), captured.stdout_base64), ("grün\n", None));
        assert_eq!(
            (captured.stderr.as_str(), captured.stderr_base64.as_deref()),
            ("\u{fffd}\0", Some("/wA="))
        );
        assert_eq!(
            (captured.exit_code, captured.signal.as_deref(), captured.timed_out),
            (143, Some("TERM"), false)
        );
        assert!(!captured.truncated);
    }

    #[test]
    fn a_command_that_took_too_long_has_a_code_of_its_own() {
        let captured = Capture::new().finish(None, 124);
        assert_eq!((captured.exit_code, captured.timed_out), (124, true));
    }

    #[test]
    fn a_flood_is_cut_where_it_is_kept() {
        let mut capture = Capture::new();
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..2 * MOST_BYTES / piece.len() {
            capture.take(Stream::Stderr, &piece);
        }
        let captured = capture.finish(None, 124);
        assert_eq!(
            (captured.stderr.len(), captured.stdout.len(), captured.truncated),
            (MOST_BYTES, 0, true)
        );
    }
}
