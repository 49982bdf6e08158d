//! The `castra` command: everything is in the library's [`castra::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    castra::cli::main()
}
