//! Commands and shells: starts them as `sshd` does, and joins them to their channel.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use castra_flow::{Incoming, Message, Outgoing, Received};
use castra_wire::stream::Program as Kind;
use castra_wire::{ExecHeader, StartDirectory, TOO_LONG_SIGNAL};
use rustix::process::{Pid, Signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::header;
use super::order::Order;
use super::pipes::Pipes;
use super::program::{self, Environment, Program};
use super::pty::{Size, Terminal};
use super::pump::{self, Input, Output, Pumps};
use super::spare::Spare;
use super::spawn::{self, Child, Ended, Orders, Streams};
use crate::mounts::Mounts;
use crate::users::User;

/// Exit status of a shell for a command that cannot be run, and for one that does not exist.
const CANNOT_RUN: u32 = 126;
const NOT_FOUND: u32 = 127;

/// A running program.
pub(crate) struct Running {
    pub(super) child: Child,
    /// Readable once the child has ended.
    pub(super) ended: AsyncFd<OwnedFd>,
    pub(super) stdin: OwnedFd,
    pub(super) outputs: Vec<(Output, OwnedFd)>,
    /// The terminal's controlling side.
    pub(super) terminal: Option<OwnedFd>,
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
/// A thread waits until the program is executed: its file may be on a filesystem that does not
/// answer, and then nothing else must wait.
///
/// # Errors
/// The shell cannot be run, the directory cannot be entered, or the kernel has no room for the
/// arguments.
pub(crate) async fn start(
    user: Arc<User>,
    program: Program,
    variables: Vec<(OsString, OsString)>,
    directory: Option<StartDirectory>,
    terminal: Option<Terminal>,
) -> Result<Running, NotStarted> {
    let mut environment = program::environment_of(&user);
    if let Some(terminal) = &terminal {
        environment.insert("TERM".into(), terminal.term().into());
        environment.insert("SSH_TTY".into(), terminal.name().into());
    }
    environment.extend(variables);
    let is_too_long = program.arguments().is_some_and(|it| !program::has_room(it, &environment));
    if is_too_long {
        return Err(NotStarted::Signal(TOO_LONG_SIGNAL));
    }
    if terminal.is_none()
        && let Some(running) = start_spare(&user, &program, &environment, directory.as_ref()).await
    {
        return Ok(running);
    }
    // The client's terminal may not turn a newline into a new line.
    let end_of_line = if terminal.is_some() { "\r\n" } else { "\n" };
    let start = move || start_now(&user, &program, &environment, directory.as_ref(), terminal);
    // The thread itself cannot fail.
    let failed = |_| Err(NotStarted::Status(CANNOT_RUN, "castra: cannot run it".to_owned()));
    let started = tokio::task::spawn_blocking(start).await.unwrap_or_else(failed);
    started.map_err(|reason| match reason {
        NotStarted::Status(status, text) => NotStarted::Status(status, text + end_of_line),
        NotStarted::Signal(name) => NotStarted::Signal(name),
    })
}

/// Starts a program in the process that waits for one. Returns `None` if there is no such process
/// of this user's, or the program does not start: then the reason is found by starting it as any
/// other.
async fn start_spare(
    user: &Arc<User>,
    program: &Program,
    environment: &Environment,
    directory: Option<&StartDirectory>,
) -> Option<Running> {
    if !Spare::is_of(user) {
        return None;
    }
    let invocation = match program.arguments() {
        Some(arguments) => program::directly(arguments, environment),
        None => program::by_shell(user, program, environment),
    };
    let order = Order::new(&invocation, user, directory).ok()?;
    Spare::take()?.execute(order).await.ok()
}

/// Program that its channel's first data describes.
pub(crate) struct Described {
    pub(crate) user: Arc<User>,
    pub(crate) kind: Kind,
    pub(crate) terminal: Option<Terminal>,
    /// Mounts of the guest, if they are known.
    pub(crate) mounts: Option<Mounts>,
}

impl Described {
    /// Starts the program. `variables` come before the client's. Returns the data behind the
    /// description, too, which is the program's stdin.
    pub(crate) async fn start(
        self,
        mut variables: Vec<(OsString, OsString)>,
        incoming: &mut Incoming,
    ) -> (Result<Running, NotStarted>, Option<Received>) {
        let (header, stdin) = match header::read(incoming).await {
            Ok(described) => described,
            Err(not_started) => return (Err(not_started), None),
        };
        variables.extend(header.environment.iter().cloned());
        (self.start_as(header, variables).await, stdin)
    }

    /// Starts the program of a header with these variables.
    pub(super) async fn start_as(
        self,
        header: ExecHeader,
        variables: Vec<(OsString, OsString)>,
    ) -> Result<Running, NotStarted> {
        let program = Program::of(self.kind, header.arguments)?;
        // The directory below a mount that is not there would be another one.
        let directory = match (header.directory, &self.mounts) {
            (Some(StartDirectory::Mounted(path)), Some(mounts)) if !mounts.have(&path).await => {
                None
            }
            (directory, _) => directory,
        };
        start(self.user, program, variables, directory, self.terminal).await
    }
}

/// Starts a program as its order says. Drops the terminal, whose other side is then the program's
/// alone: otherwise its end would never be seen.
fn start_now(
    user: &Arc<User>,
    program: &Program,
    environment: &Environment,
    directory: Option<&StartDirectory>,
    terminal: Option<Terminal>,
) -> Result<Running, NotStarted> {
    // No shell in between, unless the kernel cannot run the program: then it is a builtin, a script
    // without a first line, or missing, which the shell reports.
    if let Some(arguments) = program.arguments() {
        let directly = program::directly(arguments, environment);
        let order = Order::new(&directly, user, directory);
        if let Ok(running) = order.and_then(|order| spawn(&order, terminal.as_ref())) {
            return Ok(running);
        }
    }
    let by_shell = program::by_shell(user, program, environment);
    let cannot_run = |error: io::Error| match error.kind() {
        io::ErrorKind::ArgumentListTooLong if program.arguments().is_some() => {
            NotStarted::Signal(TOO_LONG_SIGNAL)
        }
        kind => {
            let status = if kind == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
            NotStarted::Status(
                status,
                format!("castra: cannot run {}: {error}", user.shell.display()),
            )
        }
    };
    let order = Order::new(&by_shell, user, directory).map_err(cannot_run)?;
    spawn(&order, terminal.as_ref()).map_err(|error| match order.unentered() {
        Some(directory) => NotStarted::Status(
            CANNOT_RUN,
            format!("castra: cannot enter {}: {error}", directory.display()),
        ),
        None => cannot_run(error),
    })
}

fn spawn(order: &Order, terminal: Option<&Terminal>) -> io::Result<Running> {
    let orders = Orders::Given(order);
    let Some(terminal) = terminal else {
        let (ours, [stdin, stdout, stderr]) = Pipes::make()?;
        let streams = Streams::Pipes([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
        return Running::with_pipes(spawn::spawn(&streams, &orders)?, ours);
    };
    let (controlling, line) = terminal.parts()?;
    let child = spawn::spawn(&Streams::Terminal(line.as_fd()), &orders)?;
    let copies = controlling.try_clone().and_then(|to| Ok((to, controlling.try_clone()?)));
    let Ok((stdin, output)) = copies else {
        child.kill();
        return Err(io::ErrorKind::Other.into());
    };
    Running::of(child, stdin, vec![(Output::Stdout, output)], Some(controlling))
}

impl Running {
    /// Returns a program whose standard streams are these pipes.
    pub(super) fn with_pipes(child: Child, pipes: Pipes) -> io::Result<Self> {
        let outputs = vec![(Output::Stdout, pipes.stdout), (Output::Stderr, pipes.stderr)];
        Self::of(child, pipes.stdin, outputs, None)
    }

    fn of(
        child: Child,
        stdin: OwnedFd,
        outputs: Vec<(Output, OwnedFd)>,
        terminal: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let ended = child.pidfd().and_then(|pidfd| pump::register(pidfd, Interest::READABLE));
        match ended {
            Ok(ended) => Ok(Self { child, ended, stdin, outputs, terminal }),
            Err(error) => {
                // It cannot be served, so it must not run.
                child.kill();
                Err(error)
            }
        }
    }
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
    match started {
        Ok(running) => supervise(running, stdin, &mut incoming, &outgoing).await,
        Err(not_started) => not_started.report(&outgoing).await,
    }
    // Sending fails when the connection is gone; then there is no client left to inform.
    let _ = outgoing.end_data().await;
    let _ = outgoing.close().await;
}

impl NotStarted {
    /// Reports the reason as the end of a program. Fails silently if the connection is gone.
    pub(super) async fn report(self, outgoing: &Outgoing) {
        match self {
            Self::Status(status, reason) => {
                let _ = outgoing.send_stderr(Bytes::from(reason)).await;
                let _ = outgoing.exit_status(status).await;
            }
            Self::Signal(name) => {
                let _ = outgoing.exit_signal(name, false).await;
            }
        }
    }
}

async fn supervise(
    running: Running,
    early: Option<Received>,
    incoming: &mut Incoming,
    outgoing: &Arc<Outgoing>,
) {
    let Running { child, ended, stdin, outputs, terminal } = running;
    let has_terminal = terminal.is_some();
    let group = child.pid();
    let (has_ended, end_seen) = watch::channel(false);
    let Ok(mut pumps) = Pumps::start(outputs, outgoing, &end_seen) else {
        hang_up(group);
        let _ = end_of(&child, &ended).await;
        return;
    };
    let (sender, receiver) = mpsc::unbounded_channel();
    if let Some(early) = early {
        // The receiver is here, so it is taken.
        let _ = sender.send(Input::Data(early));
    }
    let feeder = AbortOnDrop(tokio::spawn(pump::feed(stdin, receiver)));
    let mut closed = std::pin::pin!(obey(incoming, Some(sender), group, terminal, &end_seen));

    let status = tokio::select! {
        status = end_of(&child, &ended) => status,
        () = &mut closed => {
            hang_up(group);
            drop((feeder, pumps));
            // Still reaped when it ends, but its exit status goes nowhere.
            let _ = end_of(&child, &ended).await;
            return;
        }
    };
    // The process group's number may soon be another's.
    has_ended.send_replace(true);
    drop(feeder);
    let report = async {
        pumps.drained().await;
        if let Ok(status) = status {
            report(status, outgoing).await;
        }
        // The client has the status before the kernel frees what is left of the process.
        tokio::task::yield_now().await;
        drop(child);
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
    mut stdin: Option<mpsc::UnboundedSender<Input>>,
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
                    let _ = stdin.send(Input::Data(data));
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

pub(super) async fn end_of(child: &Child, ended: &AsyncFd<OwnedFd>) -> io::Result<Ended> {
    loop {
        let mut ready = ended.readable().await?;
        if let Some(end) = child.end()? {
            return Ok(end);
        }
        ready.clear_ready();
    }
}

pub(super) async fn report(ended: Ended, outgoing: &Outgoing) {
    // Fails when the connection is gone.
    let _ = match ended {
        Ended::Status(code) => outgoing.exit_status(code).await,
        Ended::Signal { number, has_dumped_core } => {
            outgoing.exit_signal(&name_of(number), has_dumped_core).await
        }
    };
}

/// Sends SIGHUP to the process group; fails silently if it has ended already.
fn hang_up(group: Pid) {
    let _ = rustix::process::kill_process_group(group, Signal::HUP);
}

pub(super) struct AbortOnDrop(pub(super) JoinHandle<()>);

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

pub(super) fn signal_of(name: &str) -> Option<Signal> {
    SIGNALS.iter().find(|(_, known)| *known == name).map(|(signal, _)| *signal)
}

fn name_of(number: i32) -> String {
    let known = SIGNALS.iter().find(|(signal, _)| signal.as_raw() == number);
    known.map_or_else(|| format!("SIG{number}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::programs::spare;
    use crate::users::tests::own_user;

    fn user() -> Arc<User> {
        own_user("/bin/sh")
    }

    /// Runs a command, and returns its end and its output.
    async fn run(words: &[&str]) -> (Ended, String) {
        run_in(None, words).await
    }

    /// Runs a command in a directory.
    async fn run_in(directory: Option<StartDirectory>, words: &[&str]) -> (Ended, String) {
        let program = Program::Arguments(words.iter().map(OsString::from).collect());
        let variables = vec![("NAME".into(), "value".into())];
        let started = start(user(), program, variables, directory, None).await;
        let Ok(Running { child, ended, stdin, outputs, .. }) = started else { panic!("no start") };
        drop(stdin);
        let mut text = String::new();
        for (_, output) in outputs {
            std::fs::File::from(output).read_to_string(&mut text).expect("reads");
        }
        let end = end_of(&child, &ended).await.expect("ends");
        (end, text)
    }

    /// Process IDs of this process's children.
    fn children() -> Vec<Pid> {
        let tasks = std::fs::read_dir("/proc/self/task").expect("has threads").flatten();
        let lists = tasks.filter_map(|it| std::fs::read_to_string(it.path().join("children")).ok());
        let ids = lists.flat_map(|list| {
            list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()
        });
        ids.filter_map(Pid::from_raw).collect()
    }

    /// Starts a spare process and returns its ID. Those of other tests' are not waited for.
    async fn prepare_spare() -> Pid {
        let before = children();
        let prepared = tokio::task::spawn_blocking(|| spare::prepare(user())).await;
        prepared.expect("no panic").expect("waits");
        children().into_iter().find(|child| !before.contains(child)).expect("a new child")
    }

    #[tokio::test]
    async fn the_first_program_runs_in_the_spare_process() {
        let script = "echo $$ $0 $NAME; pwd; echo 1>&2 error; exit 7";
        let words = ["sh", "-c", script, "zero"];
        let pid = prepare_spare().await.as_raw_nonzero();
        let expected = |pid| (Ended::Status(7), format!("{pid} zero value\n/\nerror\n"));
        assert_eq!(run(&words).await, expected(pid.to_string()));
        assert!(!Spare::is_of(&user()));
        let (end, text) = run(&words).await;
        assert_ne!(text, expected(pid.to_string()).1, "another process");
        assert_eq!(end, Ended::Status(7));

        // Nothing is lost with a process that ends while it waits, or whose program is not there.
        let pid = prepare_spare().await;
        rustix::process::kill_process(pid, Signal::KILL).expect("is ours");
        assert_eq!(run(&words).await.0, Ended::Status(7));
        for signal in [Signal::TERM, Signal::USR1, Signal::STOP] {
            let pid = prepare_spare().await;
            rustix::process::kill_process(pid, signal).expect("is ours");
            assert_eq!(run(&words).await.0, Ended::Status(7), "{signal:?}");
            assert!(!children().contains(&pid), "{signal:?}: it does not stay");
        }
        prepare_spare().await;
        let (end, text) = run(&["castra-no-such-program"]).await;
        assert_eq!(end, Ended::Status(NOT_FOUND), "{text}");
        assert!(text.contains("not found"), "{text}");
        prepare_spare().await;
        assert_eq!(run(&["exit", "5"]).await.0, Ended::Status(5), "a builtin");
        drop(Spare::take());
    }

    #[tokio::test]
    async fn a_program_starts_in_its_directory() {
        let path = std::env::temp_dir().join(format!("castra-start-{}", std::process::id()));
        std::fs::create_dir(&path).expect("makes a directory");
        let path = path.canonicalize().expect("a path");
        let script = path.join("script");
        std::fs::write(&script, "#!/bin/sh\npwd\n").expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&script, mode).expect("a mode");
        let there = (Ended::Status(0), format!("{}\n", path.display()));
        let named = |path: &std::path::Path| Some(StartDirectory::Named(path.into()));
        let mounted = |path: &std::path::Path| Some(StartDirectory::Mounted(path.into()));
        for is_spare in [false, true] {
            for directory in [named(&path), mounted(&path)] {
                // The last one has no path, and the shell runs it.
                for words in [&["pwd"][..], &["./script"], &["command", "pwd"]] {
                    if is_spare {
                        prepare_spare().await;
                    }
                    let ended = run_in(directory.clone(), words).await;
                    assert_eq!(ended, there, "{is_spare} {words:?}");
                }
            }
        }
        // The home of `own_user`.
        let missing = path.join("missing");
        let home = (Ended::Status(0), "/\n".to_owned());
        assert_eq!(run_in(mounted(&missing), &["pwd"]).await, home);
        let program = Program::Arguments(vec!["pwd".into()]);
        let started = start(user(), program, Vec::new(), named(&missing), None).await;
        let Err(NotStarted::Status(status, reason)) = started else { panic!("it started") };
        let reason = reason.replace(&missing.display().to_string(), "PATH");
        let expected = "castra: cannot enter PATH: No such file or directory (os error 2)\n";
        assert_eq!((status, &*reason), (CANNOT_RUN, expected));
        std::fs::remove_dir_all(&path).expect("removes");
    }

    #[tokio::test]
    async fn a_spare_process_that_is_not_needed_ends() {
        let old = prepare_spare().await;
        let new = prepare_spare().await;
        ends(old).await;
        assert!(children().contains(&new), "it took the place of the other");
        drop(Spare::take());
        ends(new).await;
    }

    /// Waits until a child has ended.
    async fn ends(child: Pid) {
        let wait = async {
            while children().contains(&child) {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let limit = std::time::Duration::from_secs(10);
        tokio::time::timeout(limit, wait).await.expect("ends");
    }

    #[test]
    fn signals_keep_their_names_both_ways() {
        assert_eq!(signal_of("ALRM"), Some(Signal::ALARM));
        assert_eq!(signal_of("NONSENSE"), None);
        for (signal, _) in SIGNALS {
            assert_eq!(signal_of(&name_of(signal.as_raw())), Some(*signal));
        }
    }
}
