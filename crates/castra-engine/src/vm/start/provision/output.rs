//! Output of a step: reported line by line as it arrives, with its end kept for an error.

use std::collections::VecDeque;
use std::mem;

/// Longest piece of a line that is reported at once, in bytes.
const MAX_LINE_BYTES: usize = 1024;

/// Most lines that an error quotes.
const KEPT_LINES: usize = 20;

/// Lines of one stream of a step.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Takes bytes, and passes on each line that they end. A very long line is passed on in parts.
    pub(super) fn take(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for byte in bytes {
            // A progress bar's lines end in a carriage return.
            if matches!(byte, b'\n' | b'\r') {
                self.end(&mut line);
            } else {
                self.begun.push(*byte);
                if self.begun.len() == MAX_LINE_BYTES {
                    self.end(&mut line);
                }
            }
        }
    }

    /// Passes on a line that has not ended.
    pub(super) fn end(&mut self, mut line: impl FnMut(String)) {
        let text = String::from_utf8_lossy(&mem::take(&mut self.begun)).trim_end().to_owned();
        if !text.is_empty() {
            line(text);
        }
    }
}

/// End of a step's output.
#[derive(Debug, Default)]
pub(super) struct Tail(VecDeque<String>);

impl Tail {
    pub(super) fn push(&mut self, line: String) {
        if self.0.len() == KEPT_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    pub(super) fn text(&self) -> String {
        self.0.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_passed_on_when_they_end_or_become_too_long() {
        let (mut lines, mut heard) = (Lines::default(), Vec::new());
        for bytes in [&b"one\ntw"[..], b"o\r\n", b"\n10%\r20%\r", &[b'x'; MAX_LINE_BYTES + 1]] {
            lines.take(bytes, |line| heard.push(line));
        }
        let long = "x".repeat(MAX_LINE_BYTES);
        assert_eq!(heard, ["one", "two", "10%", "20%", long.as_str()]);
        lines.end(|line| heard.push(line));
        lines.end(|line| heard.push(line));
        assert_eq!(heard.last().map(String::as_str), Some("x"));
        assert_eq!(heard.len(), 6);
    }

    #[test]
    fn the_end_of_the_output_is_kept() {
        let mut tail = Tail::default();
        (0..30).for_each(|number| tail.push(number.to_string()));
        let text = tail.text();
        assert_eq!(text.lines().count(), KEPT_LINES);
        assert!(text.starts_with("10\n") && text.ends_with("\n29"), "{text}");
    }
}
