//! Exit codes, with the numbers of `sysexits.h` where it has one.

use std::process::ExitCode;

use castra_engine::error::Kind;
use castra_engine::sanitize::sanitize_lines;

use super::output::write_line;
use super::usage;

/// Invalid command line.
pub(super) const USAGE: u8 = 64;
/// `exec`: the guest command could not be reached.
pub(super) const UNREACHED: u8 = 255;

/// Returns the exit code of a failure.
pub(super) fn of_kind(kind: Kind) -> ExitCode {
    ExitCode::from(code_of(kind))
}

/// Returns the exit code of a failure as a number.
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
        // 128 + SIGINT, as shells report it.
        Kind::Interrupted => 130,
    }
}

/// Meaning of every exit code, for the manual.
pub(super) const MEANINGS: [(u8, &str); 16] = [
    (0, "Success."),
    (1, "Unexpected error."),
    (64, "Invalid command line."),
    (65, "Invalid configuration or other data."),
    (66, "No such VM, image or file."),
    (69, "Unavailable: the network, QEMU or another helper."),
    (70, "A bug in Castra."),
    (73, "Cannot create a file."),
    (74, "I/O error."),
    (75, "In use by another process; trying again may help."),
    (77, "Permission denied."),
    (78, "Not supported by this host."),
    (124, "run: the command exceeded --timeout."),
    (
        128,
        "exec and run: 128+n if signal n killed the command; otherwise the command's own exit \
        code.",
    ),
    (130, "Interrupted."),
    (UNREACHED, "exec and run: the command could not be reached."),
];

/// Prints help and version on stdout as a success, and everything else on stderr as a usage error
/// with a next step.
pub(super) fn of_clap(error: clap::Error) -> ExitCode {
    let error = usage::with_next_step(error);
    // The error quotes its input, such as a file name from a script's loop. An input with control
    // characters is printed without colour.
    let plain = error.render().to_string();
    if error.use_stderr() && *sanitize_lines(&plain) != *plain {
        write_line(plain.trim_end());
    } else {
        // There is no way to report a closed stdout or stderr.
        let _ = error.print();
    }
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of `sysexits.h`, and 128 plus a signal as in shells. Some of these can be produced
    /// by no command.
    #[test]
    fn each_kind_has_its_number() {
        let numbers = [
            (Kind::Other, 1),
            (Kind::Usage, 64),
            (Kind::Data, 65),
            (Kind::NotFound, 66),
            (Kind::Unavailable, 69),
            (Kind::Internal, 70),
            (Kind::CannotCreate, 73),
            (Kind::Io, 74),
            (Kind::Busy, 75),
            (Kind::Permission, 77),
            (Kind::HostNotCapable, 78),
            (Kind::Interrupted, 130),
        ];
        for (kind, number) in numbers {
            assert_eq!(code_of(kind), number, "{kind:?}");
            assert!(
                MEANINGS.iter().any(|(listed, _)| *listed == number),
                "{kind:?} is not in the manual"
            );
            let name = serde_json::to_value(kind).expect("a word");
            let row = format!("| {number} | `{}` |", name.as_str().expect("a word"));
            assert!(include_str!("../../docs/exit-codes.md").contains(&row), "no row of {kind:?}");
        }
    }
}
