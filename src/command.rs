//! The one place where processes are spawned.
//!
//! [`run`] waits for a helper (`qemu-img`, `pip`) and hands back what it printed; [`spawn_detached`] starts QEMU so that
//! it outlives this process. Both take the whole command as data, so that it can be logged and tested.
//!
//! A child gets what it is given and nothing else: no variable and no descriptor of this process's by inheritance, no
//! privilege by an exec, and the files it makes are this user's alone.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::cancel::{Cancel, Interrupted};
use crate::context::Environment;
use crate::error::{Explain, Kind};

/// How often a child is looked at. Helpers take tens of milliseconds at least.
const POLL: Duration = Duration::from_millis(2);

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The program's path.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// All the variables it sees.
    pub environment: Environment,
}

/// What a command printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
}

/// How long a detached command lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// As long as it likes.
    Own,
    /// No longer than the thread that starts it: if that ends, even by SIGKILL, so does the command.
    ThisThreads,
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// The reason.
        source: io::Error,
    },
    /// It ran and failed; what it said last on stderr is part of the message.
    #[error("{program} failed ({status}){}", said(stderr))]
    Failed {
        /// The program.
        program: String,
        /// Its exit status.
        status: ExitStatus,
        /// All of its stderr.
        stderr: String,
    },
    /// It did not end within its limit and was killed.
    #[error("{program} did not finish within {} s", limit.as_secs())]
    TooSlow {
        /// The program.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// The user interrupted it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Explain for CommandError {
    fn kind(&self) -> Kind {
        match self {
            Self::Start { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Kind::Permission
            }
            Self::Start { .. } | Self::Failed { .. } | Self::TooSlow { .. } => Kind::Unavailable,
            Self::Interrupted(_) => Kind::Interrupted,
        }
    }
}

impl Invocation {
    /// A program without arguments and variables yet.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), environment: Environment::default() }
    }

    /// With exactly these variables.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap_or(self.program.as_os_str()).to_string_lossy().into_owned()
    }

    /// In the root directory, which holds nothing that a core dump or a stray relative path could touch.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        command.env_clear().envs(self.environment.variables()).current_dir("/");
        command
    }
}

/// The program of this name on the environment's `PATH`, or at this path if it has a `/`; absolute.
pub fn find_program(environment: &Environment, name: &str) -> Option<PathBuf> {
    let found = if name.contains('/') {
        Some(PathBuf::from(name)).filter(|path| is_executable(path))
    } else {
        std::env::split_paths(environment.get("PATH")?)
            .map(|directory| directory.join(name))
            .find(|candidate| is_executable(candidate))
    };
    found.and_then(|program| std::path::absolute(program).ok())
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Runs a command to its end and hands back what it printed.
///
/// # Errors
/// Every variant of [`CommandError`]; a command that is still running when `cancel` is set or `limit` has passed is
/// killed and waited for.
pub fn run(
    invocation: &Invocation,
    limit: Option<Duration>,
    cancel: &Cancel,
) -> Result<Output, CommandError> {
    run_to_end(invocation, invocation.command(), limit, cancel)
}

/// [`run`], in this directory.
///
/// # Errors
/// As [`run`].
pub fn run_in(
    directory: &Path,
    invocation: &Invocation,
    limit: Option<Duration>,
    cancel: &Cancel,
) -> Result<Output, CommandError> {
    let mut command = invocation.command();
    command.current_dir(directory);
    run_to_end(invocation, command, limit, cancel)
}

fn run_to_end(
    invocation: &Invocation,
    mut command: Command,
    limit: Option<Duration>,
    cancel: &Cancel,
) -> Result<Output, CommandError> {
    let program = invocation.name();
    confine(&mut command, Confinement::default());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| CommandError::Start { program: program.clone(), source })?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let ended = wait(&mut child, &program, limit, cancel);
    if ended.is_err() {
        // Already gone is fine: then there is nothing to kill.
        let _ = child.kill();
        let _ = child.wait();
    }
    let stdout = stdout.join().unwrap_or_default();
    let stderr = String::from_utf8_lossy(&stderr.join().unwrap_or_default()).into_owned();
    let status = ended?;
    if !status.success() {
        return Err(CommandError::Failed { program, status, stderr });
    }
    Ok(Output { stdout, stderr })
}

/// Starts a command in a session of its own, so that neither Ctrl-C nor this process's end reaches it. `log` takes its
/// stdout and stderr; each of `passed` is inherited under the number it has here.
///
/// # Errors
/// [`CommandError::Start`].
pub fn spawn_detached(
    invocation: &Invocation,
    log: File,
    passed: &[OwnedFd],
    lifetime: Lifetime,
) -> Result<Child, CommandError> {
    let failed = |source| CommandError::Start { program: invocation.name(), source };
    let mut command = invocation.command();
    command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    let passed = passed.iter().map(AsRawFd::as_raw_fd).collect();
    confine(&mut command, Confinement { passed, detached: Some(lifetime) });
    command.spawn().map_err(failed)
}

/// What is different from command to command of what happens between fork and exec.
#[derive(Debug, Default)]
struct Confinement {
    /// Descriptors that are passed on.
    passed: Vec<RawFd>,
    /// Whether it gets a session of its own, and for how long.
    detached: Option<Lifetime>,
}

/// Files that the child makes are this user's alone.
const UMASK: rustix::fs::Mode = rustix::fs::Mode::from_raw_mode(0o077);

/// Sees to it that the child gets nothing but what it is given. It is the caller who holds what is passed open until the
/// child is there.
#[expect(unsafe_code, reason = "pre_exec is the only way to do anything between fork and exec")]
fn confine(command: &mut Command, confinement: Confinement) {
    let parent = rustix::process::getpid();
    let inherited = open_descriptors();
    let in_child = move || {
        if let Some(lifetime) = confinement.detached {
            rustix::process::setsid()?;
            if lifetime == Lifetime::ThisThreads {
                end_with_parent(parent)?;
            }
            give_up_capabilities();
        }
        rustix::process::umask(UMASK);
        refuse_new_privileges()?;
        // Our own descriptors are closed by exec anyway; those that we were started with may not be.
        for number in &inherited {
            let _ = close_on_exec(*number, true);
        }
        confinement.passed.iter().try_for_each(|number| close_on_exec(*number, false))
    };
    // SAFETY: setsid, prctl, getppid, umask and fcntl are async-signal-safe, and the closure allocates nothing.
    unsafe { command.pre_exec(in_child) };
}

#[expect(unsafe_code, reason = "descriptors that somebody else opened have no owner here")]
fn close_on_exec(number: RawFd, on: bool) -> io::Result<()> {
    let flags = if on { rustix::io::FdFlags::CLOEXEC } else { rustix::io::FdFlags::empty() };
    // SAFETY: it is borrowed for the length of one fcntl, which says EBADF of a number that is not open.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}

/// All descriptors of this process but stdin, stdout and stderr.
fn open_descriptors() -> Vec<RawFd> {
    let entries = std::fs::read_dir("/dev/fd").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|number| *number > 2).collect()
}

/// No set-user-id program and no file capability means anything to this process and its children any more.
#[cfg(target_os = "linux")]
fn refuse_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// There is no such thing elsewhere.
#[cfg(not(target_os = "linux"))]
fn refuse_new_privileges() -> io::Result<()> {
    Ok(())
}

/// Root's QEMU keeps of its powers what it may need: reading disks of this user's other self (`sudo`), and forwarding
/// ports below 1024. Anybody else's has none, and may not take any away: both is fine.
#[cfg(target_os = "linux")]
fn give_up_capabilities() {
    use rustix::thread::CapabilitySet;
    let kept = CapabilitySet::DAC_OVERRIDE | CapabilitySet::NET_BIND_SERVICE;
    for capability in CapabilitySet::all().difference(kept).iter() {
        let _ = rustix::thread::remove_capability_from_bounding_set(capability);
    }
}

/// There are none elsewhere.
#[cfg(not(target_os = "linux"))]
fn give_up_capabilities() {}

/// The kernel kills this process when its parent ends, in whatever way.
#[cfg(target_os = "linux")]
fn end_with_parent(parent: rustix::process::Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // It may have ended before the kernel was told.
    if rustix::process::getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

/// Elsewhere no kernel does that: what a killed castra leaves running is ended by the next one that comes across it.
#[cfg(not(target_os = "linux"))]
fn end_with_parent(_parent: rustix::process::Pid) -> io::Result<()> {
    Ok(())
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A pipe that breaks has said all it will say.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(
    child: &mut Child,
    program: &str,
    limit: Option<Duration>,
    cancel: &Cancel,
) -> Result<ExitStatus, CommandError> {
    let started = Instant::now();
    loop {
        let polled =
            child.try_wait().map_err(|source| CommandError::Start { program: program.to_owned(), source })?;
        if let Some(status) = polled {
            return Ok(status);
        }
        cancel.check()?;
        if let Some(limit) = limit.filter(|limit| started.elapsed() >= *limit) {
            return Err(CommandError::TooSlow { program: program.to_owned(), limit });
        }
        thread::sleep(POLL);
    }
}

/// The last lines of a stderr, to be shown behind a message.
fn said(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    if last.is_empty() { String::new() } else { format!(": {}", last.join(" / ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Invocation {
        Invocation::new("/bin/sh").args(["-c", script])
    }

    #[test]
    fn output_comes_back() {
        let output = run(&sh("echo out; echo err >&2"), None, &Cancel::new()).expect("runs");
        assert_eq!((output.stdout.as_slice(), output.stderr.as_str()), (b"out\n".as_slice(), "err\n"));
    }

    #[test]
    fn a_failure_quotes_stderr() {
        let error = run(&sh("echo no such disk >&2; exit 3"), None, &Cancel::new()).expect_err("fails");
        assert!(error.to_string().contains("no such disk"), "{error}");
    }

    #[test]
    fn a_slow_command_is_ended() {
        let limit = Some(Duration::from_millis(50));
        let error = run(&sh("exec sleep 60"), limit, &Cancel::new()).expect_err("is too slow");
        assert!(matches!(error, CommandError::TooSlow { .. }));
    }

    #[test]
    fn a_cancelled_command_is_ended() {
        let cancel = Cancel::new();
        cancel.cancel();
        let error = run(&sh("exec sleep 60"), None, &cancel).expect_err("is interrupted");
        assert!(matches!(error, CommandError::Interrupted(_)));
    }

    #[test]
    fn programs_are_found_on_the_given_path_only() {
        let environment = Environment::of([("PATH", "/nonexistent:/bin")]);
        assert_eq!(find_program(&environment, "sh"), Some(PathBuf::from("/bin/sh")));
        assert_eq!(find_program(&Environment::default(), "sh"), None);
        assert!(find_program(&environment, "src/../build.rs").is_none(), "it is no program");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_child_gets_what_it_is_given_and_nothing_else() {
        // As if this process had been started with a descriptor of somebody's.
        let foreign = File::open("/etc/passwd").expect("opens");
        close_on_exec(foreign.as_raw_fd(), false).expect("set");
        let script =
            "pwd; umask; grep NoNewPrivs /proc/self/status; readlink /proc/$$/fd/*; echo; /usr/bin/env";
        let invocation = sh(script).environment(Environment::of([("GIVEN", "1")]));
        let output = run(&invocation, None, &Cancel::new()).expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.starts_with("/\n0077\nNoNewPrivs:\t1\n"), "{text}");
        assert!(text.contains("GIVEN=1") && !text.contains("HOME=") && !text.contains("CARGO"), "{text}");
        assert!(!text.contains("/etc/passwd"), "{text}");
    }
}
