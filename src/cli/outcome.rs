//! Outcome of a command that changes VMs: failures, JSON, exit code, and tips for the next command.

use std::collections::BTreeSet;
use std::process::ExitCode;

use castra_engine::error::{Error, Result};
use castra_engine::layout::ProjectLayout;
use castra_engine::vm::{Progress, Record, UpOutcome};

use super::context::CommandContext;
use super::error::CliError;
use super::exit;
use super::json;
use super::printer::Printer;

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
    let mut reported = Vec::new();
    for error in &errors {
        let text = error.to_string();
        if !reported.contains(&text) {
            printer.error(error);
            reported.push(text);
        }
    }
    Ok(errors.first().map_or(ExitCode::SUCCESS, |error| exit::of_kind(error.kind())))
}

/// Returns what can be done next with the VMs that were started. The only VM of a project needs no
/// name.
///
/// # Errors
/// Fails as the project's configuration and state do.
pub(super) fn tips(started: &[&UpOutcome], context: &CommandContext) -> Result<String> {
    let mut vms: BTreeSet<String> = Record::names(context.layout()?).into_iter().collect();
    vms.extend(context.config()?.vms.iter().map(|vm| vm.name.clone()));
    Ok(tips_among(started, vms.len()))
}

fn tips_among(started: &[&UpOutcome], vms: usize) -> String {
    let name = |outcome: &UpOutcome| {
        if vms <= 1 { String::new() } else { format!(" {}", outcome.record.name) }
    };
    let mut tips = Vec::new();
    for outcome in started {
        let waits = outcome.record.progress == Progress::Starting;
        let name = name(outcome);
        tips.push(match (outcome.record.runs_commands(), waits) {
            (true, false) => format!("  castra shell{name}"),
            (true, true) => format!("  castra shell{name}    waits for the boot to finish"),
            (false, _) => format!("  castra logs -f{name}    shows its console"),
        });
    }
    tips.push(match started {
        [only] => format!("  castra down{}", name(only)),
        _ => "  castra down".into(),
    });
    tips.join("\n")
}
