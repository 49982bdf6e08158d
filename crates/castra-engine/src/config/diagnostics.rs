//! Problems of a `castra.toml`, shown at their place in the file.
//!
//! Validation collects every problem in [`Problems`] instead of stopping at the first, so that one
//! run shows all of them. [`Diagnostics`] keeps the file's text with them and renders them on
//! request:
//!
//! ```text
//! error: VM `dev` has 0 CPUs
//!  --> /home/ada/project/castra.toml:3:8
//!   |
//! 3 | cpus = 0
//!   |        ^ must be 1 to 255
//!   |
//!   = help: Write for instance `cpus = 2`.
//! ```

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet, normalize_untrusted_str};

use crate::managed::ArtifactSource;

/// Maximum number of rendered problems; the rest is only counted. The first ones explain the
/// others, and a terminal holds no more.
const MAX_SHOWN: usize = 20;

/// Maximum number of characters of the user's text that a message repeats: the snippet below it
/// shows the rest.
const MAX_QUOTED_CHARS: usize = 60;

/// Severity of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used; a part of it has no effect.
    Warning,
}

/// One problem at one place of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Severity of the problem.
    pub severity: Severity,
    /// Description of the problem, which names the thing.
    pub message: String,
    /// Place, as a byte range of the file's text.
    pub span: Range<usize>,
    /// A few words beside the underlined text; may be empty.
    pub label: String,
    /// Related place, with its label.
    pub related: Option<(Range<usize>, String)>,
    /// Next step, as complete sentences.
    pub help: String,
}

/// A place in a file, as editors count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column: the number of characters before the place on its line, plus 1.
    pub column: usize,
}

/// Problems of one file, in the file's order. Displays without colour.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diagnostics {
    file: PathBuf,
    text: Arc<str>,
    list: Vec<Diagnostic>,
    unpinned: Vec<UnpinnedArtifact>,
}

/// A file of an image that has a source but no digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnpinnedArtifact {
    /// Description of the file: ``the rootfs of the image `debian` ``.
    pub place: String,
    /// Source of the file.
    pub source: ArtifactSource,
}

/// A problem, described by the module that finds it.
pub(super) trait Problem: std::error::Error {
    /// Returns a few words for beside the underlined text.
    fn label(&self) -> String {
        String::new()
    }

    /// Returns a next step, as complete sentences.
    fn help(&self) -> String;
}

/// A problem of the machine with a configuration.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Finding {
    /// Severity of the problem.
    pub severity: Severity,
    /// Description of the problem, which names the thing.
    pub message: String,
    /// Next step, as complete sentences.
    pub help: String,
}

impl Problem for Finding {
    fn help(&self) -> String {
        self.help.clone()
    }
}

/// Collection of the problems that validation finds.
#[derive(Debug, Default)]
pub(super) struct Problems {
    list: Vec<Diagnostic>,
    unpinned: Vec<UnpinnedArtifact>,
}

impl Diagnostics {
    /// Returns `true` if there are no problems.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns the problems, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.list.iter()
    }

    /// Returns the files with a source and no digest, if no other error keeps the configuration
    /// from being used: then they can be fetched to find out their digests.
    pub fn only_unpinned(&self) -> Option<&[UnpinnedArtifact]> {
        (self.count(Severity::Error) == self.unpinned.len()).then_some(&self.unpinned)
    }

    /// Returns `true` if the file cannot be used.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// Returns the start and the end of a problem's span: on its first line, as it is shown.
    pub fn positions(&self, span: &Range<usize>) -> (Position, Position) {
        let shown = self.shown_span(span);
        let position = |offset: usize| {
            let before = &self.text[..offset];
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            Position {
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
            }
        };
        (position(shown.start), position(shown.end))
    }

    /// Returns the path of the file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Renders all problems with the lines they are about, separated by empty lines, without a
    /// final newline. With `colour`, ANSI styles mark severity and place.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut blocks: Vec<String> = self
            .shown()
            .into_iter()
            .map(|diagnostic| self.render_one(&renderer, diagnostic))
            .collect();
        if self.list.len() > MAX_SHOWN {
            blocks.push(format!("… and {} more.", self.list.len() - MAX_SHOWN));
        }
        blocks.join("\n\n")
    }

    /// Returns the numbers of problems, such as `2 errors, 1 warning`.
    pub fn summary(&self) -> String {
        let errors = self.count(Severity::Error);
        let warnings = self.count(Severity::Warning);
        let counted = |count: usize, noun: &str| match count {
            0 => None,
            1 => Some(format!("1 {noun}")),
            _ => Some(format!("{count} {noun}s")),
        };
        [counted(errors, "error"), counted(warnings, "warning")]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Returns the problems to be rendered: if there are too many, errors come before warnings.
    fn shown(&self) -> Vec<&Diagnostic> {
        let mut numbered: Vec<(usize, &Diagnostic)> = self.list.iter().enumerate().collect();
        numbered.sort_by_key(|(number, diagnostic)| (diagnostic.severity, *number));
        numbered.truncate(MAX_SHOWN);
        numbered.sort_by_key(|(number, _)| *number);
        numbered.into_iter().map(|(_, diagnostic)| diagnostic).collect()
    }

    fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|diagnostic| diagnostic.severity == severity).count()
    }

    fn render_one(&self, renderer: &Renderer, diagnostic: &Diagnostic) -> String {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut primary = AnnotationKind::Primary.span(self.shown_span(&diagnostic.span));
        if !diagnostic.label.is_empty() {
            primary = primary.label(&diagnostic.label);
        }
        let mut snippet = Snippet::source(&*self.text)
            .path(normalize_untrusted_str(&self.file.to_string_lossy()))
            .annotation(primary);
        if let Some((span, label)) = &diagnostic.related {
            snippet = snippet
                .annotation(AnnotationKind::Context.span(self.shown_span(span)).label(label));
        }
        let help = Level::HELP.message(normalize_untrusted_str(&diagnostic.help));
        renderer.render(&[level.primary_title(&diagnostic.message).element(snippet).element(help)])
    }

    /// Returns the first line of a span: a table's span covers all its lines, but its header
    /// identifies it. Adjusts the span to character boundaries, which the renderer requires.
    fn shown_span(&self, span: &Range<usize>) -> Range<usize> {
        let start = boundary_before(&self.text, span.start);
        let end = boundary_before(&self.text, span.end).max(start);
        let first_line =
            self.text[start..end].find(['\n', '\r']).map_or(end, |newline| start + newline);
        start..first_line
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl Problems {
    /// Adds an error at this place.
    pub(super) fn error(&mut self, span: Range<usize>, problem: &impl Problem) {
        self.push(Severity::Error, span, problem, None);
    }

    /// Adds an error at this place that is caused by another place.
    pub(super) fn error_because_of(
        &mut self,
        span: Range<usize>,
        problem: &impl Problem,
        there: Range<usize>,
        label: &str,
    ) {
        self.push(Severity::Error, span, problem, Some((there, label.to_owned())));
    }

    /// Adds the error of a missing digest.
    pub(super) fn unpinned(
        &mut self,
        span: Range<usize>,
        problem: &impl Problem,
        artifact: UnpinnedArtifact,
    ) {
        self.error(span, problem);
        self.unpinned.push(artifact);
    }

    /// Adds a warning at this place.
    pub(super) fn warning(&mut self, span: Range<usize>, problem: &impl Problem) {
        self.push(Severity::Warning, span, problem, None);
    }

    /// Adds a finding of the machine at this place.
    pub(super) fn found(&mut self, span: Range<usize>, finding: &super::Finding) {
        self.push(finding.severity, span, finding, None);
    }

    /// Returns `true` if there is anything but warnings.
    pub(super) fn has_errors(&self) -> bool {
        self.list.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Returns the problems with the text they are about, in the file's order.
    pub(super) fn finish(mut self, file: &Path, text: &str) -> Diagnostics {
        if self.list.is_empty() {
            return Diagnostics::default();
        }
        self.list.sort_by_key(|diagnostic| diagnostic.span.start);
        Diagnostics {
            file: file.to_owned(),
            text: text.into(),
            list: self.list,
            unpinned: self.unpinned,
        }
    }

    fn push(
        &mut self,
        severity: Severity,
        span: Range<usize>,
        problem: &impl Problem,
        related: Option<(Range<usize>, String)>,
    ) {
        let (message, label, help) = (problem.to_string(), problem.label(), problem.help());
        self.list.push(Diagnostic { severity, message, span, label, related, help });
    }
}

/// Returns the last character boundary of `text` that is not after `index`.
pub(super) fn boundary_before(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0)
}

/// Quotes a piece of the user's text for a message: in backquotes, shortened, and with control
/// characters escaped so that a file cannot control the terminal.
pub(super) fn quoted(text: &str) -> String {
    if text.is_empty() {
        return "`\"\"`".to_owned();
    }
    let escaped: String = text
        .chars()
        .take(MAX_QUOTED_CHARS)
        .flat_map(|character| {
            let control = character.is_control();
            let escape = control.then(|| character.escape_default());
            escape.into_iter().flatten().chain((!control).then_some(character))
        })
        .collect();
    let more = if text.chars().nth(MAX_QUOTED_CHARS).is_some() { "…" } else { "" };
    format!("`{escaped}{more}`")
}

/// Joins several words as `a, b and c`, each in backquotes; `conjunction` comes before the last.
pub(super) fn listed<'a>(words: impl IntoIterator<Item = &'a str>, conjunction: &str) -> String {
    let words: Vec<String> = words.into_iter().map(quoted).collect();
    match words.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, others)) => format!("{} {conjunction} {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_is_short_and_printable() {
        assert_eq!(quoted("a"), "`a`");
        assert_eq!(quoted(""), "`\"\"`");
        assert_eq!(quoted("\u{1b}[2J"), "`\\u{1b}[2J`");
        assert_eq!(quoted(&"é".repeat(61)), format!("`{}…`", "é".repeat(60)));
    }

    #[test]
    fn errors_are_shown_before_warnings_are_cut() {
        let problem = |number: usize, severity| Diagnostic {
            severity,
            message: format!("problem {number}"),
            span: number..number,
            label: String::new(),
            related: None,
            help: "help".to_owned(),
        };
        let mut list: Vec<Diagnostic> =
            (0..50).map(|number| problem(number, Severity::Warning)).collect();
        list.push(problem(50, Severity::Error));
        let diagnostics = Diagnostics {
            file: "castra.toml".into(),
            text: "#".repeat(60).into(),
            list,
            unpinned: Vec::new(),
        };
        let rendered = diagnostics.render(false);
        assert!(
            rendered.contains("error: problem 50") && rendered.ends_with("… and 31 more."),
            "{rendered}"
        );
        assert_eq!(diagnostics.summary(), "1 error, 50 warnings");
    }
}
