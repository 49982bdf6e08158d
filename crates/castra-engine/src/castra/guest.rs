//! Way into a guest, for commands and copies.

use std::ffi::OsStr;
use std::path::Path;

use super::Sandbox;
use crate::cancel::Cancel;
use crate::config::Proxy;
use crate::context::RuntimeContext;
use crate::error::Result;
use crate::guest::proxies_for_guest;
use crate::guest::ssh::{self, Copied, SshError, Target};
use crate::report::Event;
use crate::vm::{self, ProjectRef};

/// User that commands run as unless another one is named.
pub(super) const ROOT: &str = "root";

/// A guest that can be logged in to.
pub(super) trait Guest {
    /// Returns address and keys. Waits for a VM that is still starting.
    fn target(&self, user: &str) -> Result<Target>;

    /// Makes commands possible again after a failed login. Returns `false` if that cannot help.
    fn make_ready(&self) -> Result<bool>;

    /// Fails with the reason why the guest is silent, if one can be found.
    fn explain_silence(&self) -> Result<()>;

    /// Returns the context of the VM.
    fn context(&self) -> &RuntimeContext;
}

/// A VM with a record; without a name, the only one of its project.
#[derive(Clone, Copy)]
pub(super) struct Recorded<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) project: ProjectRef<'a>,
}

impl Guest for Recorded<'_> {
    fn target(&self, user: &str) -> Result<Target> {
        let record = vm::running_vm(self.name, self.project)?;
        let mut target = vm::ssh_target(&record, user, self.project.layout)?;
        if record.boot.is_some_and(|boot| boot.proxy == Proxy::Host) {
            target.environment = proxies_for_guest(&self.project.context.environment);
        }
        Ok(target)
    }

    fn make_ready(&self) -> Result<bool> {
        vm::make_ready(self.name, self.project)?;
        Ok(true)
    }

    fn explain_silence(&self) -> Result<()> {
        Ok(vm::explain_silence(self.name, self.project.layout)?)
    }

    fn context(&self) -> &RuntimeContext {
        self.project.context
    }
}

/// Guest of either kind of VM.
pub(super) enum Way<'a> {
    Recorded(Recorded<'a>),
    Sandbox(&'a Sandbox),
}

impl Way<'_> {
    pub(super) fn guest(&self) -> &dyn Guest {
        match self {
            Self::Recorded(vm) => vm,
            Self::Sandbox(vm) => *vm,
        }
    }
}

/// Does `work` in a guest. A guest that has rebooted has lost its keys: the first login is refused,
/// it gets its keys again, and the work is repeated once. The loss of the connection is explained,
/// where possible.
pub(super) fn reach<T>(
    guest: &dyn Guest,
    user: &str,
    mut work: impl FnMut(&Cancel, &Target) -> Result<T, SshError>,
) -> Result<T> {
    let cancel = &guest.context().cancel;
    let target = guest.target(user)?;
    match work(cancel, &target) {
        Err(error) if error.is_before_login() && guest.make_ready()? => {
            // The agent has just reported that commands can run.
            Ok(work(cancel, &target).map_err(|error| error.of_ready_guest(&target))?)
        }
        Err(SshError::Lost) => {
            guest.explain_silence()?;
            Err(SshError::Lost.into())
        }
        other => Ok(other?),
    }
}

/// Copies a file or directory into a guest.
pub(super) fn copy_in(guest: &dyn Guest, local: &Path, remote: &OsStr) -> Result<Copied> {
    let copied = reach(guest, ROOT, |cancel, target| {
        ssh::upload_until(cancel, target, local, remote, &mut |_| ())
    })?;
    for state in &copied.states {
        let state = state.display();
        let message = format!("skipping {state}: it holds VM disks and keys (name it to copy it)");
        guest.context().reporter.report(&Event::Warning { message });
    }
    complete(copied)
}

/// Copies a file or directory out of a guest.
pub(super) fn copy_out(guest: &dyn Guest, remote: &OsStr, local: &Path) -> Result<Copied> {
    complete(reach(guest, ROOT, |cancel, target| {
        ssh::download_until(cancel, target, remote, local, &mut |_| ())
    })?)
}

/// Fails with the first of a copy's failures.
fn complete(mut copied: Copied) -> Result<Copied> {
    if copied.failed.is_empty() { Ok(copied) } else { Err(copied.failed.swap_remove(0).into()) }
}
