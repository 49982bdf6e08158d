//! Attributes of the agent's process and of the programs that it starts.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::OFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::kernel_fs::KernelFs;

/// `oom_score_adj` that exempts a process from the OOM killer (`proc(5)`).
const NEVER_KILL: &str = "-1000";

/// Limit on descriptors that the agent was started with. Programs that use `select(2)` rely on it.
static INHERITED_LIMIT: OnceLock<Rlimit> = OnceLock::new();

/// Makes the agent a daemon: a session of its own, stdin from `/dev/null`, stderr to the kernel's
/// log, exempt from the OOM killer, and with all descriptors that it may have.
pub(crate) fn settle(kernel_fs: &KernelFs) -> io::Result<()> {
    // Fails only if this process leads a group already, which is the desired state.
    let _ = rustix::process::setsid();
    let null = kernel_fs.dev.open("null", OFlags::RDWR)?;
    let log = kernel_fs.dev.open("kmsg", OFlags::WRONLY).unwrap_or(null.try_clone()?);
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&log)?;
    rustix::stdio::dup2_stderr(&log)?;
    raise_descriptor_limit();
    // A kernel that refuses leaves an agent that works until memory runs out.
    let _ = kernel_fs.proc.write("self/oom_score_adj", NEVER_KILL);
    Ok(())
}

/// Returns the command for a program of the image, to be run silently and as an ordinary process.
#[expect(unsafe_code, reason = "pre_exec is the only way to act between fork and exec")]
pub(crate) fn image_program(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A program that stays exempt from the OOM killer still runs.
    let in_child = || be_ordinary().or(Ok(()));
    // SAFETY: `be_ordinary` makes plain system calls; nothing is allocated or locked.
    unsafe { command.pre_exec(in_child) };
    command
}

/// Lets the agent have as many descriptors as it may: programs, relayed connections and those of
/// SSH all take some.
fn raise_descriptor_limit() {
    let inherited = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: inherited.maximum, maximum: inherited.maximum };
    // A kernel that refuses leaves an agent that serves fewer programs at a time.
    if setrlimit(Resource::Nofile, raised).is_ok() {
        let _ = INHERITED_LIMIT.set(inherited);
    }
}

/// Makes a process that the agent has just forked an ordinary one: as killable as any other for the
/// OOM killer, and with the usual limit on descriptors. Async-signal-safe, for use between fork and
/// exec.
///
/// # Errors
/// `/proc` is missing or refuses.
pub(crate) fn be_ordinary() -> io::Result<()> {
    if let Some(inherited) = INHERITED_LIMIT.get() {
        setrlimit(Resource::Nofile, *inherited)?;
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, rustix::fs::Mode::empty())?;
    rustix::io::write(&file, b"0")?;
    Ok(())
}
