//! Command lines of the guest's kernel.

use std::fmt;
use std::str::FromStr;

use castra_wire::{DISKS_ON_COMMAND_LINE, DiskOrder, RELAYS_ON_COMMAND_LINE, Relay};

use super::OptionError;

/// A kernel command line: one line of text. Whatever its contents, it is one argument of QEMU, and
/// only the guest parses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(String);

/// Argument after which the kernel reads no options: the rest is for the first process.
const END_OF_OPTIONS: &str = "--";

impl CommandLine {
    /// Joins these words, none of which a stranger has chosen.
    pub fn of(words: &[&'static str]) -> Self {
        Self(words.join(" "))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns this command line with further words appended to the kernel's own options.
    #[must_use]
    pub fn with(&self, words: &[&'static str]) -> Self {
        self.with_text(&words.join(" "))
    }

    /// Returns this command line without the kernel's options for which `is_unwanted` holds.
    #[must_use]
    pub fn without(&self, is_unwanted: impl Fn(&str) -> bool) -> Self {
        let mut are_options = true;
        let words = self.0.split(' ').filter(|word| {
            are_options &= *word != END_OF_OPTIONS;
            !(are_options && is_unwanted(word))
        });
        Self(words.collect::<Vec<_>>().join(" "))
    }

    fn with_text(&self, text: &str) -> Self {
        let mut words: Vec<&str> = self.0.split(' ').collect();
        let end = words.iter().position(|word| *word == END_OF_OPTIONS).unwrap_or(words.len());
        words.insert(end, text);
        Self(words.join(" "))
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
        self.with_text(&format!("{RELAYS_ON_COMMAND_LINE}={}", relays.join(",")))
    }

    /// Returns this command line with the agent's orders for disks appended, which are encoded.
    #[must_use]
    pub fn with_disks(&self, orders: &[DiskOrder]) -> Self {
        let orders: String = orders.iter().map(DiskOrder::on_command_line).collect();
        if orders.is_empty() {
            return self.clone();
        }
        self.with_text(&format!("{DISKS_ON_COMMAND_LINE}={orders}"))
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
