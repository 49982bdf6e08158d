//! The agent's messages in the kernel's log.

use std::fmt::Display;
use std::io::{self, Write as _};

/// Longest record; the kernel refuses those above some 1000 bytes (`PRINTKRB_RECORD_MAX`).
const MAX_BYTES: usize = 900;

/// Writes a message to the kernel's log, which stderr is once the agent has settled.
pub(crate) fn log(message: impl Display) {
    // There is no other place for this failure.
    let _ = io::stderr().write_all(record(&message.to_string()).as_bytes());
}

/// Returns a message as one line. The kernel makes a record of each write, so it must be written at
/// once.
pub(crate) fn record(message: &str) -> String {
    let mut record = format!("castra: {}", message.trim_end().replace(char::is_control, " "));
    let mut ends = (0..=MAX_BYTES.min(record.len())).rev();
    record.truncate(ends.find(|end| record.is_char_boundary(*end)).unwrap_or_default());
    record.push('\n');
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_record() {
        assert_eq!(record("one\ntwo\n"), "castra: one two\n");
        let long = record(&"ü".repeat(MAX_BYTES));
        assert!(long.len() <= MAX_BYTES + 1 && long.ends_with("ü\n"), "{long}");
    }
}
