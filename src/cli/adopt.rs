//! `castra adopt`: takes over a state directory that this user's castra did not make.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::size::ByteSize;
use castra_engine::state_root::{Adoption, StateRoot, VmFound};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::AdoptArgs;
use super::context::CommandContext;
use super::error::CliError;
use super::printer::Printer;

/// Outcome for a state directory that this user's castra did not make.
#[derive(Serialize, JsonSchema)]
pub(super) struct Adopted {
    /// The state directory.
    path: PathBuf,
    /// True if the directory was taken over; false if it was this user's already, if there is
    /// nothing in it, or if the user declined.
    adopted: bool,
    /// The VMs in it.
    vms: Vec<AdoptedVm>,
}

/// A VM that was, or would be, taken over.
#[derive(Serialize, JsonSchema)]
struct AdoptedVm {
    /// Name of the VM.
    name: String,
    /// True if SSH keys came along; they are moved to the quarantine.
    had_keys: bool,
    /// True if the VM runs.
    running: bool,
    /// True if the VM has saved memory.
    suspended: bool,
}

/// Shows what is in a state directory of unknown origin, asks, and takes it over.
pub(super) fn run(adopt: &AdoptArgs, context: &CommandContext) -> Result<ExitCode> {
    let root = state_root(context)?;
    let path = root.path().to_owned();
    let Some(adoption) = root.examine(&context.runtime)? else {
        context.printer.success(&format!("{} needs no adoption", path.display()));
        context.printer.show(&Adopted { path, adopted: false, vms: Vec::new() }, "")?;
        return Ok(ExitCode::SUCCESS);
    };
    let vms = adoption.vms.iter().map(view).collect();
    context.printer.tip(&description(&adoption, &root));
    let adopted = adopt.yes || may_adopt(context.printer)?;
    if adopted {
        adoption.adopt(&context.runtime)?;
        context.printer.success(&format!("{} is yours now", path.display()));
    } else {
        context.printer.tip("Nothing was changed.");
    }
    context.printer.show(&Adopted { path, adopted, vms }, "")?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the state directory that the configuration names.
fn state_root(context: &CommandContext) -> Result<StateRoot> {
    Ok(context.unchecked_config()?.state_root.clone())
}

fn description(adoption: &Adoption, root: &StateRoot) -> String {
    let mut text = format!(
        "{} ({}) was not created by your castra.",
        root.path().display(),
        ByteSize(adoption.size_bytes)
    );
    for vm in &adoption.vms {
        text += &format!("\n  VM {}", vm.name);
        text += match (vm.has_keys, vm.is_running, vm.is_suspended) {
            (true, true, _) => {
                ": running; its SSH keys will be quarantined, so log in again after \
                `castra down --force` and `castra up`"
            }
            (true, false, true) => {
                ": its saved memory uses SSH keys that will be quarantined; `castra up \
                --discard-suspended` boots from its disk"
            }
            (true, false, false) => {
                ": its SSH keys will be quarantined; the next boot makes new ones"
            }
            (false, ..) => "",
        };
    }
    if adoption.vms.is_empty() {
        text.push_str("\n  no VMs");
    }
    text + "\nIts disks, and the systems on them, will be used as they are."
}

fn may_adopt(printer: &Printer) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(CliError::NoConsent.into());
    }
    printer.tip("Take it over? [y/N]");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(CliError::Streams)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn view(vm: &VmFound) -> AdoptedVm {
    AdoptedVm {
        name: vm.name.clone(),
        had_keys: vm.has_keys,
        running: vm.is_running,
        suspended: vm.is_suspended,
    }
}
