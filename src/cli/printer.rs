//! The one that prints: results on stdout for pipes, everything else on stderr, and only as much as was asked for.
//!
//! Nothing that comes from elsewhere drives the terminal: all text is made harmless here, before it is styled. What a
//! guest's command writes (`exec`, `shell`, `run`) is its own and does not come by here.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::config::{ConfigError, Diagnostics};
use crate::context::Environment;
use crate::error::Error;
use crate::harmless::{harmless_json, harmless_lines, harmless_styled};
use crate::report::Reporter;

use super::args::Verbosity;
use super::error::CliError;
use super::json::{self, Document, JsonReporter};
use super::plain::PlainReporter;
use super::terminal::TerminalReporter;

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();
const BOLD: Style = Style::new().bold();

/// How good a line of a result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Good,
    Note,
    Warning,
    Problem,
}

/// Prints. anstream takes the colours out where `NO_COLOR` or a pipe asks for it.
pub(super) struct Printer {
    verbosity: Verbosity,
    json: bool,
    terminal: Option<Arc<TerminalReporter>>,
    told_project: AtomicBool,
}

impl Printer {
    pub(super) fn new(verbosity: Verbosity, json: bool, environment: &Environment) -> Self {
        let dumb = environment.text("TERM").is_none_or(|terminal| terminal == "dumb");
        let draws = io::stderr().is_terminal() && !dumb && !json && verbosity != Verbosity::Quiet;
        let terminal = draws.then(|| Arc::new(TerminalReporter::new(verbosity)));
        Self { verbosity, json, terminal, told_project: AtomicBool::new(false) }
    }

    /// One that says nothing; for a second look at something whose first look was told of.
    pub(super) fn quiet() -> Self {
        Self { verbosity: Verbosity::Quiet, json: false, terminal: None, told_project: AtomicBool::new(true) }
    }

    /// Who hears the library's events.
    pub(super) fn reporter(&self) -> Arc<dyn Reporter> {
        match &self.terminal {
            Some(terminal) => Arc::clone(terminal) as Arc<dyn Reporter>,
            None if self.json => Arc::new(JsonReporter::new(self.verbosity)),
            None => Arc::new(PlainReporter::new(self.verbosity)),
        }
    }

    /// Part of the command's result, on stdout. Tells whether anybody still reads it.
    ///
    /// # Errors
    /// Those of stdout; a reader that has gone away is none.
    pub(super) fn result(&self, text: &str) -> io::Result<bool> {
        self.styled_result(&harmless_lines(text))
    }

    /// The same for text with styles in it. What comes from elsewhere was made harmless before it was put there.
    ///
    /// # Errors
    /// As for [`Self::result`].
    pub(super) fn styled_result(&self, text: &str) -> io::Result<bool> {
        let mut stdout = anstream::stdout().lock();
        match stdout.write_all(harmless_styled(text).as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// The command's result, as one JSON document where that is asked for, else as text. Tells whether anybody still reads
    /// it.
    ///
    /// # Errors
    /// Those of stdout.
    pub(super) fn show(&self, content: &impl Serialize, text: &str) -> Result<bool, CliError> {
        Ok(if self.json { self.json(content)? } else { self.result(text)? })
    }

    /// The command's result as one JSON document, whatever was asked for.
    ///
    /// # Errors
    /// Those of stdout.
    pub(super) fn json(&self, content: &impl Serialize) -> io::Result<bool> {
        let mut text = serde_json::to_string_pretty(&Document::new(content))?;
        text.push('\n');
        self.result(&harmless_json(&text))
    }

    /// Returns `true` once: a command reports its project only the first time that it looks for it.
    pub(super) fn is_first_look(&self) -> bool {
        !self.told_project.swap(true, Ordering::Relaxed)
    }

    /// Whether JSON was asked for.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// A heading in a result.
    pub(super) fn heading(&self, text: &str) -> String {
        format!("{BOLD}{text}{BOLD:#}\n")
    }

    /// A mark in front of a line of a result.
    pub(super) fn mark(&self, mark: Mark) -> String {
        match mark {
            Mark::Good => format!("{GREEN}✓{GREEN:#}"),
            Mark::Note => "·".to_owned(),
            Mark::Warning => format!("{YELLOW}!{YELLOW:#}"),
            Mark::Problem => format!("{RED}✗{RED:#}"),
        }
    }

    /// Something good, on stderr. Programs learn of it from the result.
    pub(super) fn success(&self, text: &str) {
        if self.speaks_to_people() {
            self.line(&format!("{GREEN}✓{GREEN:#} {}", harmless_lines(text)));
        }
    }

    /// Something useful to know next, on stderr.
    pub(super) fn tip(&self, text: &str) {
        if self.speaks_to_people() {
            self.line(&harmless_lines(text));
        }
    }

    /// Something odd that stops nothing, on stderr.
    pub(super) fn warning(&self, text: &str) {
        if self.speaks_to_people() {
            self.line(&format!("{YELLOW}warning{YELLOW:#}: {}", harmless_lines(text)));
        } else if self.verbosity > Verbosity::Quiet {
            write_json_line(&json::warning_line(text));
        }
    }

    /// What is odd about a configuration, each at its place.
    pub(super) fn diagnostics(&self, diagnostics: &Diagnostics) {
        if diagnostics.is_empty() {
            return;
        }
        if self.speaks_to_people() {
            self.line(&diagnostics.render(true));
        } else if self.verbosity > Verbosity::Quiet {
            write_json_line(&json::warning_line(&diagnostics.render(false)));
        }
    }

    /// A failure: message, each cause once, hint.
    pub(super) fn error(&self, error: &Error) {
        if self.json {
            return write_json_line(&json::error_line(error));
        }
        if let Some(ConfigError::Invalid(diagnostics)) = error.downcast_ref() {
            return self.line(&diagnostics.render(true));
        }
        let mut text = format!("{RED}error{RED:#}: {}", harmless_lines(&error.to_string()));
        let mut said = error.to_string();
        for cause in error.causes() {
            let cause = cause.to_string();
            // A message that quotes its cause already need not be followed by it.
            if !said.contains(&cause) {
                text.push_str(&format!("\n  {BOLD}cause{BOLD:#}: {}", harmless_lines(&cause)));
                said = cause;
            }
        }
        if let Some(hint) = error.hint() {
            text.push_str(&format!(
                "\n  {BOLD}hint{BOLD:#}: {}",
                harmless_lines(&hint).replace('\n', "\n        ")
            ));
        }
        self.line(&text);
    }

    fn speaks_to_people(&self) -> bool {
        !self.json && self.verbosity > Verbosity::Quiet
    }

    fn line(&self, text: &str) {
        match &self.terminal {
            Some(terminal) => terminal.line(text),
            None => write_styled(text),
        }
    }
}

/// An answer to a program, on stdout as it is: no byte of it is taken for a colour.
///
/// # Errors
/// Those of stdout.
pub(super) fn answer(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// One line on stderr.
pub(super) fn write_line(text: &str) {
    write_styled(&harmless_lines(text));
}

/// One line of JSON on stderr, which says the same.
pub(super) fn write_json_line(text: &str) {
    write_styled(&harmless_json(text));
}

/// A line that may have styles in it. If stderr is gone there is nobody left to tell.
pub(super) fn write_styled(text: &str) {
    let mut stderr = anstream::stderr().lock();
    let _ = writeln!(stderr, "{}", harmless_styled(text));
}
