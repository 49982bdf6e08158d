//! Spawns processes; nothing else does.
//!
//! [`run`] waits for a helper (`qemu-img`, `pip`) and returns its output; [`spawn_detached`] starts
//! QEMU so that it outlives this process. Both take the whole command as data, so that it can be
//! logged and tested.
//!
//! A child gets what it is given and nothing else: it inherits no variable and no descriptor of
//! this process, gains no privilege by an exec, and creates files for this user alone. A helper
//! ends with everything that it started: when its work is done, when its time is up, when the user
//! interrupts, and when castra is killed.

mod capture;
mod confine;
mod trace;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use self::capture::{Capture, Keep};
use self::confine::{Confinement, Place, confine};
use crate::cancel::{Cancel, Interrupted};
use crate::context::Environment;
use crate::error::{Explain, Kind};
use crate::size::ByteSize;

/// Interval at which a child is checked. Helpers take tens of milliseconds at least.
const POLL: Duration = Duration::from_millis(2);

/// Maximum of a helper's stdout, in bytes. `qemu-img info` of a disk with a thousand snapshots
/// prints less than one MiB.
const STDOUT_BYTES: usize = 16 << 20;

/// Number of bytes that are kept of the end of a helper's stderr.
const STDERR_BYTES: usize = 64 << 10;

/// Time for reading the rest of the pipes of a helper that has ended: 64 KiB at most.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Path of the program.
    pub program: PathBuf,
    /// Arguments after the program.
    pub arguments: Vec<OsString>,
    /// Complete environment of the process.
    pub environment: Environment,
}

/// Output of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Bytes written to stdout.
    pub stdout: Vec<u8>,
    /// End of stderr, as text.
    pub stderr: String,
}

/// Lifetime of a detached command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Unlimited: the command outlives castra.
    Own,
    /// No longer than the thread that starts it: if that ends, even by SIGKILL, so does the
    /// command.
    ThisThreads,
}

/// Reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The command could not be started.
    #[error("cannot run {program}")]
    Start {
        /// The program.
        program: String,
        /// The reason.
        source: io::Error,
    },
    /// The command ran and failed; the end of its stderr is part of the message.
    #[error("{program} failed ({status}){}", said(stderr))]
    Failed {
        /// The program.
        program: String,
        /// Exit status of the command.
        status: ExitStatus,
        /// End of its stderr.
        stderr: String,
    },
    /// The command did not end within its limit and was killed.
    #[error("{program} did not finish within {} s", limit.as_secs())]
    TooSlow {
        /// The program.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// The command printed more than any helper should, and was killed.
    #[error("{program} printed more than {}", ByteSize(STDOUT_BYTES as u64))]
    TooMuch {
        /// The program.
        program: String,
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
            Self::Start { .. }
            | Self::Failed { .. }
            | Self::TooSlow { .. }
            | Self::TooMuch { .. } => Kind::Unavailable,
            Self::Interrupted(_) => Kind::Interrupted,
        }
    }
}

impl Invocation {
    /// Returns an invocation without arguments and variables.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), arguments: Vec::new(), environment: Environment::default() }
    }

    /// Sets the complete environment.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Appends an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap_or(self.program.as_os_str()).to_string_lossy().into_owned()
    }

    /// Builds the command, to run in the root directory, where no core dump or stray relative path
    /// can touch anything.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        command.env_clear().envs(self.environment.variables()).current_dir("/");
        command
    }
}

/// Finds the program with this name on the environment's `PATH`, or at this path if it has a `/`.
/// The result is absolute, and only absolute directories are searched: a `.` among them would run a
/// repository's own `qemu-img`.
pub fn find_program(environment: &Environment, name: impl AsRef<OsStr>) -> Option<PathBuf> {
    let name = name.as_ref();
    let found = if name.as_encoded_bytes().contains(&b'/') {
        Some(PathBuf::from(name)).filter(|path| is_executable(path))
    } else {
        std::env::split_paths(environment.get("PATH")?)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(name))
            .find(|candidate| is_executable(candidate))
    };
    found.and_then(|program| std::path::absolute(program).ok())
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Runs a command to its end and returns its output.
///
/// # Errors
/// Every variant of [`CommandError`]; a command that is still running when `cancel` is set or
/// `limit` has passed is killed with everything that it started, and waited for.
pub fn run(
    invocation: &Invocation,
    limit: Duration,
    cancel: &Cancel,
) -> Result<Output, CommandError> {
    run_to_end(invocation, invocation.command(), limit, cancel)
}

/// Runs a command in this directory, like [`run`].
///
/// # Errors
/// As [`run`].
pub fn run_in(
    directory: &Path,
    invocation: &Invocation,
    limit: Duration,
    cancel: &Cancel,
) -> Result<Output, CommandError> {
    let mut command = invocation.command();
    command.current_dir(directory);
    run_to_end(invocation, command, limit, cancel)
}

fn run_to_end(
    invocation: &Invocation,
    mut command: Command,
    limit: Duration,
    cancel: &Cancel,
) -> Result<Output, CommandError> {
    trace::start(invocation);
    let program = invocation.name();
    let failed = |source| CommandError::Start { program: program.clone(), source };
    let confinement =
        Confinement { passed: Vec::new(), place: Place::OwnGroup, lifetime: Lifetime::ThisThreads };
    confine(&mut command, confinement);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let stdout = Capture::start(child.stdout.take(), Keep::First(STDOUT_BYTES));
    let stderr = Capture::start(child.stderr.take(), Keep::Last(STDERR_BYTES));
    let ended = wait(&child, &program, limit, cancel, &stdout);
    // The child has not been reaped yet, so its pid still belongs to its group and to no other.
    // Everything that it left running ends with it.
    if let Ok(leader) = i32::try_from(child.id())
        && let Some(group) = Pid::from_raw(leader)
    {
        // Fails if all of them are gone.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let status = child.wait().map_err(failed)?;
    ended?;
    // A process that has left the group may keep the pipes open indefinitely.
    let stdout = stdout.finish(LAST_WORDS);
    let stderr = String::from_utf8_lossy(&stderr.finish(LAST_WORDS)).into_owned();
    if !status.success() {
        return Err(CommandError::Failed { program, status, stderr });
    }
    Ok(Output { stdout, stderr })
}

/// Starts a command in a session of its own, so that neither Ctrl-C nor this process's end reaches
/// it. `log` receives its stdout and stderr; each descriptor in `passed` is inherited under its own
/// number.
///
/// # Errors
/// [`CommandError::Start`].
pub fn spawn_detached(
    invocation: &Invocation,
    log: File,
    passed: &[OwnedFd],
    lifetime: Lifetime,
) -> Result<Child, CommandError> {
    trace::start(invocation);
    let failed = |source| CommandError::Start { program: invocation.name(), source };
    let mut command = invocation.command();
    command.stdout(log.try_clone().map_err(failed)?).stderr(log);
    let passed = passed.iter().map(AsRawFd::as_raw_fd).collect();
    confine(&mut command, Confinement { passed, place: Place::OwnSession, lifetime });
    command.spawn().map_err(failed)
}

/// Starts a program of the user's own, such as a browser, in a process group of its own. It has all
/// of the user's rights, outlives castra, and shows no output.
///
/// # Errors
/// Returns [`CommandError::Start`].
pub fn spawn_for_user(invocation: &Invocation) -> Result<Child, CommandError> {
    trace::start(invocation);
    let mut command = invocation.command();
    command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let failed = |source| CommandError::Start { program: invocation.name(), source };
    command.spawn().map_err(failed)
}

/// Waits for the end of a child, without reaping it.
fn wait(
    child: &Child,
    program: &str,
    limit: Duration,
    cancel: &Cancel,
    stdout: &Capture,
) -> Result<(), CommandError> {
    let started = Instant::now();
    let failed = |source| CommandError::Start { program: program.to_owned(), source };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    // `NOWAIT` leaves the child unreaped: its pid stays its own until its whole group is killed.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        match rustix::process::waitid(WaitId::Pid(pid), options) {
            Ok(None) | Err(Errno::INTR) => {}
            Ok(Some(_)) if !stdout.is_too_much() => return Ok(()),
            Ok(Some(_)) => {}
            Err(error) => return Err(failed(error.into())),
        }
        cancel.check()?;
        if stdout.is_too_much() {
            return Err(CommandError::TooMuch { program: program.to_owned() });
        }
        if started.elapsed() >= limit {
            return Err(CommandError::TooSlow { program: program.to_owned(), limit });
        }
        thread::sleep(POLL);
    }
}

/// Returns the last lines of a stderr, to be appended to a message.
fn said(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(3)..];
    if last.is_empty() { String::new() } else { format!(": {}", last.join(" / ")) }
}

#[cfg(test)]
mod tests {
    use super::confine::close_on_exec;
    use super::*;

    const LIMIT: Duration = Duration::from_secs(600);

    fn sh(script: &str) -> Invocation {
        Invocation::new("/bin/sh").args(["-c", script])
    }

    #[test]
    fn output_comes_back() {
        let output = run(&sh("echo out; echo err >&2"), LIMIT, &Cancel::new()).expect("runs");
        assert_eq!(
            (output.stdout.as_slice(), output.stderr.as_str()),
            (b"out\n".as_slice(), "err\n")
        );
    }

    #[test]
    fn a_failure_quotes_stderr() {
        let error =
            run(&sh("echo no such disk >&2; exit 3"), LIMIT, &Cancel::new()).expect_err("fails");
        assert!(error.to_string().contains("no such disk"), "{error}");
    }

    #[test]
    fn a_slow_command_is_ended() {
        let limit = Duration::from_millis(50);
        let error = run(&sh("exec sleep 60"), limit, &Cancel::new()).expect_err("is too slow");
        assert!(matches!(error, CommandError::TooSlow { .. }));
    }

    #[test]
    fn a_cancelled_command_is_ended() {
        let cancel = Cancel::new();
        cancel.cancel();
        let error = run(&sh("exec sleep 60"), LIMIT, &cancel).expect_err("is interrupted");
        assert!(matches!(error, CommandError::Interrupted(_)));
    }

    #[test]
    fn a_grandchild_that_holds_the_pipe_blocks_no_caller() {
        let limit = Duration::from_millis(300);
        // One in the group, which is killed, and one that has left it, whose pipe is abandoned.
        for script in
            ["sleep 3599 & echo $!; wait", "setsid sleep 30 & wait", "setsid sleep 30 & exit 0"]
        {
            let started = Instant::now();
            let ended = run(&sh(script), limit, &Cancel::new());
            assert_eq!(ended.is_ok(), script.ends_with("exit 0"), "{ended:?}");
            assert!(
                started.elapsed() < Duration::from_secs(25),
                "{script}: {:?}",
                started.elapsed()
            );
        }
    }

    #[test]
    fn what_a_helper_started_ends_with_it() {
        let output =
            run(&sh("sleep 3598 >/dev/null 2>&1 & echo $!"), LIMIT, &Cancel::new()).expect("runs");
        let pid: i32 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number");
        let pid = Pid::from_raw(pid).expect("a number");
        let started = Instant::now();
        // A subreaper or init reaps it some time later.
        while rustix::process::test_kill_process(pid).is_ok() && !is_zombie(pid) {
            assert!(started.elapsed() < Duration::from_secs(60), "it still runs");
            thread::sleep(POLL);
        }
    }

    fn is_zombie(pid: Pid) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        status.is_ok_and(|status| status.contains(") Z "))
    }

    #[test]
    fn endless_output_is_bounded() {
        let error = run(&sh("exec yes"), LIMIT, &Cancel::new()).expect_err("is ended");
        assert!(matches!(error, CommandError::TooMuch { .. }), "{error}");
        let script = "head -c 9000000 /dev/zero | tr '\\0' x >&2; echo last >&2; exit 1";
        match run(&sh(script), LIMIT, &Cancel::new()) {
            Err(CommandError::Failed { stderr, .. }) => {
                assert_eq!((stderr.len(), stderr.ends_with("xlast\n")), (STDERR_BYTES, true));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn programs_are_found_on_the_given_path_only() {
        let environment = Environment::of([("PATH", "/nonexistent:/bin")]);
        assert_eq!(find_program(&environment, "sh"), Some(PathBuf::from("/bin/sh")));
        assert_eq!(find_program(&Environment::default(), "sh"), None);
        let here = Environment::of([("PATH", ".:tests:../../../../../../../bin")]);
        assert_eq!(find_program(&here, "sh"), None);
        assert!(find_program(&environment, "src/../build.rs").is_none(), "it is no program");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_child_gets_what_it_is_given_and_nothing_else() {
        // As if this process had been started with a foreign descriptor.
        let foreign = File::open("/etc/passwd").expect("opens");
        close_on_exec(foreign.as_raw_fd(), false).expect("set");
        let script = "pwd; umask; grep NoNewPrivs /proc/self/status; readlink /proc/$$/fd/*; echo; \
            /usr/bin/env";
        let invocation = sh(script).environment(Environment::of([("GIVEN", "1")]));
        let output = run(&invocation, LIMIT, &Cancel::new()).expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.starts_with("/\n0077\nNoNewPrivs:\t1\n"), "{text}");
        assert!(
            text.contains("GIVEN=1") && !text.contains("HOME=") && !text.contains("CARGO"),
            "{text}"
        );
        assert!(!text.contains("/etc/passwd"), "{text}");
    }
}
