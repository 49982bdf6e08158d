//! `castra down`: stops VMs.

use std::process::ExitCode;

use castra_engine::error::{Error, Result};
use castra_engine::vm::{self, DownOptions, IfSuspended, VmState};

use super::args::{DownArgs, StopArgs};
use super::context::CommandContext;
use super::outcome::finish;

/// Stops VMs. A VM that does not run counts as a success, since it is already stopped.
pub(super) fn run(down: &DownArgs, context: &CommandContext) -> Result<ExitCode> {
    let project = context.project()?;
    let outcomes = vm::down(&down.vms, project, &options(&down.stop, &down.vms))?;
    if outcomes.is_empty() {
        context.printer.tip("There are no VMs here.");
    }
    let stopped = |before: VmState| {
        before.is_alive() || down.stop.discard_suspended && before == VmState::Suspended
    };
    let done =
        outcomes.into_iter().map(|(vm, before)| (vm, before.map(stopped).map_err(Error::from)));
    finish(done.collect(), project.layout, context.printer)
}

/// Returns the library's options for stopping `vms`, or all VMs if it is empty.
pub(super) fn options(stop: &StopArgs, vms: &[String]) -> DownOptions {
    let suspended = match (stop.discard_suspended, vms.is_empty()) {
        (true, _) => IfSuspended::Discard,
        // Stopping all VMs means that none shall run, and a suspended one does not.
        (false, true) => IfSuspended::Leave,
        (false, false) => IfSuspended::Refuse,
    };
    DownOptions { force: stop.force, limit: stop.timeout, suspended }
}
