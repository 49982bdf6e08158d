//! Attributes of the agent's process and of the programs that it starts.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::OFlags;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, setpriority_process, setrlimit};

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
    grow_memory_in_large_steps();
    // A kernel that refuses leaves an agent that works until memory runs out.
    let _ = kernel_fs.proc.write("self/oom_score_adj", NEVER_KILL);
    Ok(())
}

/// Has the allocator ask the kernel for memory seldom: by default it does so for each page and for
/// each large buffer, and then returns what it does not need at once.
#[expect(unsafe_code, reason = "no library wraps mallopt")]
fn grow_memory_in_large_steps() {
    const STEP_BYTES: libc::c_int = 1024 * 1024;
    let parameters = [
        (libc::M_TOP_PAD, STEP_BYTES),
        (libc::M_MMAP_THRESHOLD, STEP_BYTES),
        (libc::M_TRIM_THRESHOLD, 4 * STEP_BYTES),
    ];
    for (parameter, value) in parameters {
        // SAFETY: this only sets a number of the allocator's.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Scheduling priority of the agent's threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Priority of any other program.
    Ordinary,
    /// Above whatever else a guest that has just been restored finds to do.
    First,
}

impl Priority {
    fn nice(self) -> i32 {
        match self {
            Self::Ordinary => 0,
            Self::First => -20,
        }
    }

    /// Gives all threads of the agent this priority. Threads that they start inherit it.
    pub(crate) fn set(self, kernel_fs: &KernelFs) {
        // Where the kernel schedules whole sessions, that of the agent (`sched(7)`).
        let _ = kernel_fs.proc.write("self/autogroup", &self.nice().to_string());
        for thread in kernel_fs.proc.names("self/task").unwrap_or_default() {
            let thread = thread.parse().ok().and_then(Pid::from_raw);
            // A thread that has ended needs none.
            let _ = thread.map(|id| setpriority_process(Some(id), self.nice()));
        }
    }
}

/// Directories of the image's programs.
const IMAGE_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Returns `true` if the image has a program.
pub(crate) fn has_image_program(name: &str) -> bool {
    IMAGE_PATH.split(':').any(|directory| Path::new(directory).join(name).is_file())
}

/// Returns the command for a program of the image, to be run silently and as an ordinary process.
#[expect(unsafe_code, reason = "pre_exec is the only way to act between fork and exec")]
pub(crate) fn image_program(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(arguments).env_clear().env("PATH", IMAGE_PATH);
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

/// Makes a process that the agent has just started an ordinary one: like any other for the
/// scheduler and the OOM killer, and with the usual limit on descriptors. Async-signal-safe, for
/// use before it executes its program.
///
/// # Errors
/// `/proc` is missing or refuses.
pub(crate) fn be_ordinary() -> io::Result<()> {
    if let Some(inherited) = INHERITED_LIMIT.get() {
        setrlimit(Resource::Nofile, *inherited)?;
    }
    // A kernel that refuses leaves a process that is preferred.
    let _ = setpriority_process(None, Priority::Ordinary.nice());
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(c"/proc/self/oom_score_adj", flags, rustix::fs::Mode::empty())?;
    rustix::io::write(&file, b"0")?;
    Ok(())
}
