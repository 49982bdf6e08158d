//! Pseudo-terminals.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use castra_wire::stream::Window;
use russh::Pty as Code;
use rustix::fs::Mode;
use rustix::pty::OpenptFlags;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, Winsize,
};

use crate::users::User;

/// `_POSIX_VDISABLE`, and the value that a client sends for a disabled character (RFC 4254, 8).
const DISABLED: u32 = 255;

/// A terminal that a client has requested, before anything runs on it.
pub(crate) struct Terminal {
    controlling: OwnedFd,
    line: OwnedFd,
    name: String,
    term: String,
}

/// Size of a window, in characters and pixels.
#[derive(Clone, Copy)]
pub(crate) struct Size(Winsize);

impl Terminal {
    /// Opens a terminal that belongs to the user.
    pub(crate) fn open(
        user: &User,
        term: &str,
        size: Size,
        modes: &[(Code, u32)],
    ) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controlling = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&controlling)?;
        rustix::pty::unlockpt(&controlling)?;
        let name = rustix::pty::ptsname(&controlling, Vec::new())?.to_string_lossy().into_owned();
        let line = rustix::pty::ioctl_tiocgptpeer(&controlling, flags)?;
        if rustix::process::geteuid().is_root() {
            rustix::fs::fchown(&line, Some(user.uid), None)?;
            rustix::fs::fchmod(&line, Mode::from_raw_mode(0o620))?;
        }
        let mut termios = rustix::termios::tcgetattr(&line)?;
        modes.iter().for_each(|(code, value)| set_mode(&mut termios, *code, *value));
        rustix::termios::tcsetattr(&line, OptionalActions::Now, &termios)?;
        let term = if term.contains('\0') { String::new() } else { term.to_owned() };
        let terminal = Self { controlling, line, name, term };
        size.apply(rustix::fd::AsFd::as_fd(&terminal.controlling));
        Ok(terminal)
    }

    /// Returns the terminal's path.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the kind of terminal that the client has named, for `TERM`.
    pub(crate) fn term(&self) -> &str {
        &self.term
    }

    /// Returns our side and the program's side, to be closed by those who use them.
    pub(crate) fn parts(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.controlling.try_clone()?, self.line.try_clone()?))
    }
}

impl From<Window> for Size {
    fn from(window: Window) -> Self {
        Self(Winsize {
            ws_col: window.columns,
            ws_row: window.rows,
            ws_xpixel: window.width_px,
            ws_ypixel: window.height_px,
        })
    }
}

impl Size {
    pub(crate) fn new(columns: u32, rows: u32, width_px: u32, height_px: u32) -> Self {
        let short = |value| u16::try_from(value).unwrap_or(u16::MAX);
        Self(Winsize {
            ws_col: short(columns),
            ws_row: short(rows),
            ws_xpixel: short(width_px),
            ws_ypixel: short(height_px),
        })
    }

    /// Sets the terminal's size; the kernel notifies the programs on it. Fails only if the terminal
    /// is gone.
    pub(crate) fn apply(self, terminal: BorrowedFd<'_>) {
        let _ = rustix::termios::tcsetwinsize(terminal, self.0);
    }
}

/// Sets one mode. Ignores modes that a Linux terminal does not have, as RFC 4254 allows.
fn set_mode(termios: &mut Termios, code: Code, value: u32) {
    if let Some(index) = special_code(code) {
        termios.special_codes[index] =
            u8::try_from(if value == DISABLED { 0 } else { value }).unwrap_or(0);
    } else if let Some(mode) = input_mode(code) {
        termios.input_modes.set(mode, value != 0);
    } else if let Some(mode) = local_mode(code) {
        termios.local_modes.set(mode, value != 0);
    } else if let Some(mode) = output_mode(code) {
        termios.output_modes.set(mode, value != 0);
    }
}

fn special_code(code: Code) -> Option<SpecialCodeIndex> {
    Some(match code {
        Code::VINTR => SpecialCodeIndex::VINTR,
        Code::VQUIT => SpecialCodeIndex::VQUIT,
        Code::VERASE => SpecialCodeIndex::VERASE,
        Code::VKILL => SpecialCodeIndex::VKILL,
        Code::VEOF => SpecialCodeIndex::VEOF,
        Code::VEOL => SpecialCodeIndex::VEOL,
        Code::VEOL2 => SpecialCodeIndex::VEOL2,
        Code::VSTART => SpecialCodeIndex::VSTART,
        Code::VSTOP => SpecialCodeIndex::VSTOP,
        Code::VSUSP => SpecialCodeIndex::VSUSP,
        Code::VREPRINT => SpecialCodeIndex::VREPRINT,
        Code::VWERASE => SpecialCodeIndex::VWERASE,
        Code::VLNEXT => SpecialCodeIndex::VLNEXT,
        Code::VDISCARD => SpecialCodeIndex::VDISCARD,
        _ => return None,
    })
}

fn input_mode(code: Code) -> Option<InputModes> {
    Some(match code {
        Code::IGNPAR => InputModes::IGNPAR,
        Code::PARMRK => InputModes::PARMRK,
        Code::INPCK => InputModes::INPCK,
        Code::ISTRIP => InputModes::ISTRIP,
        Code::INLCR => InputModes::INLCR,
        Code::IGNCR => InputModes::IGNCR,
        Code::ICRNL => InputModes::ICRNL,
        Code::IXON => InputModes::IXON,
        Code::IXANY => InputModes::IXANY,
        Code::IXOFF => InputModes::IXOFF,
        Code::IMAXBEL => InputModes::IMAXBEL,
        Code::IUTF8 => InputModes::IUTF8,
        _ => return None,
    })
}

fn local_mode(code: Code) -> Option<LocalModes> {
    Some(match code {
        Code::ISIG => LocalModes::ISIG,
        Code::ICANON => LocalModes::ICANON,
        Code::ECHO => LocalModes::ECHO,
        Code::ECHOE => LocalModes::ECHOE,
        Code::ECHOK => LocalModes::ECHOK,
        Code::ECHONL => LocalModes::ECHONL,
        Code::NOFLSH => LocalModes::NOFLSH,
        Code::TOSTOP => LocalModes::TOSTOP,
        Code::IEXTEN => LocalModes::IEXTEN,
        Code::ECHOCTL => LocalModes::ECHOCTL,
        Code::ECHOKE => LocalModes::ECHOKE,
        _ => return None,
    })
}

fn output_mode(code: Code) -> Option<OutputModes> {
    Some(match code {
        Code::OPOST => OutputModes::OPOST,
        Code::ONLCR => OutputModes::ONLCR,
        Code::OCRNL => OutputModes::OCRNL,
        Code::ONOCR => OutputModes::ONOCR,
        Code::ONLRET => OutputModes::ONLRET,
        _ => return None,
    })
}
