//! Programs that tools run to their end.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use castra_engine::GuestExit;
use castra_engine::session::{
    GuestSession, KeptProgram, NewProgram, ProgramEvent, RunningProgram, SessionError,
};
use rmcp::schemars::JsonSchema;
use serde::Serialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::capture::Capture;
use super::failure::Failure;
use crate::sandboxes::Sandbox;

/// User who runs programs, and whose rights tools have on files.
pub(super) const USER: &str = "root";

/// Time limit of a program, unless its caller gives another one, and the longest, in seconds.
pub(super) const DEFAULT_LIMIT_SECS: u64 = 120;
pub(super) const MAX_LIMIT_SECS: u64 = 3600;

/// Bytes of stdout and of stderr that are returned, unless the caller says otherwise, and the most.
pub(super) const DEFAULT_OUTPUT_BYTES: usize = 16 * 1024;
pub(super) const MAX_OUTPUT_BYTES: usize = 1024 * 1024;

/// Time after its limit in which the guest reports that it killed a program.
const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// Program to run.
pub(super) struct Program {
    pub(super) arguments: Vec<OsString>,
    pub(super) directory: Option<String>,
    pub(super) stdin: Option<String>,
    pub(super) limit: Duration,
    /// Bytes of stdout and of stderr to return.
    pub(super) output_bytes: usize,
}

/// End of a program.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ProgramResult {
    /// Exit code; null if a signal ended it
    pub(super) exit_code: Option<u32>,
    /// Signal that ended it, such as SIGKILL
    pub(super) signal: Option<String>,
    /// True if it was killed because its time was over
    pub(super) timed_out: bool,
    /// Time that it took, in seconds
    pub(super) duration_secs: f64,
    /// Stdout, without the middle if it is too long
    pub(super) stdout: String,
    /// Bytes of stdout that were left out
    pub(super) stdout_left_out_bytes: u64,
    /// Stderr, without the middle if it is too long
    pub(super) stderr: String,
    /// Bytes of stderr that were left out
    pub(super) stderr_left_out_bytes: u64,
}

impl Program {
    /// Returns a program without stdin, with the default limits.
    pub(super) fn new<I: IntoIterator<Item: Into<OsString>>>(arguments: I) -> Self {
        Self {
            arguments: arguments.into_iter().map(Into::into).collect(),
            directory: None,
            stdin: None,
            limit: Duration::from_secs(DEFAULT_LIMIT_SECS),
            output_bytes: DEFAULT_OUTPUT_BYTES,
        }
    }

    /// Runs it to its end, to that of its time, or until it is cancelled.
    ///
    /// # Errors
    /// The program cannot be started, the sandbox is paused or stopped meanwhile, or it is
    /// cancelled.
    pub(super) async fn run(
        self,
        sandbox: &Sandbox,
        cancelled: impl Future<Output = ()>,
    ) -> Result<ProgramResult, Failure> {
        let started = Instant::now();
        let deadline = started + self.limit;
        let session = sandbox.session().await?;
        let new = NewProgram {
            user: USER.to_owned(),
            arguments: self.arguments,
            directory: self.directory.map(Into::into),
            has_stdin: self.stdin.is_some(),
            limit: Some(self.limit),
            ..NewProgram::default()
        };
        let running = session.start(new).await?;
        let pid = running.pid();
        let feeding = self.stdin.map(|text| Feeding::start(Arc::clone(&session), pid, text));
        let mut follower = Follower {
            sandbox,
            running,
            stdout: Capture::up_to(self.output_bytes),
            stderr: Capture::up_to(self.output_bytes),
        };
        let exit = tokio::select! {
            exit = follower.follow() => Some(exit?),
            () = sleep_until(deadline + REPORT_LIMIT) => None,
            () = cancelled => {
                kill(sandbox, pid).await;
                return Err(Failure::new("the call was cancelled, and its program killed"));
            }
        };
        drop(feeding);
        if exit.is_none() {
            kill(sandbox, pid).await;
        }
        Ok(follower.result(exit, started, deadline))
    }
}

/// Task that feeds a program's stdin, which ends with this value.
struct Feeding(JoinHandle<()>);

impl Feeding {
    fn start(session: Arc<GuestSession>, pid: u32, text: String) -> Self {
        Self(tokio::spawn(async move {
            // A program may end before it has read all.
            if let Ok(control) = session.control(KeptProgram::Pid(pid), true).await
                && control.send(text.into()).await.is_ok()
            {
                let _ = control.finish().await;
            }
        }))
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn kill(sandbox: &Sandbox, pid: u32) {
    let killed = async {
        let control = sandbox.session().await.ok()?.control(KeptProgram::Pid(pid), false).await;
        let control = control.ok()?;
        control.signal("KILL").await.ok()?;
        control.finish().await.ok()
    };
    // What has ended, or its VM, is as wanted.
    let _ = tokio::time::timeout(REPORT_LIMIT, killed).await;
}

/// Follower of a program's output.
struct Follower<'a> {
    sandbox: &'a Sandbox,
    running: RunningProgram,
    stdout: Capture,
    stderr: Capture,
}

impl Follower<'_> {
    async fn follow(&mut self) -> Result<GuestExit, Failure> {
        loop {
            match self.running.next().await {
                Ok(ProgramEvent::Stdout(bytes)) => self.stdout.take(&bytes),
                Ok(ProgramEvent::Stderr(bytes)) => self.stderr.take(&bytes),
                Ok(ProgramEvent::Ended(exit)) => return Ok(exit),
                Err(SessionError::Lost) => {
                    self.running = self.sandbox.follow_again(&self.running).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn result(self, exit: Option<GuestExit>, started: Instant, deadline: Instant) -> ProgramResult {
        let now = Instant::now();
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        let signal = match &exit {
            Some(GuestExit::Signal(name)) if name.starts_with("SIG") => Some(name.clone()),
            Some(GuestExit::Signal(name)) => Some(format!("SIG{name}")),
            _ => None,
        };
        let timed_out = exit.is_none() || (now >= deadline && signal.as_deref() == Some("SIGKILL"));
        ProgramResult {
            exit_code: exit.filter(|_| signal.is_none()).map(|exit| match exit {
                GuestExit::Code(code) => code,
                other => other.code().into(),
            }),
            signal,
            timed_out,
            duration_secs: (now - started).as_millis() as f64 / 1000.0,
            stdout: stdout.text,
            stdout_left_out_bytes: stdout.left_out_bytes,
            stderr: stderr.text,
            stderr_left_out_bytes: stderr.left_out_bytes,
        }
    }
}

impl ProgramResult {
    /// Returns the result as text.
    pub(super) fn text(&self) -> String {
        let end = match (self.timed_out, self.exit_code, &self.signal) {
            (true, ..) => "killed: its time was over (timeout_secs gives it more)".to_owned(),
            (_, Some(code), _) => format!("exit code {code}"),
            (_, None, Some(signal)) => format!("killed by {signal}"),
            (_, None, None) => "ended".to_owned(),
        };
        let mut text = format!("{end}, after {:.2} s\n", self.duration_secs);
        for (name, output) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !output.is_empty() {
                let newline = if output.ends_with('\n') { "" } else { "\n" };
                text.push_str(&format!("--- {name}\n{output}{newline}"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> ProgramResult {
        ProgramResult {
            exit_code: Some(3),
            signal: None,
            timed_out: false,
            duration_secs: 0.25,
            stdout: "out".to_owned(),
            stdout_left_out_bytes: 0,
            stderr: String::new(),
            stderr_left_out_bytes: 0,
        }
    }

    #[test]
    fn ends_are_named() {
        assert_eq!(result().text(), "exit code 3, after 0.25 s\n--- stdout\nout\n");
        let killed = ProgramResult {
            exit_code: None,
            signal: Some("SIGSEGV".to_owned()),
            stdout: String::new(),
            stderr: "err\n".to_owned(),
            ..result()
        };
        assert_eq!(killed.text(), "killed by SIGSEGV, after 0.25 s\n--- stderr\nerr\n");
        let late = ProgramResult { timed_out: true, stdout: String::new(), ..killed };
        assert!(late.text().starts_with("killed: its time was over"), "{}", late.text());
    }
}
