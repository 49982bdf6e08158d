//! The printer: results on stdout for pipes, everything else on stderr, and only as much as was
//! asked for.
//!
//! No foreign text can drive the terminal: all text is sanitised here before it is styled. The
//! output of a guest's command (`exec`, `shell`, `run`) is its own and does not pass through here.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use castra_engine::config::{ConfigError, Diagnostics};
use castra_engine::context::Environment;
use castra_engine::error::Error;
use castra_engine::report::Reporter;
use castra_engine::sanitize::{sanitize_json, sanitize_lines, sanitize_styled};
use serde::Serialize;

use super::error::CliError;
use super::json::{self, Document, JsonReporter};
use super::output::{Verbosity, write_json_line, write_styled};
use super::plain::PlainReporter;
use super::terminal::TerminalReporter;

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();
const BOLD: Style = Style::new().bold();

/// Rating of a line in a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Good,
    Note,
    Warning,
    Problem,
}

/// Printer of results and messages. anstream strips colours where `NO_COLOR` or a pipe asks for it.
pub(super) struct Printer {
    verbosity: Verbosity,
    json: bool,
    terminal: Option<Arc<TerminalReporter>>,
}

impl Printer {
    pub(super) fn new(verbosity: Verbosity, json: bool, environment: &Environment) -> Self {
        let dumb = environment.text("TERM").is_none_or(|terminal| terminal == "dumb");
        let draws = io::stderr().is_terminal() && !dumb && !json && verbosity != Verbosity::Quiet;
        let terminal = draws.then(|| Arc::new(TerminalReporter::new(verbosity)));
        Self { verbosity, json, terminal }
    }

    /// Returns the reporter that receives the library's events.
    pub(super) fn reporter(&self) -> Arc<dyn Reporter> {
        match &self.terminal {
            Some(terminal) => Arc::clone(terminal) as Arc<dyn Reporter>,
            None if self.json => Arc::new(JsonReporter::new(self.verbosity)),
            None => Arc::new(PlainReporter::new(self.verbosity)),
        }
    }

    /// Prints part of the command's result on stdout. Returns `false` if the reader is gone.
    ///
    /// # Errors
    /// Returns errors of stdout; a reader that is gone is not an error.
    pub(super) fn result(&self, text: &str) -> io::Result<bool> {
        self.styled_result(&sanitize_lines(text))
    }

    /// Prints text with styles as [`Self::result`] does. Foreign text in it must be sanitised
    /// already.
    ///
    /// # Errors
    /// Returns errors as [`Self::result`] does.
    pub(super) fn styled_result(&self, text: &str) -> io::Result<bool> {
        let mut stdout = anstream::stdout().lock();
        match stdout.write_all(sanitize_styled(text).as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Prints the command's result, as one JSON document under `--json` or else as text. Returns
    /// `false` if the reader is gone.
    ///
    /// # Errors
    /// Returns errors of stdout.
    pub(super) fn show(&self, content: &impl Serialize, text: &str) -> Result<bool, CliError> {
        Ok(if self.json { self.json(content)? } else { self.result(text)? })
    }

    /// Prints the command's result as one JSON document, even without `--json`.
    ///
    /// # Errors
    /// Returns errors of stdout.
    pub(super) fn json(&self, content: &impl Serialize) -> io::Result<bool> {
        let mut text = serde_json::to_string_pretty(&Document::new(content))?;
        text.push('\n');
        self.result(&sanitize_json(&text))
    }

    /// Returns `true` under `--json`.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Returns a heading of a result.
    pub(super) fn heading(&self, text: &str) -> String {
        format!("{BOLD}{text}{BOLD:#}\n")
    }

    /// Returns the mark in front of a line of a result.
    pub(super) fn mark(&self, mark: Mark) -> String {
        match mark {
            Mark::Good => format!("{GREEN}✓{GREEN:#}"),
            Mark::Note => "·".to_owned(),
            Mark::Warning => format!("{YELLOW}!{YELLOW:#}"),
            Mark::Problem => format!("{RED}✗{RED:#}"),
        }
    }

    /// Prints a success on stderr. Programs learn of it from the result.
    pub(super) fn success(&self, text: &str) {
        if self.is_for_people() {
            self.line(&format!("{GREEN}✓{GREEN:#} {}", sanitize_lines(text)));
        }
    }

    /// Prints a next step on stderr.
    pub(super) fn tip(&self, text: &str) {
        if self.is_for_people() {
            self.line(&sanitize_lines(text));
        }
    }

    /// Prints a warning on stderr.
    pub(super) fn warning(&self, text: &str) {
        if self.is_for_people() {
            self.line(&format!("{YELLOW}warning{YELLOW:#}: {}", sanitize_lines(text)));
        } else if self.verbosity > Verbosity::Quiet {
            write_json_line(&json::warning_line(text));
        }
    }

    /// Prints the warnings about a configuration, each with its place in the file.
    pub(super) fn diagnostics(&self, diagnostics: &Diagnostics) {
        if diagnostics.is_empty() {
            return;
        }
        if self.is_for_people() {
            self.line(&diagnostics.render(true));
        } else if self.verbosity > Verbosity::Quiet {
            write_json_line(&json::warning_line(&diagnostics.render(false)));
        }
    }

    /// Prints an error: message, each cause once, and hint.
    pub(super) fn error(&self, error: &Error) {
        if self.json {
            return write_json_line(&json::error_line(error));
        }
        if let Some(ConfigError::Invalid(diagnostics)) = error.downcast_ref() {
            return self.line(&diagnostics.render(true));
        }
        let mut text = format!("{RED}error{RED:#}: {}", sanitize_lines(&error.to_string()));
        let mut said = error.to_string();
        for cause in error.causes() {
            let cause = cause.to_string();
            // A cause that the message quotes already is not repeated.
            if !said.contains(&cause) {
                text.push_str(&format!("\n  {BOLD}cause{BOLD:#}: {}", sanitize_lines(&cause)));
                said = cause;
            }
        }
        if let Some(hint) = error.hint() {
            text.push_str(&format!(
                "\n  {BOLD}hint{BOLD:#}: {}",
                sanitize_lines(&hint).replace('\n', "\n        ")
            ));
        }
        self.line(&text);
    }

    /// Returns a function that prints a line on stderr, above any progress bars.
    pub(super) fn liner(&self) -> impl Fn(&str) + Send + Sync + 'static {
        let terminal = self.terminal.clone();
        move |text| match &terminal {
            Some(terminal) => terminal.line(text),
            None => write_styled(text),
        }
    }

    fn is_for_people(&self) -> bool {
        !self.json && self.verbosity > Verbosity::Quiet
    }

    fn line(&self, text: &str) {
        match &self.terminal {
            Some(terminal) => terminal.line(text),
            None => write_styled(text),
        }
    }
}
