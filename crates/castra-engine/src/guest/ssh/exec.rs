//! Commands and shells in the guest.

use std::ffi::OsString;
use std::future::pending;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use castra_flow::Outgoing;
use castra_wire::StartDirectory;
use castra_wire::stream::Window;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::connection::Connection;
use super::conversation::{Command, Conversation, Start, Stream};
use super::stdio::{Input, Output, Written};
use super::terminal::{self, Raw};
use super::{GuestExit, SshError, Stdin, Stdio, Target, Tty, block_on, until_cancelled};
use crate::cancel::Cancel;
use crate::host::IgnoredSignals;

/// Time for a guest to answer after a signal. Within it, the command decides what the signal means.
const SIGNAL_LIMIT: Duration = Duration::from_secs(1);

/// A command to run in the guest.
pub struct ExecRequest {
    /// The command.
    pub command: Command,
    /// Terminal for the command; without one, stdout and stderr stay separate.
    pub tty: Option<Tty>,
    /// Variables for its environment, which override the guest's. Over SSH, only
    /// [`Command::Argv`] takes some that are not UTF-8.
    pub environment: Vec<(OsString, OsString)>,
    /// Directory in which it starts; `None` for the user's home.
    pub directory: Option<StartDirectory>,
    /// Local streams. A terminal at stdin is in raw mode while the command has a terminal.
    pub stdio: Stdio,
}

/// A command to run in the guest, whose output is received in pieces.
pub struct StreamRequest {
    /// The command.
    pub command: Command,
    /// Variables for its environment, as in [`ExecRequest`].
    pub environment: Vec<(OsString, OsString)>,
    /// Directory in which it starts, as in [`ExecRequest`].
    pub directory: Option<StartDirectory>,
    /// Input of the command.
    pub stdin: Stdin,
    /// End of the call before the command's own.
    pub interruption: Interruption,
}

/// End of a call before the end of its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// By the caller's [`Cancel`]. Signals of this process keep their meaning.
    Cancel,
    /// By signals that this process receives, as for [`exec`].
    Signals,
}

/// Exit and output of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captured {
    /// Exit of the command.
    pub exit: GuestExit,
    /// Bytes written to stdout.
    pub stdout: Vec<u8>,
    /// Bytes written to stderr.
    pub stderr: Vec<u8>,
}

/// Runs a command and waits for its end.
///
/// Until the login succeeds, `cancel` ends the call. After that, without a terminal, INT, TERM, HUP
/// and QUIT that this process receives are forwarded to the command; the second of a kind ends the
/// call instead, and so does the first if the guest does not answer within a second. With a
/// terminal, its keys are bytes like any others, and those signals end the call. The command
/// receives a hang-up whenever the call ends first.
///
/// # Errors
/// The guest could not be reached or was lost, or this side's streams failed. A stdout without a
/// reader is no error but [`GuestExit::OutputClosed`].
pub fn exec(cancel: &Cancel, target: &Target, request: ExecRequest) -> Result<GuestExit, SshError> {
    block_on(async {
        let connection = Connection::open(target, cancel).await?;
        let ExecRequest { command, tty, environment, directory, stdio } = request;
        let start = Start {
            command: &command,
            tty: tty.as_ref(),
            environment: &environment,
            directory: directory.as_ref(),
        };
        let started = Conversation::start(&connection, start);
        let mut conversation = connection.guard(cancel, started).await?;
        let _raw = match (&tty, &stdio.stdin) {
            (Some(_), Some(stdin)) => Raw::enter(stdin).map_err(local("make the terminal raw"))?,
            _ => None,
        };
        let outgoing = conversation.outgoing();
        let window = tty.as_ref().map(|_| stdio.stdin.as_ref().unwrap_or(&stdio.stdout));
        let signals = Signals::new(window).map_err(local("wait for signals"))?;
        let Stdio { stdin, stdout, stderr } = stdio;
        let outputs = Outputs::start(stdout, stderr).map_err(local("start a thread"))?;
        let input = stdin.map(Input::start).transpose().map_err(local("start a thread"))?;
        tokio::select! {
            exit = outputs.take_from(&mut conversation) => exit,
            error = failure_of_feeding(input, &outgoing) => Err(error),
            exit = signals.pass_on(&outgoing, &connection) => Ok(exit),
            () = connection.until_silent() => Err(SshError::Lost),
        }
    })
}

/// Runs a command and waits for its end. `sink` receives its output as it arrives; when it breaks,
/// the command receives a hang-up, and the exit is [`GuestExit::OutputClosed`].
///
/// # Errors
/// The guest could not be reached or was lost, or this side's stdin failed; and
/// [`SshError::Interrupted`].
pub fn stream(
    cancel: &Cancel,
    target: &Target,
    request: StreamRequest,
    sink: &mut dyn FnMut(Stream, &[u8]) -> ControlFlow<()>,
) -> Result<GuestExit, SshError> {
    block_on(async {
        let connection = Connection::open(target, cancel).await?;
        let StreamRequest { command, environment, directory, stdin, interruption } = request;
        let start = Start {
            command: &command,
            tty: None,
            environment: &environment,
            directory: directory.as_ref(),
        };
        let started = Conversation::start(&connection, start);
        let mut conversation = connection.guard(cancel, started).await?;
        let outgoing = conversation.outgoing();
        let signals = match interruption {
            Interruption::Signals => Some(Signals::new(None).map_err(local("wait for signals"))?),
            Interruption::Cancel => None,
        };
        let input = Input::of(stdin).map_err(local("start a thread"))?;
        let interrupted = async {
            match signals {
                Some(signals) => Ok(signals.pass_on(&outgoing, &connection).await),
                None => {
                    until_cancelled(cancel).await;
                    Err(SshError::Interrupted)
                }
            }
        };
        tokio::select! {
            exit = conversation.until_exit(|stream, data| sink(stream, &data)) => exit,
            error = failure_of_feeding(input, &outgoing) => Err(error),
            exit = interrupted => exit,
            () = connection.until_silent() => Err(SshError::Lost),
        }
    })
}

/// Runs a command without input and returns its output.
///
/// # Errors
/// As [`stream`]; and [`SshError::TooMuchOutput`] past `limit_bytes` on stdout and stderr together.
pub fn capture(
    cancel: &Cancel,
    target: &Target,
    argv: Vec<OsString>,
    limit_bytes: usize,
) -> Result<Captured, SshError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut room = limit_bytes;
    let request = StreamRequest {
        command: Command::Argv(argv),
        environment: Vec::new(),
        directory: None,
        stdin: Stdin::Null,
        interruption: Interruption::Cancel,
    };
    let exit = stream(cancel, target, request, &mut |stream, data| {
        let Some(rest) = room.checked_sub(data.len()) else { return ControlFlow::Break(()) };
        room = rest;
        let kept = if stream == Stream::Stdout { &mut stdout } else { &mut stderr };
        kept.extend_from_slice(data);
        ControlFlow::Continue(())
    })?;
    match exit {
        GuestExit::OutputClosed => Err(SshError::TooMuchOutput { limit_bytes }),
        exit => Ok(Captured { exit, stdout, stderr }),
    }
}

fn local(what: &'static str) -> impl FnOnce(io::Error) -> SshError {
    move |source| SshError::Local { what, source }
}

/// Sends stdin and its end. Returns only if stdin cannot be read: a command does not end with its
/// input.
pub(super) async fn failure_of_feeding(input: Option<Input>, outgoing: &Outgoing) -> SshError {
    match feed(input, outgoing).await {
        Ok(()) => pending().await,
        Err(source) => SshError::Local { what: "read stdin", source },
    }
}

/// Sends stdin and its end. A connection that is gone is no error, since its reader notices that,
/// too.
///
/// # Errors
/// Those of reading stdin.
async fn feed(input: Option<Input>, outgoing: &Outgoing) -> io::Result<()> {
    if let Some(mut input) = input {
        while let Some(chunk) = input.next().await {
            if outgoing.send(chunk?).await.is_err() {
                return Ok(());
            }
        }
    }
    let _ = outgoing.end_data().await;
    Ok(())
}

struct Outputs {
    stdout: (Output, Written),
    stderr: (Output, Written),
}

impl Outputs {
    fn start(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        Ok(Self { stdout: Output::start(stdout)?, stderr: Output::start(stderr)? })
    }

    /// Writes everything the command prints, and returns once it has ended and everything is
    /// written, or stdout cannot be written to.
    async fn take_from(self, conversation: &mut Conversation) -> Result<GuestExit, SshError> {
        let Self { stdout: (stdout, mut printed), stderr: (stderr, mut reported) } = self;
        let all = conversation.until_exit(|stream, data| {
            let is_taken = match stream {
                Stream::Stdout => stdout.put(data),
                Stream::Stderr => {
                    // A stderr without a reader stops nothing.
                    let _ = stderr.put(data);
                    true
                }
            };
            if is_taken { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        // A command that prints no more would not notice that its reader has left.
        let (exit, printed) = tokio::select! {
            exit = all => {
                drop((stdout, stderr));
                let _ = reported.end().await;
                (exit?, printed.end().await)
            }
            failed = printed.end() => (GuestExit::OutputClosed, failed),
        };
        match printed {
            Ok(()) => Ok(exit),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(GuestExit::OutputClosed),
            Err(source) => Err(SshError::Local { what: "write to stdout", source }),
        }
    }
}

/// A signal with its name and number; `None` if this process was started to ignore it.
type Listened = (Option<Signal>, &'static str, u8);

/// Signals that this process receives while a command runs.
struct Signals {
    streams: [Listened; 4],
    resized: Option<(Signal, OwnedFd)>,
    has_tty: bool,
}

impl Signals {
    /// Listens to signals. `window` is the terminal on this side, if the command has one.
    fn new(window: Option<&OwnedFd>) -> io::Result<Self> {
        let ignored = IgnoredSignals::of_process();
        let stream = |kind: SignalKind, name: &'static str| {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or(0);
            let is_ignored = ignored.contains(kind.as_raw_value());
            let listened = (!is_ignored).then(|| signal(kind)).transpose()?;
            Ok::<_, io::Error>((listened, name, number))
        };
        let resized = match window {
            Some(terminal) => {
                let terminal = terminal.as_fd().try_clone_to_owned()?;
                Some((signal(SignalKind::window_change())?, terminal))
            }
            None => None,
        };
        Ok(Self {
            streams: [
                stream(SignalKind::interrupt(), "INT")?,
                stream(SignalKind::terminate(), "TERM")?,
                stream(SignalKind::hangup(), "HUP")?,
                stream(SignalKind::quit(), "QUIT")?,
            ],
            resized,
            has_tty: window.is_some(),
        })
    }

    /// Forwards signals to the command. Returns when a signal ends the call.
    async fn pass_on(mut self, outgoing: &Arc<Outgoing>, connection: &Connection) -> GuestExit {
        let [interrupt, terminate, hang_up, quit] = &mut self.streams;
        let mut seen = Vec::new();
        loop {
            let (name, number) = tokio::select! {
                () = got(interrupt) => (interrupt.1, interrupt.2),
                () = got(terminate) => (terminate.1, terminate.2),
                () = got(hang_up) => (hang_up.1, hang_up.2),
                () = got(quit) => (quit.1, quit.2),
                size = resized(&mut self.resized) => {
                    let _ = outgoing.resize(size).await;
                    continue;
                }
            };
            if self.has_tty || seen.contains(&number) {
                return GuestExit::Interrupted(number);
            }
            seen.push(number);
            // Failing means that the connection is gone, which its reader notices too.
            let _ = outgoing.signal(name).await;
            if !connection.answers_within(SIGNAL_LIMIT).await {
                return GuestExit::Interrupted(number);
            }
        }
    }
}

async fn got((stream, _, _): &mut Listened) {
    if let Some(stream) = stream
        && stream.recv().await.is_some()
    {
        return;
    }
    pending().await
}

async fn resized(resized: &mut Option<(Signal, OwnedFd)>) -> Window {
    if let Some((stream, terminal)) = resized {
        while stream.recv().await.is_some() {
            if let Some(size) = terminal::size(&*terminal) {
                return size;
            }
        }
    }
    pending().await
}
