//! Reports text that is not TOML: the parser's message, with a next step.

use std::collections::BTreeSet;

use super::super::diagnostics::{Problem, Problems};

/// Error for text that violates TOML's grammar.
#[derive(Debug, thiserror::Error)]
#[error("this is not TOML: {message}")]
struct SyntaxProblem {
    message: String,
    help: String,
}

impl Problem for SyntaxProblem {
    fn help(&self) -> String {
        self.help.clone()
    }
}

/// Explanations of parser messages that would puzzle readers who do not know TOML's grammar: the
/// beginning of the message, its meaning, and the remedy.
const IN_PLAIN_WORDS: [(&str, &str, &str); 5] = [
    ("string values must be quoted", "a string without quotes", "Put it in quotes."),
    (
        "invalid basic string, expected `\"`",
        "an unterminated string",
        "End it with `\"` on the same line.",
    ),
    ("unexpected leading zero", "a number with a leading zero", "Write the number without it."),
    (
        "duplicate key",
        "a duplicate key or table",
        "Keep one. Several VMs are several `[[vms]]`, in double brackets.",
    ),
    ("unclosed array,", "an unterminated list", "Close it with `]`."),
];

/// Reports the parser's errors, one per line of the file: it recovers after an error, and further
/// errors on the line mostly stem from the same mistake.
pub(super) fn report(text: &str, errors: &[toml::de::Error], problems: &mut Problems) {
    let mut reported_lines = BTreeSet::new();
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        if !reported_lines.insert(line_start) {
            continue;
        }
        let line = text[line_start..].lines().next().unwrap_or_default().trim();
        problems.error(
            span.clone(),
            &explained(error.message(), line, text.get(span).unwrap_or_default()),
        );
    }
}

/// Explains an error. `line` is its line without indentation, `found` the text that the parser
/// points at.
fn explained(message: &str, line: &str, found: &str) -> SyntaxProblem {
    let known = IN_PLAIN_WORDS.iter().find(|(begin, _, _)| message.starts_with(begin));
    let plain = known.map_or(message, |(_, plain, _)| plain).to_owned();
    let help = match (known, as_yaml(line)) {
        (Some(("string values must be quoted", _, _)), _) => format!("Write `\"{found}\"`."),
        (Some((_, _, help)), _) => (*help).to_owned(),
        (None, Some((key, value))) => {
            format!("TOML has `=` between key and value, not `:`: `{key} = {value}`.")
        }
        (None, None) if line.starts_with('[') => {
            "A header is `[project]`, or `[[vms]]` for each VM.".to_owned()
        }
        (None, None) if line.contains('=') => {
            "Strings have quotes, numbers do not: `name = \"dev\"`, `cpus = 2`.".to_owned()
        }
        (None, None) => "Write `key = value`, one per line; a comment starts with `#`.".to_owned(),
    };
    SyntaxProblem { message: plain, help }
}

/// Returns key and value of a line that is written as in YAML or JSON; the value as TOML.
fn as_yaml(line: &str) -> Option<(&str, String)> {
    let (key, value) = line.split_once(':').filter(|_| !line.contains('='))?;
    let key = key.trim_start_matches(['-', '{', ' ']).trim().trim_matches('"');
    let value = value.trim().trim_end_matches([',', '}', ' ']);
    let needs_no_quotes = value.starts_with(['"', '\'', '[', '{']) || value.parse::<u32>().is_ok();
    let plain_key =
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    (plain_key && !value.is_empty())
        .then(|| (key, if needs_no_quotes { value.to_owned() } else { format!("\"{value}\"") }))
}
