//! `castra clone`: clones a VM, with its memory and its disk.

use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::vm;

use super::args::CloneArgs;
use super::context::CommandContext;
use super::outcome::finish;

/// Clones a suspended VM. A running one is suspended meanwhile and then resumed.
pub(super) fn run(clone: &CloneArgs, context: &CommandContext) -> Result<ExitCode> {
    let config = context.config()?;
    let layout = context.layout()?;
    let (vm, new) = (clone.vm.as_str(), clone.new.as_str());
    let runtime = context.with_mirrors_of(config);
    vm::clone_running(vm, new, config, vm::ProjectRef::new(layout, &runtime))?;
    context.printer.tip(&format!("  castra up {new}    resumes it from where {vm} was"));
    finish(vec![(new.to_owned(), Ok(true))], layout, context.printer)
}
