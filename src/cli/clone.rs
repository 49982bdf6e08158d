//! `castra clone`: clones a VM, with its memory and its disk.

use std::process::ExitCode;

use crate::error::Result;
use crate::vm::{self, UpOptions};

use super::args::CloneArgs;
use super::context::CommandContext;
use super::outcome::finish;
use super::up::bring_up;

/// Clones a suspended VM. A running one is suspended meanwhile and then resumed.
pub(super) fn run(clone: &CloneArgs, context: &CommandContext) -> Result<ExitCode> {
    let config = context.config()?;
    let layout = context.layout()?;
    let (vm, new) = (clone.vm.as_str(), clone.new.as_str());
    let declared = config.vms.iter().find(|declared| declared.name == new);
    let overlay =
        declared.map_or_else(|| config.bounds.default_disk(new), |declared| declared.overlay.clone());
    vm::check_clone(vm, new, &overlay, layout)?;
    let runs = vm::state_of(&vm::recorded_vm(Some(vm), layout)?, layout).is_alive();
    if runs {
        for (_, outcome) in vm::suspend(&[vm.to_owned()], layout, &context.runtime)? {
            outcome?;
        }
    }
    let made = vm::clone(vm, new, &overlay, layout, &context.runtime);
    if runs {
        // Resume the original even if the clone failed.
        for (_, outcome) in bring_up(&[vm.to_owned()], context, UpOptions::default())? {
            outcome?;
        }
    }
    made?;
    context.printer.tip(&format!("  castra up {new}    goes on from where {vm} was"));
    finish(vec![(new.to_owned(), Ok(true))], layout, context.printer)
}
