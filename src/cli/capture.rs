//! What a command in a VM printed, for `--json`: its streams go to files that have no name, and come back as text.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Serialize;

use crate::guest::ssh::{GuestExit, Stdio};

/// So much of each stream is told. Who wants more takes the streams themselves, without `--json`.
const MOST_BYTES: u64 = 16 << 20;

/// How a command in a VM ended, and what it printed.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Captured {
    /// Its exit code: the command's own, 128 and its number for a signal, 124 if it was ended for its time.
    exit_code: u8,
    /// The signal that ended it, without `SIG`.
    signal: Option<String>,
    /// Whether it was ended because its time was over.
    timed_out: bool,
    /// How long it took, with the connection.
    duration_ms: u64,
    /// What it printed on stdout. Bytes that are no UTF-8 are replaced.
    stdout: String,
    /// The exact bytes, if there are such.
    stdout_base64: Option<String>,
    /// The same for stderr.
    stderr: String,
    /// The same for stderr.
    stderr_base64: Option<String>,
    /// Whether there was more than this.
    truncated: bool,
}

/// Takes a command's streams.
pub(super) struct Capture {
    started: Instant,
    stdout: File,
    stderr: File,
}

impl Capture {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { started: Instant::now(), stdout: tempfile::tempfile()?, stderr: tempfile::tempfile()? })
    }

    /// These streams, with this stdin.
    pub(super) fn stdio(&self, stdin: Option<OwnedFd>) -> io::Result<Stdio> {
        Ok(Stdio { stdin, stdout: self.stdout.try_clone()?.into(), stderr: self.stderr.try_clone()?.into() })
    }

    /// What there is by now. `exit` is nothing for a command that was ended for its time, with the exit code `timed_out`.
    pub(super) fn finish(mut self, exit: Option<&GuestExit>, timed_out: u8) -> io::Result<Captured> {
        let (stdout, more_stdout) = content(&mut self.stdout)?;
        let (stderr, more_stderr) = content(&mut self.stderr)?;
        let signal = match exit {
            Some(GuestExit::Signal(name)) => Some(name.clone()),
            _ => None,
        };
        Ok(Captured {
            exit_code: exit.map_or(timed_out, GuestExit::code),
            signal,
            timed_out: exit.is_none(),
            duration_ms: millis(self.started.elapsed()),
            stdout_base64: exact(&stdout),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr_base64: exact(&stderr),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            truncated: more_stdout || more_stderr,
        })
    }
}

/// The beginning of a file, and whether that is not all.
fn content(file: &mut File) -> io::Result<(Vec<u8>, bool)> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok((bytes, file.metadata()?.len() > MOST_BYTES))
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
        let mut capture = Capture::new().expect("two files");
        capture.stdout.write_all("grün\n".as_bytes()).expect("written");
        capture.stderr.write_all(b"\xff\x00").expect("written");
        let told = capture.finish(Some(&GuestExit::Signal("TERM".into())), 124).expect("read");
        assert_eq!((told.stdout.as_str(), told.stdout_base64), ("grün\n", None));
        assert_eq!((told.stderr.as_str(), told.stderr_base64.as_deref()), ("\u{fffd}\0", Some("/wA=")));
        assert_eq!((told.exit_code, told.signal.as_deref(), told.timed_out), (143, Some("TERM"), false));
        assert!(!told.truncated);
    }

    #[test]
    fn a_command_that_took_too_long_has_a_code_of_its_own() {
        let told = Capture::new().expect("two files").finish(None, 124).expect("read");
        assert_eq!((told.exit_code, told.timed_out), (124, true));
    }
}
