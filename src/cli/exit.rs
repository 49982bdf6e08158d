//! Exit codes, `sysexits.h`'s numbers where there is one.

use std::process::ExitCode;

use crate::error::Kind;
use crate::harmless::harmless_lines;

use super::printer::write_line;

/// The command line makes no sense.
pub(super) const USAGE: u8 = 64;
/// `exec`: the guest command could not be reached.
pub(super) const UNREACHED: u8 = 255;

/// The exit code of a failure.
pub(super) fn of_kind(kind: Kind) -> ExitCode {
    ExitCode::from(code_of(kind))
}

/// The same as a number.
pub(super) fn code_of(kind: Kind) -> u8 {
    match kind {
        Kind::Other => 1,
        Kind::Usage => USAGE,
        Kind::Data => 65,
        Kind::NotFound => 66,
        Kind::Unavailable => 69,
        Kind::Internal => 70,
        Kind::CannotCreate => 73,
        Kind::Io => 74,
        Kind::Busy => 75,
        Kind::Permission => 77,
        Kind::HostNotCapable => 78,
        // 128 + SIGINT, as shells give it.
        Kind::Interrupted => 130,
    }
}

/// Help and version are successes on stdout; everything else is a usage error on stderr.
pub(super) fn of_clap(error: &clap::Error) -> ExitCode {
    // It quotes what it was given, such as a file's name from a script's loop. In that case there is no colour.
    let plain = error.render().to_string();
    if error.use_stderr() && *harmless_lines(&plain) != *plain {
        write_line(plain.trim_end());
    } else {
        // A closed stdout or stderr cannot be told of anywhere.
        let _ = error.print();
    }
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}
