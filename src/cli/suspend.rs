use std::process::ExitCode;

use crate::context::RuntimeContext;
use crate::error::{Error, Result};
use crate::vm::{self, VmState};

use super::args::{Args, SuspendArgs};
use super::outcome::finish;
use super::printer::Printer;
use super::project;

/// Suspends VMs. A VM that is suspended already counts as a success.
pub(super) fn run(
    suspend: &SuspendArgs,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<ExitCode> {
    let layout = project::layout(args, context, printer)?;
    let outcomes = vm::suspend(&suspend.vms, &layout, context)?;
    if outcomes.is_empty() {
        printer.tip("No VM is running here.");
    }
    if let [(vm, Ok(_))] = outcomes.as_slice() {
        printer.tip(&format!("  castra up {vm}    goes on from here"));
    }
    let done =
        outcomes.into_iter().map(|(vm, before)| (vm, before.map(VmState::is_alive).map_err(Error::from)));
    finish(done.collect(), &layout, printer)
}
