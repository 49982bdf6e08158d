//! Turns an argument vector into a line for the guest user's shell, for an agent that accepts no
//! array.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

/// Quotes each argument so that a POSIX shell passes exactly these bytes to the command.
pub fn quote(argv: &[OsString]) -> Vec<u8> {
    let mut line = Vec::new();
    for argument in argv {
        let argument = argument.as_bytes();
        // The first word is always quoted: it may be a reserved word such as `if`.
        if !line.is_empty() {
            line.push(b' ');
            if !argument.is_empty() && argument.iter().copied().all(is_plain) {
                line.extend_from_slice(argument);
                continue;
            }
        }
        quote_one(argument, &mut line);
    }
    line
}

fn quote_one(argument: &[u8], line: &mut Vec<u8>) {
    line.push(b'\'');
    for byte in argument {
        if *byte == b'\'' {
            line.extend_from_slice(b"'\\''");
        } else {
            line.push(*byte);
        }
    }
    line.push(b'\'');
}

/// Returns `true` for a byte that needs no quotes. Excludes `=`: in `a=~root`, some shells expand
/// the tilde.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_@%+:,./-".contains(&byte)
}
