//! The terminal on this side.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use castra_wire::stream::Window;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Terminal to request from the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tty {
    /// Terminal type, as in `TERM`.
    pub term: String,
    /// Width, in characters.
    pub columns: u16,
    /// Height, in characters.
    pub rows: u16,
}

impl Tty {
    /// Returns a terminal like the one at this descriptor; `None` if the descriptor is no terminal.
    pub fn like(descriptor: impl AsFd, term: &str) -> Option<Self> {
        let Window { columns, rows, .. } = size(descriptor)?;
        Some(Self { term: term.to_owned(), columns, rows })
    }

    /// Returns its size.
    pub(super) fn window(&self) -> Window {
        window(self.columns, self.rows)
    }
}

/// Returns the size of a terminal; `None` if the descriptor is none.
pub(super) fn size(terminal: impl AsFd) -> Option<Window> {
    tcgetwinsize(terminal).ok().map(|size| window(size.ws_col, size.ws_row))
}

fn window(columns: u16, rows: u16) -> Window {
    Window { columns, rows, width_px: 0, height_px: 0 }
}

/// A terminal in raw mode, which passes on every key. Dropping it restores the previous mode.
pub(in crate::guest) struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Puts a terminal into raw mode. Returns `None` if the descriptor is no terminal.
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
        // Fails only if the terminal is gone. Not `Drain`: that would wait for a terminal that is
        // stopped.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}
