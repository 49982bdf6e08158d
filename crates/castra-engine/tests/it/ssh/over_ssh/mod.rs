//! Commands and copies over SSH.

pub(super) mod arguments;
pub(super) mod copy;
mod exec;
mod pressure;
mod terminal;

use super::guest::Guest;

fn start() -> Guest {
    Guest::start()
}
