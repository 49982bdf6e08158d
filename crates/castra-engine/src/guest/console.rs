//! Connects the user's terminal to a guest's serial console.
//!
//! The guest never waits for a reader: its output is read at once and buffered for a slow stdout,
//! up to a limit; past it the oldest bytes are dropped, and their number is reported. (The
//! console's log has everything.) One thread waits for all streams at once, and a second one
//! writes, since writing to a stopped terminal blocks.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use super::ssh::Raw;

/// Ctrl-], as in telnet: no shell or editor needs it.
const ESCAPE: u8 = 0x1d;
/// Bytes per read.
const CHUNK_BYTES: usize = 16 * 1024;
/// Maximum of output buffered for a stdout that does not take it.
const MAX_KEPT_BYTES: usize = 1 << 20;
/// Maximum of input buffered for a guest that does not read: past it, stdin is not read.
const MAX_AHEAD_BYTES: usize = 4 * 1024;
/// Time for stdout to take the rest once the user has left.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// Reason why a session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleEnd {
    /// The user has left, with Ctrl-].
    Left,
    /// Stdin, which is no terminal, has ended, and the guest was silent since.
    InputEnded,
    /// QEMU has ended.
    GuestGone,
    /// Stdout has no reader any more.
    OutputClosed,
    /// A signal with this number arrived.
    Signal(i32),
}

/// Outcome of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsoleOutcome {
    /// Reason for its end.
    pub end: ConsoleEnd,
    /// Bytes of the guest's output that were dropped because stdout was too slow.
    pub dropped_bytes: u64,
}

/// Joins stdin and stdout with a console until one of them ends. A terminal at stdin passes on
/// every key except Ctrl-], which ends the session; its mode is restored when this returns, panics
/// or is ended by a signal. `linger` is how long the guest must be silent after the end of a stdin
/// that is no terminal.
///
/// # Errors
/// The terminal or a stream failed.
pub fn converse(
    console: UnixStream,
    stdin: OwnedFd,
    stdout: OwnedFd,
    linger: Duration,
) -> io::Result<ConsoleOutcome> {
    let signals = Signals::catch()?;
    let raw = Raw::enter(&stdin)?;
    console.set_nonblocking(true)?;
    let mut output = Output::start(stdout)?;
    let has_keys = raw.is_some();
    let conversation = Conversation {
        console,
        stdin: Some(stdin),
        has_keys,
        linger,
        ahead: Vec::new(),
        signals: &signals,
    };
    let end = conversation.run(&output)?;
    let dropped_bytes = output.end(end, &signals)?;
    drop(raw);
    Ok(ConsoleOutcome { end, dropped_bytes })
}

struct Conversation<'a> {
    console: UnixStream,
    /// `None` once stdin has ended.
    stdin: Option<OwnedFd>,
    has_keys: bool,
    linger: Duration,
    /// Input that the guest has not taken yet.
    ahead: Vec<u8>,
    signals: &'a Signals,
}

/// Streams that are ready.
#[derive(Default)]
struct Ready {
    console: bool,
    stdin: bool,
    output_closed: bool,
    silent: bool,
}

impl Conversation<'_> {
    fn run(mut self, output: &Output) -> io::Result<ConsoleEnd> {
        loop {
            let ready = self.wait(output)?;
            if let Some(signal) = self.signals.caught() {
                return Ok(ConsoleEnd::Signal(signal));
            }
            if ready.output_closed {
                return Ok(ConsoleEnd::OutputClosed);
            }
            if ready.silent {
                return Ok(ConsoleEnd::InputEnded);
            }
            if ready.stdin && self.read_stdin()? {
                return Ok(ConsoleEnd::Left);
            }
            // The guest's last output comes first.
            if ready.console && !self.read_console(output)? || !self.write_console()? {
                return Ok(ConsoleEnd::GuestGone);
            }
        }
    }

    fn wait(&self, output: &Output) -> io::Result<Ready> {
        let wanted = match self.ahead.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        };
        let stdin = self.stdin.as_ref().filter(|_| self.ahead.len() < MAX_AHEAD_BYTES);
        let mut fds = vec![
            PollFd::new(&self.console, wanted),
            PollFd::new(&output.ended, PollFlags::IN),
            PollFd::new(&self.signals.pipe, PollFlags::IN),
        ];
        fds.extend(stdin.map(|stdin| PollFd::new(stdin, PollFlags::IN)));
        let linger = timespec(self.linger);
        let limit = (self.stdin.is_none() && self.ahead.is_empty()).then_some(&linger);
        let count = match poll(&mut fds, limit) {
            Err(Errno::INTR) => return Ok(Ready::default()),
            other => other?,
        };
        let is_ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(Ready {
            console: is_ready(0),
            output_closed: is_ready(1),
            stdin: is_ready(3),
            silent: count == 0,
        })
    }

    /// Reads from stdin. Returns `true` if the user leaves.
    fn read_stdin(&mut self) -> io::Result<bool> {
        let Some(stdin) = &self.stdin else { return Ok(false) };
        let mut chunk = [0; MAX_AHEAD_BYTES];
        let read = match rustix::io::read(stdin, &mut chunk) {
            Err(Errno::INTR | Errno::AGAIN) => return Ok(false),
            // A terminal that is gone.
            Err(Errno::IO) => 0,
            other => other?,
        };
        let typed = &chunk[..read];
        if read == 0 {
            self.stdin = None;
            return Ok(self.has_keys);
        }
        let escape = typed.iter().position(|byte| self.has_keys && *byte == ESCAPE);
        self.ahead.extend_from_slice(&typed[..escape.unwrap_or(read)]);
        if escape.is_some() {
            self.write_console()?;
        }
        Ok(escape.is_some())
    }

    /// Passes on the guest's output; returns `false` once QEMU has closed the console.
    fn read_console(&mut self, output: &Output) -> io::Result<bool> {
        let mut chunk = [0; CHUNK_BYTES];
        match self.console.read(&mut chunk) {
            Ok(0) => Ok(false),
            Ok(read) => {
                output.add(&chunk[..read]);
                Ok(true)
            }
            Err(error) => is_only_early(error),
        }
    }

    /// Writes as much as the guest takes; returns `false` once QEMU has closed the console.
    fn write_console(&mut self) -> io::Result<bool> {
        while !self.ahead.is_empty() {
            match self.console.write(&self.ahead) {
                Ok(written) => drop(self.ahead.drain(..written)),
                Err(error) => return is_only_early(error),
            }
        }
        Ok(true)
    }
}

/// Returns `true` if the operation is to be tried again; `false` if the other side is gone.
fn is_only_early(error: io::Error) -> io::Result<bool> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(true),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(false),
        _ => Err(error),
    }
}

/// Buffered output, and the thread that writes it.
struct Output {
    shared: Arc<Shared>,
    /// Readable once the thread has ended.
    ended: UnixStream,
}

#[derive(Default)]
struct Shared {
    kept: Mutex<Kept>,
    changed: Condvar,
}

#[derive(Default)]
struct Kept {
    bytes: VecDeque<u8>,
    dropped_bytes: u64,
    is_last: bool,
}

impl Shared {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing that could panic happens under the lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Output {
    fn start(stdout: OwnedFd) -> io::Result<Self> {
        let (ended, alive) = UnixStream::pair()?;
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        thread::Builder::new().name("console".into()).spawn(move || {
            write_all_there_is(&for_thread, stdout.as_fd());
            drop(alive);
        })?;
        Ok(Self { shared, ended })
    }

    /// Buffers output, dropping the oldest past the limit. Never waits.
    fn add(&self, bytes: &[u8]) {
        let mut kept = self.shared.kept();
        kept.bytes.extend(bytes);
        let over = kept.bytes.len().saturating_sub(MAX_KEPT_BYTES);
        kept.bytes.drain(..over);
        kept.dropped_bytes += over as u64;
        drop(kept);
        self.shared.changed.notify_one();
    }

    /// Waits until everything is written. If the user has left, waits only a moment for a stopped
    /// terminal; otherwise a signal ends the wait.
    fn end(&mut self, end: ConsoleEnd, signals: &Signals) -> io::Result<u64> {
        self.shared.kept().is_last = true;
        self.shared.changed.notify_one();
        let limit = timespec(LEAVE_LIMIT);
        let limit = matches!(end, ConsoleEnd::Left | ConsoleEnd::Signal(_)).then_some(&limit);
        let signalled = if limit.is_some() { None } else { Some(&signals.pipe) };
        let mut fds = vec![PollFd::new(&self.ended, PollFlags::IN)];
        fds.extend(signalled.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        loop {
            match poll(&mut fds, limit) {
                Err(Errno::INTR) => {}
                other => {
                    other?;
                    break;
                }
            };
        }
        Ok(self.shared.kept().dropped_bytes)
    }
}

/// Writes until the last byte is written or stdout is closed.
fn write_all_there_is(shared: &Shared, stdout: BorrowedFd<'_>) {
    loop {
        let mut kept = shared.kept();
        while kept.bytes.is_empty() && !kept.is_last {
            kept = shared.changed.wait(kept).unwrap_or_else(PoisonError::into_inner);
        }
        if kept.bytes.is_empty() {
            return;
        }
        let count = kept.bytes.len().min(CHUNK_BYTES);
        let chunk: Vec<u8> = kept.bytes.drain(..count).collect();
        drop(kept);
        if !write_whole(stdout, &chunk) {
            return;
        }
    }
}

fn write_whole(stdout: BorrowedFd<'_>, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match rustix::io::write(stdout, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Another process that shares the terminal has made it non-blocking.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&stdout, PollFlags::OUT)], None);
            }
            Err(_) => return false,
        }
    }
    true
}

/// Signals that would end this process while its terminal is raw.
struct Signals {
    /// Readable once a signal has arrived.
    pipe: UnixStream,
    caught: Arc<AtomicUsize>,
    ids: Vec<SigId>,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let (pipe, writer) = UnixStream::pair()?;
        let mut signals = Self { pipe, caught: Arc::default(), ids: Vec::new() };
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            let value = usize::try_from(signal).unwrap_or_default();
            // In this order: the number must be there when the pipe wakes its reader.
            let caught = Arc::clone(&signals.caught);
            signals.ids.push(signal_hook::flag::register_usize(signal, caught, value)?);
            signals.ids.push(signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?);
        }
        Ok(signals)
    }

    fn caught(&self) -> Option<i32> {
        i32::try_from(self.caught.load(Ordering::Relaxed)).ok().filter(|signal| *signal != 0)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

fn timespec(limit: Duration) -> Timespec {
    Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Shutdown;

    const LINGER: Duration = Duration::from_millis(1);

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().expect("a pair")
    }

    #[test]
    fn what_is_typed_goes_in_and_what_is_said_comes_out() {
        let ((console, mut guest), (stdin, mut keys), (stdout, mut screen)) =
            (pair(), pair(), pair());
        // Not a terminal, so Ctrl-] is an ordinary byte.
        keys.write_all(b"ls\x1d\n").expect("typed");
        let talk = thread::spawn(move || converse(console, stdin.into(), stdout.into(), LINGER));
        let mut heard = [0; 4];
        guest.read_exact(&mut heard).expect("heard");
        assert_eq!(&heard, b"ls\x1d\n");
        guest.write_all(b"file\r\n").expect("said");
        drop(guest);
        let outcome = talk.join().expect("ends").expect("succeeds");
        assert_eq!(outcome, ConsoleOutcome { end: ConsoleEnd::GuestGone, dropped_bytes: 0 });
        let mut seen = String::new();
        screen.read_to_string(&mut seen).expect("seen");
        assert_eq!(seen, "file\r\n");
    }

    #[test]
    fn a_script_gets_its_answers_and_then_its_end() {
        let ((console, mut guest), (stdout, mut screen)) = (pair(), pair());
        let stdin = std::fs::File::open("/dev/null").expect("opened");
        guest.write_all(b"login: ").expect("said");
        let outcome = converse(console, stdin.into(), stdout.into(), LINGER).expect("ends");
        assert_eq!(outcome.end, ConsoleEnd::InputEnded);
        let mut seen = String::new();
        screen.read_to_string(&mut seen).expect("seen");
        assert_eq!(seen, "login: ");
    }

    #[test]
    fn a_stdout_that_takes_nothing_does_not_stop_the_guest() {
        let ((console, mut guest), (stdin, _keys), (stdout, screen)) = (pair(), pair(), pair());
        let talk = thread::spawn(move || converse(console, stdin.into(), stdout.into(), LINGER));
        let chunk = [b'x'; CHUNK_BYTES];
        // Returns although there is no reader: socket buffers hold far less.
        for _ in 0..4 * MAX_KEPT_BYTES / CHUNK_BYTES {
            guest.write_all(&chunk).expect("taken");
        }
        drop(guest);
        screen.shutdown(Shutdown::Both).expect("shut down");
        let outcome = talk.join().expect("ends").expect("succeeds");
        assert!(outcome.dropped_bytes > 0, "{outcome:?}");
    }

    #[test]
    fn a_reader_that_goes_away_ends_it() {
        let ((console, mut guest), (stdin, _keys), (stdout, screen)) = (pair(), pair(), pair());
        drop(screen);
        guest.write_all(b"hello").expect("said");
        let outcome = converse(console, stdin.into(), stdout.into(), LINGER).expect("ends");
        assert_eq!(outcome.end, ConsoleEnd::OutputClosed);
    }
}
