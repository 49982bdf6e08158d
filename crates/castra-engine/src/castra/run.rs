//! One command in a throw-away VM.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::command::{Output, Settings, command_settings};
use super::sandbox::{Sandbox, SandboxBuilder, machine_settings};
use super::{TimedOut, guest};
use crate::error::Result;
use crate::guest::ssh::{GuestExit, Stream};

/// A command in a throw-away VM, from [`Castra::run`](super::Castra::run). The VM is started for
/// it, and deleted when it ends.
///
/// The exit of the command is a result and no error, whatever its code.
#[must_use]
pub struct Run {
    sandbox: SandboxBuilder,
    settings: Settings,
    copies: Vec<(PathBuf, OsString)>,
    limit: Option<Duration>,
}

impl Run {
    pub(super) fn new(sandbox: SandboxBuilder, settings: Settings) -> Self {
        Self { sandbox, settings, copies: Vec::new(), limit: None }
    }

    machine_settings!(sandbox);
    command_settings!();

    /// Copies a file or directory into the VM before the command runs. A relative `remote` path
    /// starts at root's home.
    pub fn copy_in(mut self, local: impl Into<PathBuf>, remote: impl AsRef<OsStr>) -> Self {
        self.copies.push((local.into(), remote.as_ref().to_owned()));
        self
    }

    /// Ends the command with its VM after this time, copies included. The boot has a limit of its
    /// own.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Runs the command and returns its exit and its output.
    ///
    /// # Errors
    /// Fails if the VM cannot be started or is lost, and with [`TimedOut`].
    pub fn output(self) -> Result<Output> {
        self.within(|settings, sandbox| settings.output(sandbox))
    }

    /// Runs the command and passes its output to `receive` as it arrives.
    ///
    /// # Errors
    /// Fails as [`Self::output`] does.
    pub fn stream(self, mut receive: impl FnMut(Stream, &[u8])) -> Result<GuestExit> {
        self.within(|settings, sandbox| settings.stream(sandbox, &mut receive))
    }

    /// Runs the command with this process's stdout and stderr.
    ///
    /// # Errors
    /// Fails as [`Self::output`] does.
    pub fn status(self) -> Result<GuestExit> {
        self.within(|settings, sandbox| settings.status(sandbox))
    }

    /// Runs `work` in the VM. At the limit the VM is ended, which ends the work.
    fn within<T>(self, work: impl FnOnce(&Settings, &Sandbox) -> Result<T>) -> Result<T> {
        let Self { sandbox, settings, copies, limit } = self;
        let sandbox = &sandbox.start()?;
        let work = || {
            for (local, remote) in &copies {
                guest::copy_in(sandbox, local, remote)?;
            }
            work(&settings, sandbox)
        };
        let Some(limit) = limit else { return work() };
        let is_late = &AtomicBool::new(false);
        let (done, is_done) = channel::<()>();
        let ended = thread::scope(|scope| {
            scope.spawn(move || {
                if is_done.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                    is_late.store(true, Ordering::Relaxed);
                    sandbox.end();
                }
            });
            let ended = work();
            // Wakes the thread above, whatever the work came to.
            drop(done);
            ended
        });
        match ended {
            Err(_) if is_late.load(Ordering::Relaxed) => Err(TimedOut { limit }.into()),
            other => other,
        }
    }
}
