use std::process::ExitCode;

use crate::context::RuntimeContext;
use crate::error::{Error, Result};
use crate::layout::ProjectLayout;
use crate::vm::{self, Progress, UpOptions, UpOutcome, WaitFor};

use super::args::{Args, StartOptions, Up, Wait};
use super::error::CliError;
use super::exit;
use super::json;
use super::printer::Printer;
use super::project;

/// Starts VMs and prints what can be done with them.
pub(super) fn run(up: &Up, args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ExitCode> {
    let options = UpOptions { discard_suspended: up.discard_suspended, ..options(&up.start) };
    let outcomes = bring_up(&up.vms, args, context, printer, options)?;
    let started: Vec<&UpOutcome> = outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()).collect();
    if !started.is_empty() {
        printer.tip(&tips(&started));
    }
    let changed = |(vm, outcome): (String, Result<UpOutcome>)| (vm, outcome.map(|up| !up.ran_already));
    finish(
        outcomes.into_iter().map(changed).collect(),
        &project::layout(args, context, &Printer::quiet())?,
        printer,
    )
}

/// Returns the library's options for starting VMs.
pub(super) fn options(start: &StartOptions) -> UpOptions {
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
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
    options: UpOptions,
) -> Result<Vec<(String, Result<UpOutcome>)>> {
    let config = project::config(args, context, printer)?;
    let mut context = context.clone();
    context.mirrors.extend(config.mirrors.iter().cloned());
    let layout = config.state_root.open(&context)?;
    let plan = project::plan(&config, names, &layout, &project::records(&layout))?;
    let outcomes = vm::up(&plan, &layout, &context, options);
    Ok(outcomes.into_iter().map(|(vm, outcome)| (vm, outcome.map_err(Error::from))).collect())
}

/// Prints the outcome of each VM, `true` where it was changed: as JSON under `--json`, otherwise
/// only the failures. Returns the exit code of the first failure. An interruption is printed once,
/// however many VMs it stopped.
pub(super) fn finish(
    done: Vec<(String, Result<bool>)>,
    layout: &ProjectLayout,
    printer: &Printer,
) -> Result<ExitCode> {
    if printer.is_json() {
        let done = done.iter().map(|(vm, outcome)| (vm.as_str(), outcome));
        printer.json(&json::outcomes(done, layout)).map_err(CliError::from)?;
    }
    let errors: Vec<Error> = done.into_iter().filter_map(|(_, outcome)| outcome.err()).collect();
    let mut told = Vec::new();
    for error in &errors {
        let text = error.to_string();
        if !told.contains(&text) {
            printer.error(error);
            told.push(text);
        }
    }
    Ok(errors.first().map_or(ExitCode::SUCCESS, |error| exit::of_kind(error.kind())))
}

pub(super) fn tips(started: &[&UpOutcome]) -> String {
    // With a single VM its name may be left out.
    let name = |outcome: &UpOutcome| {
        if started.len() == 1 { String::new() } else { format!(" {}", outcome.record.name) }
    };
    let mut tips = Vec::new();
    for outcome in started {
        let waits = outcome.record.progress == Progress::Starting;
        let name = name(outcome);
        tips.push(match (outcome.record.has_agent(), waits) {
            (true, false) => format!("  castra shell{name}"),
            (true, true) => format!("  castra shell{name}    waits for the boot to finish"),
            (false, _) => format!("  castra logs -f{name}    shows its console"),
        });
    }
    tips.push("  castra down".into());
    tips.join("\n")
}
