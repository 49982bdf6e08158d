//! Commands and shells: starts them as `sshd` does, and joins them to their channel.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use castra_flow::{Incoming, Message, Outgoing, Received};
use castra_wire::TOO_LONG_SIGNAL;
use rustix::fs::Mode;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::program::{self, Program};
use super::pty::{Size, Terminal};
use super::pump::{self, Output, Pumps};
use crate::users::User;

/// Exit status of a shell for a command that cannot be run, and for one that does not exist.
const CANNOT_RUN: u32 = 126;
const NOT_FOUND: u32 = 127;

/// A running program.
pub(crate) struct Running {
    child: Child,
    /// Readable once the child has ended.
    ended: AsyncFd<OwnedFd>,
    stdin: OwnedFd,
    outputs: Vec<(Output, OwnedFd)>,
    /// The terminal's controlling side.
    terminal: Option<OwnedFd>,
}

/// Reason why no program runs.
pub(crate) enum NotStarted {
    /// An exit status as a shell reports it, and the reason, fit to show to the client.
    Status(u32, String),
    /// The name of an exit signal that Castra's client understands.
    Signal(&'static str),
}

/// Starts a program for a user. The client's variables come last, so they win.
///
/// # Errors
/// The shell cannot be run, or the kernel has no room for the arguments.
pub(crate) fn start(
    user: &Arc<User>,
    program: &Program,
    environment: Vec<(OsString, OsString)>,
    terminal: Option<Terminal>,
) -> Result<Running, NotStarted> {
    let prepared = |mut command: Command| {
        if let Some(terminal) = &terminal {
            command.env("TERM", terminal.term()).env("SSH_TTY", terminal.name());
        }
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command
    };
    let command = prepared(program::command(user, program));
    let is_array = matches!(program, Program::Arguments(_));
    if is_array && !program::has_room(&command) {
        return Err(NotStarted::Signal(TOO_LONG_SIGNAL));
    }
    // No shell in between, unless the kernel cannot run the program: then it is a builtin, a script
    // without a first line, or missing, which the shell reports.
    if let Some(direct) = program::direct_command(user, program, &environment)
        && let Ok(running) = spawn(prepared(direct), Arc::clone(user), terminal.as_ref())
    {
        return Ok(running);
    }
    spawn(command, Arc::clone(user), terminal.as_ref()).map_err(|error| match error.kind() {
        io::ErrorKind::ArgumentListTooLong if is_array => NotStarted::Signal(TOO_LONG_SIGNAL),
        kind => {
            let status = if kind == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
            NotStarted::Status(
                status,
                format!("castra: cannot run {}: {error}\r\n", user.shell.display()),
            )
        }
    })
}

fn spawn(
    mut command: Command,
    user: Arc<User>,
    terminal: Option<&Terminal>,
) -> io::Result<Running> {
    let (controlling, line) = terminal.map(Terminal::parts).transpose()?.unzip();
    if let Some(line) = &line {
        command.stdin(line.try_clone()?).stdout(line.try_clone()?).stderr(line.try_clone()?);
    } else {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    in_child(&mut command, user, line);
    let mut child = command.spawn()?;
    // Our copies of the terminal's program side must be closed, or its end would never be seen.
    drop(command);
    match connect(&mut child, controlling) {
        Ok((stdin, outputs, terminal, ended)) => {
            Ok(Running { child, ended, stdin, outputs, terminal })
        }
        Err(error) => {
            // It cannot be served, so it must not run.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

type Ends = (OwnedFd, Vec<(Output, OwnedFd)>, Option<OwnedFd>, AsyncFd<OwnedFd>);

fn connect(child: &mut Child, controlling: Option<OwnedFd>) -> io::Result<Ends> {
    let pid = Pid::from_child(child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let ended = pump::register(pidfd, Interest::READABLE)?;
    if let Some(controlling) = controlling {
        let output = vec![(Output::Stdout, controlling.try_clone()?)];
        return Ok((controlling.try_clone()?, output, Some(controlling), ended));
    }
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    let outputs = vec![(Output::Stdout, stdout.into()), (Output::Stderr, stderr.into())];
    Ok((stdin.into(), outputs, None, ended))
}

/// Prepares the child between fork and exec: a session of its own, its terminal, its user, its
/// home.
#[expect(unsafe_code, reason = "pre_exec is the only way to act between fork and exec")]
fn in_child(command: &mut Command, user: Arc<User>, line: Option<OwnedFd>) {
    // Allocated before the fork: the child must not allocate.
    let home =
        std::ffi::CString::new(user.home.clone().into_os_string().into_vec()).unwrap_or_default();
    let enter = move || {
        rustix::process::setsid()?;
        if let Some(line) = &line {
            rustix::process::ioctl_tiocsctty(line)?;
        }
        // While this process still may: the agent is exempt from the OOM killer, programs of its
        // users are not. A program that could not be made killable runs all the same.
        let _ = crate::process::be_ordinary();
        user.become_in_child()?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        if rustix::process::chdir(home.as_c_str()).is_err() {
            rustix::process::chdir(c"/")?;
        }
        Ok(())
    };
    // SAFETY: these are plain system calls; nothing is allocated or locked.
    unsafe { command.pre_exec(enter) };
}

/// Joins a program and its channel until both are done. Reports on the channel why a program did
/// not start. `stdin` is the data that has already arrived for it.
pub(crate) async fn run(
    started: Result<Running, NotStarted>,
    stdin: Option<Received>,
    mut incoming: Incoming,
    outgoing: Outgoing,
) {
    let outgoing = Arc::new(outgoing);
    // Sending fails when the connection is gone; then there is no client left to inform.
    match started {
        Ok(running) => supervise(running, stdin, &mut incoming, &outgoing).await,
        Err(NotStarted::Status(status, reason)) => {
            let _ = outgoing.send_stderr(Bytes::from(reason)).await;
            let _ = outgoing.exit_status(status).await;
        }
        Err(NotStarted::Signal(name)) => {
            let _ = outgoing.exit_signal(name, false).await;
        }
    }
    let _ = outgoing.end_data().await;
    let _ = outgoing.close().await;
}

async fn supervise(
    running: Running,
    early: Option<Received>,
    incoming: &mut Incoming,
    outgoing: &Arc<Outgoing>,
) {
    let Running { mut child, ended, stdin, outputs, terminal } = running;
    let has_terminal = terminal.is_some();
    let group = Pid::from_child(&child);
    let (has_ended, end_seen) = watch::channel(false);
    let Ok(mut pumps) = Pumps::start(outputs, outgoing, &end_seen) else {
        hang_up(group);
        let _ = end_of(&mut child, &ended).await;
        return;
    };
    let (sender, receiver) = mpsc::unbounded_channel();
    if let Some(early) = early {
        // The receiver is here, so it is taken.
        let _ = sender.send(early);
    }
    let feeder = AbortOnDrop(tokio::spawn(pump::feed(stdin, receiver)));
    let mut closed = std::pin::pin!(obey(incoming, Some(sender), group, terminal, &end_seen));

    let status = tokio::select! {
        status = end_of(&mut child, &ended) => status,
        () = &mut closed => {
            hang_up(group);
            drop((feeder, pumps));
            // Still reaped when it ends, but its exit status goes nowhere.
            let _ = end_of(&mut child, &ended).await;
            return;
        }
    };
    // From here on the process group's number may be another's.
    has_ended.send_replace(true);
    drop(feeder);
    let report = async {
        pumps.drained().await;
        if let Ok(status) = status {
            report(status, outgoing).await;
        }
        // A terminal ends with its session; pipes stay open as long as a background process holds
        // them.
        if !has_terminal {
            pumps.finished().await;
        }
    };
    tokio::select! {
        () = report => {}
        () = &mut closed => {}
    }
}

/// Serves the client's requests about a running program until the channel is closed.
async fn obey(
    incoming: &mut Incoming,
    mut stdin: Option<mpsc::UnboundedSender<Received>>,
    group: Pid,
    terminal: Option<OwnedFd>,
    has_ended: &watch::Receiver<bool>,
) {
    while let Some(message) = incoming.next().await {
        match message {
            Message::Data(data) => {
                if let Some(stdin) = &stdin {
                    // The program does not read any more: dropping the data counts it as
                    // consumed.
                    let _ = stdin.send(data);
                }
            }
            Message::EndOfData => stdin = None,
            Message::Signal(name) if !*has_ended.borrow() => {
                if let Some(signal) = signal_of(&name) {
                    // Fails if the group has just ended.
                    let _ = rustix::process::kill_process_group(group, signal);
                }
            }
            Message::Resize(window) => {
                if let Some(terminal) = &terminal {
                    Size::from(window).apply(terminal.as_fd());
                }
            }
            Message::Closed => break,
            _ => {}
        }
    }
}

async fn end_of(child: &mut Child, ended: &AsyncFd<OwnedFd>) -> io::Result<ExitStatus> {
    loop {
        let mut ready = ended.readable().await?;
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ready.clear_ready();
    }
}

async fn report(status: ExitStatus, outgoing: &Outgoing) {
    // Fails when the connection is gone.
    if let Some(signal) = status.signal() {
        let _ = outgoing.exit_signal(&name_of(signal), status.core_dumped()).await;
    } else {
        let code = status.code().and_then(|code| u32::try_from(code).ok()).unwrap_or(u32::MAX);
        let _ = outgoing.exit_status(code).await;
    }
}

/// Sends SIGHUP to the process group; fails silently if it has ended already.
fn hang_up(group: Pid) {
    let _ = rustix::process::kill_process_group(group, Signal::HUP);
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Signals by SSH's names (RFC 4254, 6.10); those without a name there, by the kernel's.
const SIGNALS: &[(Signal, &str)] = &[
    (Signal::ABORT, "ABRT"),
    (Signal::ALARM, "ALRM"),
    (Signal::BUS, "BUS"),
    (Signal::CONT, "CONT"),
    (Signal::FPE, "FPE"),
    (Signal::HUP, "HUP"),
    (Signal::ILL, "ILL"),
    (Signal::INT, "INT"),
    (Signal::IO, "IO"),
    (Signal::KILL, "KILL"),
    (Signal::PIPE, "PIPE"),
    (Signal::PROF, "PROF"),
    (Signal::QUIT, "QUIT"),
    (Signal::SEGV, "SEGV"),
    (Signal::STOP, "STOP"),
    (Signal::SYS, "SYS"),
    (Signal::TERM, "TERM"),
    (Signal::TRAP, "TRAP"),
    (Signal::TSTP, "TSTP"),
    (Signal::USR1, "USR1"),
    (Signal::USR2, "USR2"),
    (Signal::VTALARM, "VTALRM"),
    (Signal::WINCH, "WINCH"),
    (Signal::XCPU, "XCPU"),
    (Signal::XFSZ, "XFSZ"),
];

fn signal_of(name: &str) -> Option<Signal> {
    SIGNALS.iter().find(|(_, known)| *known == name).map(|(signal, _)| *signal)
}

fn name_of(number: i32) -> String {
    let known = SIGNALS.iter().find(|(signal, _)| signal.as_raw() == number);
    known.map_or_else(|| format!("SIG{number}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_keep_their_names_both_ways() {
        assert_eq!(signal_of("ALRM"), Some(Signal::ALARM));
        assert_eq!(signal_of("NONSENSE"), None);
        for (signal, _) in SIGNALS {
            assert_eq!(signal_of(&name_of(signal.as_raw())), Some(*signal));
        }
    }
}
