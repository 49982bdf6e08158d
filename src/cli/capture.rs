//! Capture of a command's output in a VM, for `--json`. The VM decides how long the output is, so
//! castra keeps no more of it than it prints.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use castra_engine::guest::ssh::{GuestExit, Stdio};
use schemars::JsonSchema;
use serde::Serialize;

/// Most bytes of each stream that are printed. Longer output is read from the streams themselves,
/// without `--json`.
const MOST_BYTES: usize = 16 << 20;
/// Time for the last output to arrive once the command has ended.
const LAST_LIMIT: Duration = Duration::from_secs(5);

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
    stdout: Captive,
    stderr: Captive,
}

/// Capture of one stream: a thread keeps the beginning and drops the rest.
struct Captive {
    writer: PipeWriter,
    kept: Arc<Mutex<Kept>>,
    ended: Receiver<()>,
}

/// The beginning of a stream.
#[derive(Debug, Clone, Default)]
struct Kept {
    bytes: Vec<u8>,
    /// Set if the stream had more.
    is_cut: bool,
}

impl Captive {
    fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let kept = Arc::<Mutex<Kept>>::default();
        let (end, ended) = channel();
        let keeper = Arc::clone(&kept);
        thread::Builder::new()
            .name("castra-capture".to_owned())
            .spawn(move || keep(reader, &keeper, &end))?;
        Ok(Self { writer, kept, ended })
    }

    fn finish(self) -> Kept {
        let Self { writer, kept, ended } = self;
        // The thread sees the end of the stream only after the last writer is closed, this one
        // included.
        drop(writer);
        // A command that ran into its time limit may leave a thread that still has the other end.
        let _ = ended.recv_timeout(LAST_LIMIT);
        kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn keep(mut reader: PipeReader, kept: &Mutex<Kept>, end: &Sender<()>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(count) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let room = count.min(MOST_BYTES - kept.bytes.len());
                kept.bytes.extend_from_slice(&buffer[..room]);
                kept.is_cut |= room < count;
            }
        }
    }
    // After the limit there is no receiver left.
    let _ = end.send(());
}

impl Capture {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { started: Instant::now(), stdout: Captive::new()?, stderr: Captive::new()? })
    }

    /// Returns the streams to run the command with, and `stdin`.
    pub(super) fn stdio(&self, stdin: Option<OwnedFd>) -> io::Result<Stdio> {
        let (stdout, stderr) = (self.stdout.writer.try_clone()?, self.stderr.writer.try_clone()?);
        Ok(Stdio { stdin, stdout: stdout.into(), stderr: stderr.into() })
    }

    /// Returns what was captured so far. `exit` is `None` for a command that ran into its time
    /// limit, whose exit code is then `timed_out`.
    pub(super) fn finish(self, exit: Option<&GuestExit>, timed_out: u8) -> Captured {
        let duration_ms = millis(self.started.elapsed());
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        let truncated = stdout.is_cut || stderr.is_cut;
        let (stdout, stderr) = (stdout.bytes, stderr.bytes);
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
    use std::io::Write;

    use super::*;

    #[test]
    fn text_comes_as_text_and_bytes_exactly() {
        let mut capture = Capture::new().expect("two pipes");
        capture.stdout.writer.write_all("grün\n".as_bytes()).expect("written");
        capture.stderr.writer.write_all(b"\xff\x00").expect("written");
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
        let captured = Capture::new().expect("two pipes").finish(None, 124);
        assert_eq!((captured.exit_code, captured.timed_out), (124, true));
    }

    #[test]
    fn a_flood_is_cut_where_it_is_kept() {
        let mut capture = Capture::new().expect("two pipes");
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..2 * MOST_BYTES / piece.len() {
            capture.stderr.writer.write_all(&piece).expect("written");
        }
        assert_eq!(capture.stderr.kept.lock().expect("kept").bytes.len(), MOST_BYTES);
        let captured = capture.finish(None, 124);
        assert_eq!(
            (captured.stderr.len(), captured.stdout.len(), captured.truncated),
            (MOST_BYTES, 0, true)
        );
    }

    /// A writer that survives the command, such as a blocked thread, delays the end only up to the
    /// limit.
    #[test]
    fn an_end_is_not_waited_for_without_limit() {
        let mut capture = Capture::new().expect("two pipes");
        capture.stdout.writer.write_all(b"said").expect("written");
        let other = capture.stdio(None).expect("streams");
        let captured = capture.finish(None, 124);
        assert_eq!(captured.stdout, "said");
        drop(other);
    }
}
