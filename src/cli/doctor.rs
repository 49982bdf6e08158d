//! `castra doctor`: prints what was checked on this machine, and fixes what is safe to fix.

use std::process::ExitCode;

use castra_engine::doctor::{self, Finding, Severity, Subject};
use castra_engine::error::{Kind, Result};
use castra_engine::sanitize::sanitize_lines;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::DoctorArgs;
use super::context::CommandContext;
use super::error::CliError;
use super::exit;
use super::output::Verbosity;
use super::printer::{Mark, Printer};

/// Outcome of `castra doctor`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Diagnosis {
    /// True if nothing keeps VMs from running.
    healthy: bool,
    /// Findings, area by area.
    findings: Vec<Finding>,
    /// Repairs that `--fix` made, in words.
    #[serde(rename = "mended")]
    fixed: Vec<String>,
}

/// Runs all checks, fixes what can be fixed if asked to, and prints the findings. Exits with 78 if
/// VMs cannot run; with `--strict`, if anything is out of order.
pub(super) fn run(doctor: &DoctorArgs, context: &CommandContext) -> Result<ExitCode> {
    let project = context.silent_config();
    let subject = Subject { context: &context.runtime, project: project.as_ref().copied() };
    let mut findings = doctor::run_checks(&subject)?;
    let mut fixed = Vec::new();
    if doctor.fix && findings.iter().any(|finding| finding.fixable) {
        fixed = doctor::fix(&findings, &context.runtime)?;
        findings = doctor::run_checks(&subject)?;
    }
    let worst = findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Good);
    let text = text(&findings, context.args.verbosity(), context.printer);
    let diagnosis = Diagnosis { healthy: worst < Severity::Problem, findings, fixed };
    if context.printer.is_json() {
        context.printer.json(&diagnosis).map_err(CliError::from)?;
    } else {
        context.printer.styled_result(&text).map_err(CliError::from)?;
    }
    diagnosis.fixed.iter().for_each(|done| context.printer.success(done));
    context.printer.tip(verdict(worst, &diagnosis.findings));
    let bearable = if doctor.strict { Severity::Note } else { Severity::Warning };
    Ok(if worst > bearable { exit::of_kind(Kind::HostNotCapable) } else { ExitCode::SUCCESS })
}

fn verdict(worst: Severity, findings: &[Finding]) -> &'static str {
    let fixable = findings.iter().any(|finding| finding.fixable);
    match (worst, fixable) {
        (Severity::Problem, _) => {
            "VMs will not run, or not all of them, until the problems above are fixed."
        }
        (Severity::Warning, true) => "VMs can run. `castra doctor --fix` fixes some of these.",
        (Severity::Warning, false) => "VMs can run.",
        (Severity::Good | Severity::Note, _) => "No problems found.",
    }
}

/// Formats one line per finding, below its area. Good findings appear only if more output is asked
/// for, but each area shows at least one.
fn text(findings: &[Finding], verbosity: Verbosity, printer: &Printer) -> String {
    let mut text = String::new();
    let mut area = None;
    for finding in findings {
        if verbosity == Verbosity::Quiet && finding.severity < Severity::Warning {
            continue;
        }
        if area != Some(finding.area) {
            text.push_str(&printer.heading(finding.area.name()));
            area = Some(finding.area);
        }
        let mark = match finding.severity {
            Severity::Good => Mark::Good,
            Severity::Note => Mark::Note,
            Severity::Warning => Mark::Warning,
            Severity::Problem => Mark::Problem,
        };
        let message = sanitize_lines(&finding.message).replace('\n', "\n      ");
        text.push_str(&format!("  {} {message}\n", printer.mark(mark)));
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("      {}\n", sanitize_lines(fix).replace('\n', "\n      ")));
        }
    }
    text
}
