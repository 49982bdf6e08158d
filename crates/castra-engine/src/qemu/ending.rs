//! Finds out from QEMU's own log why it ended by itself.

use std::fmt;
use std::path::Path;

use crate::sanitize::sanitize_text;

use super::process::end_of_log;

/// QEMU's message on SIGTERM, SIGINT and SIGHUP, unchanged since 0.13 (`os_sigterm`,
/// `qemu_kill_report`).
pub const ENDED_BY_SIGNAL: &str = "terminating on signal ";

/// A signal that asked QEMU to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndingSignal {
    /// Signal number.
    pub signal: i32,
    /// Process that sent the signal; `None` if the kernel did.
    pub pid: Option<i64>,
    /// Name of that process, if QEMU could find it out. Safe to print on a terminal.
    pub sender: Option<String>,
}

impl fmt::Display for EndingSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.signal {
            1 => "SIGHUP",
            2 => "SIGINT",
            15 => "SIGTERM",
            other => return write!(f, "signal {other}").and_then(|()| self.fmt_sender(f)),
        };
        f.write_str(name).and_then(|()| self.fmt_sender(f))
    }
}

impl EndingSignal {
    fn fmt_sender(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, &self.sender) {
            (Some(pid), Some(sender)) => write!(f, " from process {pid} ({sender})"),
            (Some(pid), None) => write!(f, " from process {pid}"),
            (None, _) => Ok(()),
        }
    }
}

/// Returns the signal that asked the QEMU of this log to end, if one did. A log covers one run.
pub fn ending_signal(log: &Path) -> Option<EndingSignal> {
    end_of_log(log).lines().rev().find_map(parse)
}

/// Parses `qemu-system-x86_64: terminating on signal 15 from pid 1234 (systemd)`, whose second half
/// may be missing.
fn parse(line: &str) -> Option<EndingSignal> {
    let (_, rest) = line.split_once(ENDED_BY_SIGNAL)?;
    let (signal, sender) = match rest.split_once(" from pid ") {
        Some((signal, sender)) => (signal, Some(sender)),
        None => (rest, None),
    };
    let signal = signal.trim().parse().ok()?;
    let (pid, name) = match sender.map(|sender| sender.split_once(' ').unwrap_or((sender, ""))) {
        Some((pid, name)) => (pid.trim().parse().ok(), name.trim()),
        None => (None, ""),
    };
    let name = name.strip_prefix('(').and_then(|name| name.strip_suffix(')'));
    let name = name.filter(|name| !name.is_empty() && *name != "<unknown process>");
    Some(EndingSignal { signal, pid, sender: name.map(sanitize_text) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_qemus_words_is_understood() {
        for (line, shown) in [
            (
                "qemu-system-x86_64: terminating on signal 15 from pid 1234 \
                (/usr/lib/systemd/systemd --user)",
                "SIGTERM from process 1234 (/usr/lib/systemd/systemd --user)",
            ),
            (
                "qemu-system-x86_64: terminating on signal 1 from pid 7 (<unknown process>)",
                "SIGHUP from process 7",
            ),
            ("qemu-system-x86_64: terminating on signal 2", "SIGINT"),
            (
                "qemu-system-x86_64: terminating on signal 12 from pid 3 (a (b))",
                "signal 12 from process 3 (a (b))",
            ),
        ] {
            assert_eq!(parse(line).expect("understood").to_string(), shown);
        }
        for line in ["", "terminating on signal", "terminating on signal x from pid 3"] {
            assert_eq!(parse(line), None, "{line}");
        }
        let forged = parse("terminating on signal 15 from pid 3 (\x1b[2J)").expect("understood");
        assert!(!forged.to_string().contains('\x1b'));
    }
}
