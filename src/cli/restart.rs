//! `castra restart`: stops VMs and starts them again.

use std::process::ExitCode;

use castra_engine::error::{Error, Result};
use castra_engine::vm::{self, UpOutcome, VmError};

use super::args::RestartArgs;
use super::context::CommandContext;
use super::outcome::{finish, tips};
use super::{down, up};

/// Stops VMs and starts them again, in parallel. The start is planned before anything is stopped,
/// so that a mistake in the configuration stops no running VM.
pub(super) fn run(restart: &RestartArgs, context: &CommandContext) -> Result<ExitCode> {
    let config = context.config()?;
    let runtime = &context.with_mirrors_of(config);
    let project = vm::ProjectRef::new(context.layout()?, runtime);
    let (down, up) = (down::options(&restart.stop, &restart.vms), up::options(&restart.start));
    let outcomes = vm::restart(&restart.vms, config, project, &down, up)?;
    let started: Vec<&UpOutcome> =
        outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()?.as_ref()).collect();
    if !started.is_empty() {
        context.printer.tip(&tips(&started, context)?);
    }
    // A VM that is suspended and was left so has not changed.
    let changed = |(vm, outcome): (String, std::result::Result<Option<UpOutcome>, VmError>)| {
        (vm, outcome.map(|started| started.is_some()).map_err(Error::from))
    };
    finish(outcomes.into_iter().map(changed).collect(), project.layout, context.printer)
}
