//! The guest agent's entry point.

use std::process::ExitCode;

fn main() -> ExitCode {
    castra_guest::run()
}
