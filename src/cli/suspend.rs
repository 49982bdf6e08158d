//! `castra suspend`: saves the memory of VMs to disk and stops them.

use std::process::ExitCode;

use castra_engine::error::{Error, Result};
use castra_engine::vm::{self, VmState};

use super::args::SuspendArgs;
use super::context::CommandContext;
use super::outcome::finish;

/// Suspends VMs. A VM that is suspended already counts as a success.
pub(super) fn run(suspend: &SuspendArgs, context: &CommandContext) -> Result<ExitCode> {
    let project = context.project()?;
    let outcomes = vm::suspend(&suspend.vms, project)?;
    if outcomes.is_empty() {
        context.printer.tip("No VM is running here.");
    }
    if let [(vm, Ok(_))] = outcomes.as_slice() {
        context.printer.tip(&format!("  castra up {vm}    resumes it"));
    }
    let done = outcomes
        .into_iter()
        .map(|(vm, before)| (vm, before.map(VmState::is_alive).map_err(Error::from)));
    finish(done.collect(), project.layout, context.printer)
}
