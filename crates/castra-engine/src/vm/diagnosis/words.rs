//! Last output of the guest and of QEMU.

use std::path::Path;

use crate::qemu::end_of_log;
use crate::sanitize::sanitize_log;

/// Lines of each log that are shown.
const LINES: usize = 8;

/// The ends of both logs, sanitised for a terminal.
#[derive(Debug, Clone, Default)]
pub(in crate::vm) struct Words {
    pub(in crate::vm) console: String,
    pub(in crate::vm) qemu: String,
}

impl Words {
    pub(in crate::vm) fn read(console_log: &Path, qemu_log: &Path) -> Self {
        let read = |log: &Path| sanitize_log(&end_of_log(log));
        Self { console: read(console_log), qemu: read(qemu_log) }
    }

    /// Returns the console's last line that is not blank.
    pub(in crate::vm) fn last_line(&self) -> Option<String> {
        const MOST_CHARACTERS: usize = 200;
        let line = self.console.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
        Some(line.chars().take(MOST_CHARACTERS).collect())
    }
}

/// Quotes the last lines of both logs.
pub(in crate::vm) fn last_words(words: &Words) -> String {
    let mut quoted = Vec::new();
    for text in [&words.console, &words.qemu] {
        let lines: Vec<&str> =
            text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(LINES)..];
        quoted.extend(last.iter().map(|line| format!("  | {line}")));
    }
    quoted.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_few_and_drive_no_terminal() {
        let directory = tempfile::tempdir().expect("a directory");
        let (console, qemu) = (directory.path().join("console"), directory.path().join("qemu"));
        let mut said = "line\n".repeat(100);
        said.push_str(&format!("\u{1b}[2J\u{1b}]0;title\u{7}{}\u{9b}1m\n", "x".repeat(1000)));
        std::fs::write(&console, said).expect("written");
        std::fs::write(&qemu, b"\x1b[31mqemu: \xff\x1b[0m\n").expect("written");
        let words = Words::read(&console, &qemu);
        let quoted = last_words(&words);
        assert_eq!(quoted.lines().count(), LINES + 1, "{quoted}");
        assert!(quoted.lines().all(crate::sanitize::is_printable), "{quoted:?}");
        assert!(words.last_line().is_some_and(|line| line.chars().count() == 200));
    }
}
