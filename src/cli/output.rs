//! Output streams: how much is printed, and lines on stdout and stderr.

use std::io::{self, Write};

use castra_engine::sanitize::{sanitize_json, sanitize_lines, sanitize_styled};

/// Amount of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verbosity {
    Quiet,
    Normal,
    Verbose,
}

/// Writes an answer for a program to stdout, byte for byte, so that nothing in it is taken for a
/// colour.
///
/// # Errors
/// Returns errors of stdout.
pub(super) fn answer(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes one line to stderr.
pub(super) fn write_line(text: &str) {
    write_styled(&sanitize_lines(text));
}

/// Writes one line of JSON to stderr, sanitised without changing its meaning.
pub(super) fn write_json_line(text: &str) {
    write_styled(&sanitize_json(text));
}

/// Writes a line that may have styles to stderr. If stderr is closed there is no way to report
/// that.
pub(super) fn write_styled(text: &str) {
    let mut stderr = anstream::stderr().lock();
    let _ = writeln!(stderr, "{}", sanitize_styled(text));
}
