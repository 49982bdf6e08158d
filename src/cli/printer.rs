//! The one that prints: results on stdout for pipes, everything else on stderr, and only as much as was asked for.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use anstyle::{AnsiColor, Style};

use crate::config::{ConfigError, Diagnostics};
use crate::context::Environment;
use crate::error::Error;
use crate::report::Reporter;

use super::args::Verbosity;
use super::plain::PlainReporter;
use super::terminal::TerminalReporter;

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();
const BOLD: Style = Style::new().bold();

/// Prints. anstream takes the colours out where `NO_COLOR` or a pipe asks for it.
pub(super) struct Printer {
    verbosity: Verbosity,
    terminal: Option<Arc<TerminalReporter>>,
}

impl Printer {
    pub(super) fn new(verbosity: Verbosity, environment: &Environment) -> Self {
        let dumb = environment.text("TERM").is_none_or(|terminal| terminal == "dumb");
        let draws = io::stderr().is_terminal() && !dumb && verbosity != Verbosity::Quiet;
        Self { verbosity, terminal: draws.then(|| Arc::new(TerminalReporter::new(verbosity))) }
    }

    /// One that says nothing; for a second look at something whose first look was told of.
    pub(super) fn quiet() -> Self {
        Self { verbosity: Verbosity::Quiet, terminal: None }
    }

    /// Who hears the library's events.
    pub(super) fn reporter(&self) -> Arc<dyn Reporter> {
        match &self.terminal {
            Some(terminal) => Arc::clone(terminal) as Arc<dyn Reporter>,
            None => Arc::new(PlainReporter::new(self.verbosity)),
        }
    }

    /// Part of the command's result, on stdout. Tells whether anybody still reads it.
    ///
    /// # Errors
    /// Those of stdout; a reader that has gone away is none.
    pub(super) fn result(&self, text: &str) -> io::Result<bool> {
        let mut stdout = anstream::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// The command's result as one JSON value on stdout.
    ///
    /// # Errors
    /// Those of stdout.
    pub(super) fn json(&self, value: &impl serde::Serialize) -> io::Result<bool> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        self.result(&text)
    }

    /// Something good, on stderr.
    pub(super) fn success(&self, text: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.line(&format!("{GREEN}✓{GREEN:#} {text}"));
        }
    }

    /// Something useful to know next, on stderr.
    pub(super) fn tip(&self, text: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.line(text);
        }
    }

    /// Something odd that stops nothing, on stderr.
    pub(super) fn warning(&self, text: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.line(&format!("{YELLOW}warning{YELLOW:#}: {text}"));
        }
    }

    /// What is odd about a configuration, each at its place.
    pub(super) fn diagnostics(&self, diagnostics: &Diagnostics) {
        if self.verbosity > Verbosity::Quiet && !diagnostics.is_empty() {
            self.line(&diagnostics.render(true));
        }
    }

    /// A failure: message, each cause once, hint.
    pub(super) fn error(&self, error: &Error) {
        if let Some(ConfigError::Invalid(diagnostics)) = error.downcast_ref() {
            return self.line(&diagnostics.render(true));
        }
        let mut text = format!("{RED}error{RED:#}: {error}");
        let mut said = error.to_string();
        for cause in error.causes() {
            let cause = cause.to_string();
            // A message that quotes its cause already need not be followed by it.
            if !said.contains(&cause) {
                text.push_str(&format!("\n  {BOLD}cause{BOLD:#}: {cause}"));
                said = cause;
            }
        }
        if let Some(hint) = error.hint() {
            text.push_str(&format!("\n  {BOLD}hint{BOLD:#}: {}", hint.replace('\n', "\n        ")));
        }
        self.line(&text);
    }

    fn line(&self, text: &str) {
        match &self.terminal {
            Some(terminal) => terminal.line(text),
            None => write_line(text),
        }
    }
}

/// One line on stderr. If stderr is gone there is nobody left to tell.
pub(super) fn write_line(text: &str) {
    let mut stderr = anstream::stderr().lock();
    let _ = writeln!(stderr, "{text}");
}
