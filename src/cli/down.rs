use std::process::ExitCode;

use crate::context::RuntimeContext;
use crate::error::{Error, Result};
use crate::vm::{self, DownOptions, IfSuspended, VmState};

use super::args::{Args, Down, StopOptions};
use super::printer::Printer;
use super::project;
use super::up::finish;

/// Stops VMs. One that does not run is a success: it is what was asked for.
pub(super) fn run(down: &Down, args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ExitCode> {
    let layout = project::layout(args, context, printer)?;
    let outcomes = vm::down(&down.vms, &layout, context, &options(&down.stop, &down.vms))?;
    if outcomes.is_empty() {
        printer.tip("There is no VM here.");
    }
    let stopped =
        |before: VmState| before.is_alive() || down.stop.discard_suspended && before == VmState::Suspended;
    let done = outcomes.into_iter().map(|(vm, before)| (vm, before.map(stopped).map_err(Error::from)));
    finish(done.collect(), &layout, printer)
}

/// How VMs of these names, or all, are stopped, as the library has it.
pub(super) fn options(stop: &StopOptions, vms: &[String]) -> DownOptions {
    let suspended = match (stop.discard_suspended, vms.is_empty()) {
        (true, _) => IfSuspended::Discard,
        // Whoever stops all wants nothing to run, and a suspended VM does not.
        (false, true) => IfSuspended::Leave,
        (false, false) => IfSuspended::Refuse,
    };
    DownOptions { force: stop.force, limit: stop.timeout, suspended }
}
