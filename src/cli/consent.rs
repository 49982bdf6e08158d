//! Consent to what a `castra.toml`, which may come from a stranger, asks for: directories and
//! variables of this machine.

use std::io::{self, BufRead as _, IsTerminal as _};

use castra_engine::error::Result;
use castra_engine::guest::Mount;
use castra_engine::vm::{self, UngrantedSecret};

use super::args::ConsentArgs;
use super::context::CommandContext;
use super::error::CliError;

/// Asks for the consents that VMs need, if there is a terminal. Without an answer, each is an error
/// of its VM.
pub(super) fn ask(names: &[String], given: &ConsentArgs, context: &CommandContext) -> Result<()> {
    let config = context.config()?;
    if config.vms.iter().any(|vm| !vm.mounts.is_empty()) {
        let project = context.project()?;
        let mounts = vm::ungranted_mounts(names, config, project);
        if !mounts.is_empty() && (given.allow_mounts || may_mount(&mounts, context)?) {
            vm::grant_mounts(&mounts, project)?;
        }
    }
    let mut secrets = vm::ungranted_secrets(names, config, &context.runtime);
    // The steps of a VM that has a disk do not run. A consent is for others of the project, too.
    if !given.allow_secrets {
        secrets.retain(|secret| secret.is_of_new_disk);
    }
    if !secrets.is_empty() && (given.allow_secrets || may_see(&secrets, context)?) {
        vm::grant_secrets(&secrets, &context.runtime)?;
    }
    Ok(())
}

fn may_mount(mounts: &[(String, Mount)], context: &CommandContext) -> Result<bool> {
    let lines = mounts.iter().map(|(vm, mount)| format!("VM {vm} may {}", mount.wish()));
    agrees("castra.toml shows directories of this machine to its VMs:", lines, context)
}

fn may_see(secrets: &[UngrantedSecret], context: &CommandContext) -> Result<bool> {
    let line =
        |one: &UngrantedSecret| format!("{} for a step of VM {}: {}", one.name(), one.vm, one.step);
    let title = "castra.toml gives variables of castra's environment to steps, which can send them \
        anywhere:";
    agrees(title, secrets.iter().map(line), context)
}

fn agrees(
    title: &str,
    lines: impl Iterator<Item = String>,
    context: &CommandContext,
) -> Result<bool> {
    if !io::stdin().is_terminal() || context.printer.is_json() {
        return Ok(false);
    }
    let text = lines.fold(title.to_owned(), |text, line| format!("{text}\n  {line}"));
    context.printer.tip(&format!("{text}\nAllow it, now and later? [y/N]"));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(CliError::Streams)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
