use std::process::ExitCode;

use crate::context::RuntimeContext;
use crate::error::Result;
use crate::vm::{self, UpOptions};

use super::args::{Args, CloneArgs};
use super::outcome::finish;
use super::printer::Printer;
use super::project;
use super::up::bring_up;

/// Clones a suspended VM. A running one is suspended meanwhile and then resumed.
pub(super) fn run(
    clone: &CloneArgs,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<ExitCode> {
    let config = project::config(args, context, printer)?;
    let layout = &config.state_root.open(context)?;
    let (vm, new) = (clone.vm.as_str(), clone.new.as_str());
    let declared = config.vms.iter().find(|declared| declared.name == new);
    let overlay =
        declared.map_or_else(|| config.bounds.default_disk(new), |declared| declared.overlay.clone());
    vm::check_clone(vm, new, &overlay, layout)?;
    let runs = vm::state_of(&vm::recorded_vm(Some(vm), layout)?, layout).is_alive();
    if runs {
        for (_, outcome) in vm::suspend(&[vm.to_owned()], layout, context)? {
            outcome?;
        }
    }
    let made = vm::clone(vm, new, &overlay, layout, context);
    if runs {
        // Resume the original even if the clone failed.
        for (_, outcome) in bring_up(&[vm.to_owned()], args, context, printer, UpOptions::default())? {
            outcome?;
        }
    }
    made?;
    printer.tip(&format!("  castra up {new}    goes on from where {vm} was"));
    finish(vec![(new.to_owned(), Ok(true))], layout, printer)
}
