//! `castra up`: starts VMs. [`bring_up`] serves other commands that need a running VM.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use castra_engine::config::ChosenImage;
use castra_engine::error::{Error, Result};
use castra_engine::vm::{self, BootRecord, Record, UpOptions, UpOutcome, WaitFor};

use super::args::{PortsToForward, StartArgs, UpArgs, Wait};
use super::context::CommandContext;
use super::error::CliError;
use super::mount::MountWord;
use super::outcome::{finish, tips};
use super::{consent, project};

/// Starts VMs and prints what can be done with them.
pub(super) fn run(up: &UpArgs, context: &CommandContext) -> Result<ExitCode> {
    let options = UpOptions { discard_suspended: up.discard_suspended, ..options(&up.start) };
    consent::ask(&up.vms, &up.consent, context)?;
    let is_first = Record::names(context.layout()?).is_empty();
    let mut outcomes = match project::chosen_image(context.args)? {
        Some(image) => with_image(&image, context, options)?,
        None => bring_up(&up.vms, context, options)?,
    };
    for (vm, outcome) in &mut outcomes {
        if outcome.is_ok()
            && let Err(error) = mount_all(vm, &up.mount, context)
                .and_then(|()| forward_listeners(vm, up.ports, context))
        {
            *outcome = Err(error);
        }
    }
    let started: Vec<&UpOutcome> =
        outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()).collect();
    if !started.is_empty() {
        context.printer.tip(&tips(&started, context)?);
        if is_first && up.mount.is_empty() && io::stderr().is_terminal() {
            suggest_mount(&started, context)?;
        }
    }
    let changed =
        |(vm, outcome): (String, Result<UpOutcome>)| (vm, outcome.map(|up| !up.ran_already));
    finish(outcomes.into_iter().map(changed).collect(), context.layout()?, context.printer)
}

/// Suggests a mount at the first start in a project whose `castra.toml` has none.
fn suggest_mount(started: &[&UpOutcome], context: &CommandContext) -> Result<()> {
    let config = context.config()?;
    let has_agent = |up: &&&UpOutcome| up.record.boot.as_ref().is_some_and(BootRecord::has_agent);
    if let Some(up) = started.iter().find(has_agent)
        && config.file.is_some()
        && config.vms.iter().all(|vm| vm.mounts.is_empty())
    {
        context.printer.tip(&suggestion(&up.record.name));
    }
    Ok(())
}

/// Returns the suggestion of a mount.
fn suggestion(vm: &str) -> String {
    format!(
        "  castra mount {vm} .:/src    lets it see this directory; `mounts` in castra.toml, too"
    )
}

/// Mounts the directories of the command line in a VM.
fn mount_all(vm: &str, mounts: &[MountWord], context: &CommandContext) -> Result<()> {
    for word in mounts {
        vm::mount(vm, &word.resolve(vm)?, context.project()?)?;
    }
    Ok(())
}

/// Forwards whatever listens in a VM, if the command line says so.
fn forward_listeners(
    vm: &str,
    ports: Option<PortsToForward>,
    context: &CommandContext,
) -> Result<()> {
    if ports == Some(PortsToForward::Auto) {
        vm::forward_listeners(vm, context.project()?)?;
    }
    Ok(())
}

/// Brings up this directory's VM on an image, and keeps the image for later commands, unless there
/// is a VM on another one.
fn with_image(
    image: &ChosenImage,
    context: &CommandContext,
    options: UpOptions,
) -> Result<Vec<(String, Result<UpOutcome>)>> {
    let (config, layout) = (context.config()?, context.layout()?);
    let vm = &config.vms[0].name;
    let recorded = Record::names(layout);
    if let Some(other) = recorded.first().filter(|_| !recorded.contains(vm)) {
        let (vm, root) = (other.clone(), config.root.clone());
        return Err(CliError::HasVm { vm, root }.into());
    }
    // Before there is a VM: a castra that is killed must not leave one that none finds.
    image.keep(config, &context.runtime)?;
    let outcomes = bring_up(&[], context, options);
    if !Record::names(layout).contains(vm) {
        ChosenImage::forget(layout);
    }
    outcomes
}

/// Returns the library's options for starting VMs.
pub(super) fn options(start: &StartArgs) -> UpOptions {
    let wait = match (start.no_wait, start.wait) {
        (true, _) => WaitFor::Nothing,
        (false, Wait::Ready) => WaitFor::Ready,
        (false, Wait::Services) => WaitFor::Services,
    };
    UpOptions { wait, boot_limit: start.boot_timeout, cold: start.cold, ..UpOptions::default() }
}

/// Brings up the named VMs, or all.
pub(super) fn bring_up(
    names: &[String],
    context: &CommandContext,
    options: UpOptions,
) -> Result<Vec<(String, Result<UpOutcome>)>> {
    let config = context.config()?;
    let runtime = context.with_mirrors_of(config);
    let project = vm::ProjectRef::new(context.layout()?, &runtime);
    let outcomes = vm::up_named(names, config, project, options)?;
    Ok(outcomes.into_iter().map(|(vm, outcome)| (vm, outcome.map_err(Error::from))).collect())
}
