use std::process::ExitCode;

use crate::context::RuntimeContext;
use crate::error::{Error, Result};
use crate::vm::{self, DownOptions, IfSuspended, VmState};

use super::args::{Args, Down};
use super::printer::Printer;
use super::project;
use super::up::finish;

/// Stops VMs. One that does not run is a success: it is what was asked for.
pub(super) fn run(down: &Down, args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ExitCode> {
    let layout = project::layout(args, context, printer)?;
    let suspended = match (down.discard_suspended, down.vms.is_empty()) {
        (true, _) => IfSuspended::Discard,
        // Whoever stops all wants nothing to run, and a suspended VM does not.
        (false, true) => IfSuspended::Leave,
        (false, false) => IfSuspended::Refuse,
    };
    let options = DownOptions { force: down.force, limit: down.timeout, suspended };
    let outcomes = vm::down(&down.vms, &layout, context, &options)?;
    if outcomes.is_empty() {
        printer.tip("There is no VM here.");
    }
    let stopped =
        |before: VmState| before.is_alive() || down.discard_suspended && before == VmState::Suspended;
    let done = outcomes.into_iter().map(|(vm, before)| (vm, before.map(stopped).map_err(Error::from)));
    finish(done.collect(), &layout, printer)
}
