//! Command line of a kernel.

use std::fmt;

/// Longest command line of an x86-64 kernel, in bytes, without its final NUL
/// (`COMMAND_LINE_SIZE`).
const MAX_BYTES: usize = 2047;

/// Command line that a kernel can take: one line of printable text of at most 2047 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine(String);

impl CommandLine {
    /// Parses a command line. White space separates arguments, of whatever kind it is.
    ///
    /// # Errors
    /// [`CommandLineError`].
    pub fn parse(text: &str) -> Result<Self, CommandLineError> {
        let arguments: Vec<&str> = text.split_whitespace().collect();
        let line = arguments.join(" ");
        if line.chars().any(char::is_control) {
            Err(CommandLineError::Unprintable)
        } else if line.len() > MAX_BYTES {
            Err(CommandLineError::TooLong)
        } else {
            Ok(Self(line))
        }
    }

    /// Returns the line.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the value of the last argument of this name, as the kernel takes it.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        let mut values = self.0.split(' ').filter_map(|argument| {
            let value = argument.trim_matches('"').strip_prefix(name)?.strip_prefix('=')?;
            Some(value.trim_matches('"'))
        });
        values.next_back()
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A command line that no kernel can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// The line has control characters.
    #[error("its command line has control characters")]
    Unprintable,
    /// The line is longer than a kernel permits.
    #[error("its command line has more than {MAX_BYTES} bytes")]
    TooLong,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_one_printable_line() {
        let line = CommandLine::parse(" root=UUID=a ro\t\"dyndbg=file a +p\"\nroot=/dev/vda1\n");
        let line = line.expect("a line");
        assert_eq!(line.as_str(), "root=UUID=a ro \"dyndbg=file a +p\" root=/dev/vda1");
        assert_eq!(line.value("root"), Some("/dev/vda1"), "the last one");
        assert_eq!(line.value("roo"), None);
        assert_eq!(CommandLine::parse("a\0b"), Err(CommandLineError::Unprintable));
        assert_eq!(CommandLine::parse("a\x1b[2J"), Err(CommandLineError::Unprintable));
        assert_eq!(CommandLine::parse(&"a".repeat(2048)), Err(CommandLineError::TooLong));
    }
}
