//! The `castra` command: a wrapper around [`castra::cli`] in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    castra::cli::main()
}
