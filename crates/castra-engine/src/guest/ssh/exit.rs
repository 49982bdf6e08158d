//! Ends of a guest's command, and the exit codes they become.

/// Signals of Linux, by SSH's names for them.
const SIGNALS: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", SIGPIPE),
    ("ALRM", 14),
    ("TERM", 15),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("IO", 29),
    ("SYS", 31),
];
const SIGPIPE: u8 = 13;

/// Exit of a guest's command, or the reason why this side stopped listening to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestExit {
    /// The command returned this code.
    Code(u32),
    /// A signal with this name (without `SIG`) ended the command.
    Signal(String),
    /// Our stdout has no reader any more, so the command received a hang-up.
    OutputClosed,
    /// Castra itself received the signal with this number.
    Interrupted(u8),
}

impl GuestExit {
    /// Returns the exit as a shell's `$?`: the code itself, or 128 plus the signal's number.
    pub fn code(&self) -> u8 {
        match self {
            // The kernel keeps eight bits of an exit code.
            Self::Code(code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
            Self::Signal(name) => 128 | number(name).unwrap_or(0),
            Self::OutputClosed => 128 | SIGPIPE,
            Self::Interrupted(number) => 128 | number,
        }
    }

    /// Returns `true` if the command ended with code 0.
    pub fn is_success(&self) -> bool {
        *self == Self::Code(0)
    }
}

/// Returns a signal's number. The agent calls a signal without a name `SIG<number>`.
fn number(name: &str) -> Option<u8> {
    let known = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    known.or_else(|| name.strip_prefix("SIG")?.parse().ok().filter(|number| *number < 128))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_a_shells() {
        assert_eq!(GuestExit::Code(0).code(), 0);
        assert_eq!(GuestExit::Code(255).code(), 255);
        assert_eq!(GuestExit::Signal("KILL".into()).code(), 137);
        assert_eq!(GuestExit::Signal("SIG34".into()).code(), 162);
        assert_eq!(GuestExit::OutputClosed.code(), 141);
        assert_eq!(GuestExit::Interrupted(2).code(), 130);
    }
}
