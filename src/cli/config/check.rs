//! `castra config check`: all problems of a `castra.toml`, and of this machine for it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use castra_engine::config::{
    self, Diagnostic, Diagnostics, Finding, Machine, PortForward, Severity, VmDefinition,
};
use castra_engine::context::{RuntimeContext, working_directory};
use castra_engine::error::{Explain as _, Kind, Result};
use castra_engine::layout::ProjectLayout;
use castra_engine::vm::{VmError, check_own_disk, check_port};
use schemars::JsonSchema;
use serde::Serialize;

use super::printer::Printer;
use super::{CliError, exit};
use crate::cli::context::CommandContext;

/// The result of `castra config check`.
#[derive(Serialize, JsonSchema)]
pub(in super::super) struct ConfigChecked {
    /// The file; `null` if there is none, and the default project needs none.
    file: Option<PathBuf>,
    /// True if there is no error; warnings do not count.
    usable: bool,
    /// Findings, in the order of the file.
    diagnostics: Vec<DiagnosticView>,
}

/// A problem at a place in the file.
#[derive(Serialize, JsonSchema)]
struct DiagnosticView {
    severity: SeverityView,
    /// The problem.
    message: String,
    /// A short label for the place.
    label: Option<String>,
    /// A next step.
    hint: String,
    /// First character of the place.
    start: PositionView,
    /// End of the place, after its last character.
    end: PositionView,
    /// Another place that is involved.
    related: Option<RelatedView>,
}

/// Severity of a problem.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum SeverityView {
    /// The file cannot be used.
    Error,
    /// The file can be used.
    Warning,
}

/// A place in the file.
#[derive(Serialize, JsonSchema)]
struct PositionView {
    /// Line, counted from 1.
    line: usize,
    /// Column in characters, counted from 1.
    column: usize,
}

/// Another place that is involved.
#[derive(Serialize, JsonSchema)]
struct RelatedView {
    /// Label of the place.
    label: String,
    start: PositionView,
    end: PositionView,
}

/// Prints all problems of the file, and exits with 65 if one of them is an error.
pub(super) fn run(context: &CommandContext) -> Result<ExitCode> {
    let directory = working_directory()?;
    let host = Host(&context.runtime);
    let checked = config::with_surroundings(&directory, &context.runtime, |surroundings| {
        config::check(&context.config_options(), &directory, surroundings, &host)
    })?;
    let diagnostics = &checked.diagnostics;
    let usable = !diagnostics.has_errors();
    let result = ConfigChecked {
        file: checked.file.clone(),
        usable,
        diagnostics: diagnostics.iter().map(|one| view(one, diagnostics)).collect(),
    };
    if context.printer.is_json() {
        context.printer.json(&result).map_err(CliError::from)?;
    } else if !diagnostics.is_empty() {
        // The messages' quotes were sanitised when they were made.
        context
            .printer
            .styled_result(&format!("{}\n", diagnostics.render(true)))
            .map_err(CliError::from)?;
    }
    conclude(checked.file.as_deref(), diagnostics, context.printer);
    Ok(if usable { ExitCode::SUCCESS } else { exit::of_kind(Kind::Data) })
}

fn conclude(file: Option<&Path>, diagnostics: &Diagnostics, printer: &Printer) {
    let Some(file) = file else {
        return printer.tip(
            "There is no castra.toml here, and the default VM needs none. `castra init` writes \
            one.",
        );
    };
    match (diagnostics.has_errors(), diagnostics.is_empty()) {
        (true, _) => {
            printer.tip(&format!("\n{} cannot be used: {}", file.display(), diagnostics.summary()))
        }
        (false, false) => {
            printer.tip(&format!("\n{} can be used: {}", file.display(), diagnostics.summary()))
        }
        (false, true) => printer.success(&format!("{} is valid", file.display())),
    }
}

/// Host on which disks and ports are checked.
struct Host<'a>(&'a RuntimeContext);

impl Machine for Host<'_> {
    fn disk(&self, vm: &VmDefinition, path: &Path) -> Option<Finding> {
        check_own_disk(vm, path, self.0).err().map(|error| finding(Severity::Error, &error))
    }

    fn port(
        &self,
        vm: &VmDefinition,
        forward: &PortForward,
        state: &ProjectLayout,
    ) -> Option<Finding> {
        // The process that has a port now may be gone by the next `up`.
        check_port(&vm.name, *forward, state).err().map(|error| finding(Severity::Warning, &error))
    }
}

fn finding(severity: Severity, error: &VmError) -> Finding {
    Finding { severity, message: error.to_string(), help: error.hint().unwrap_or_default() }
}

fn view(diagnostic: &Diagnostic, all: &Diagnostics) -> DiagnosticView {
    let range = |span| {
        let (start, end) = all.positions(span);
        let view = |at: config::Position| PositionView { line: at.line, column: at.column };
        (view(start), view(end))
    };
    let (start, end) = range(&diagnostic.span);
    DiagnosticView {
        severity: match diagnostic.severity {
            Severity::Error => SeverityView::Error,
            Severity::Warning => SeverityView::Warning,
        },
        message: diagnostic.message.clone(),
        label: Some(diagnostic.label.clone()).filter(|label| !label.is_empty()),
        hint: diagnostic.help.clone(),
        start,
        end,
        related: diagnostic.related.as_ref().map(|(span, label)| {
            let (start, end) = range(span);
            RelatedView { label: label.clone(), start, end }
        }),
    }
}
