//! The tests of commands and copies over SSH, over stream ports.

#![expect(clippy::duplicate_mod, reason = "the tests are the same")]

#[path = "../over_ssh/arguments.rs"]
mod arguments;
#[path = "../over_ssh/copy.rs"]
mod copy;
#[path = "../over_ssh/exec.rs"]
mod exec;
#[path = "../over_ssh/pressure.rs"]
mod pressure;
#[path = "../over_ssh/terminal.rs"]
mod terminal;

use super::guest::Guest;

fn start() -> Guest {
    Guest::start_without_network()
}
