//! The terminal on this side.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal to ask the guest for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tty {
    /// Its kind, as in `TERM`.
    pub term: String,
    /// Its width, in characters.
    pub columns: u16,
    /// Its height, in characters.
    pub rows: u16,
}

impl Tty {
    /// Like the terminal at this descriptor; nothing if it is none.
    pub fn like(descriptor: impl AsFd, term: &str) -> Option<Self> {
        let (columns, rows) = size(descriptor)?;
        Some(Self { term: term.to_owned(), columns, rows })
    }
}

/// Columns and rows.
pub(super) fn size(terminal: impl AsFd) -> Option<(u16, u16)> {
    tcgetwinsize(terminal).ok().map(|size| (size.ws_col, size.ws_row))
}

/// A terminal that passes every key on. Dropping it makes the terminal as it was.
pub(in crate::guest) struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Nothing if the descriptor is no terminal.
    pub(in crate::guest) fn enter(descriptor: impl AsFd) -> io::Result<Option<Self>> {
        let Ok(before) = tcgetattr(&descriptor) else { return Ok(None) };
        let terminal = descriptor.as_fd().try_clone_to_owned()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Fails only if the terminal is gone. Not `Drain`: that would wait for a terminal that is stopped.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
