//! Command lines of the guest's kernel.

use std::fmt;
use std::str::FromStr;

use castra_wire::{RELAYS_ON_COMMAND_LINE, Relay};

use super::OptionError;

/// A kernel command line: one line of text. Whatever its contents, it is one argument of QEMU, and
/// only the guest parses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// Joins these words, none of which a stranger has chosen.
    pub fn of(words: &[&'static str]) -> Self {
        Self(words.join(" "))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns this command line with further words appended.
    #[must_use]
    pub fn with(&self, words: &[&'static str]) -> Self {
        Self(
            std::iter::once(self.as_str())
                .chain(words.iter().copied())
                .collect::<Vec<_>>()
                .join(" "),
        )
    }
}

impl CommandLine {
    /// Returns this command line with the agent's relays appended: plain numbers.
    #[must_use]
    pub fn with_relays(&self, relays: &[Relay]) -> Self {
        if relays.is_empty() {
            return self.clone();
        }
        let relays: Vec<String> =
            relays.iter().map(|relay| format!("{}:{}", relay.port, relay.to)).collect();
        Self(format!("{} {RELAYS_ON_COMMAND_LINE}={}", self.0, relays.join(",")))
    }
}

impl FromStr for CommandLine {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        if text.is_empty() || text.contains(char::is_control) {
            return Err(OptionError::CommandLine(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
