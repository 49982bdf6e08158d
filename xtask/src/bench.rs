//! How fast Castra is: each figure a ratio to a baseline that is measured in the same run, taking turns with it.

mod boots;
mod castra;
mod common;
mod disk;
mod floor;
mod images;
mod plain;
mod server;
mod table;
mod warm;

use crate::run::{cargo, run};
use crate::tools;

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// From a server to an image; half a minute.
    Images,
    /// From an image to a command in a VM; minutes.
    Boots,
}

/// Measures these parts and prints one table.
pub(crate) fn run_bench(parts: &[Part]) -> Result<(), String> {
    tools::ensure_for_tests()?;
    run(&cargo(), &["build", "--release", "--locked"])?;
    let mut rows = Vec::new();
    for part in parts {
        rows.extend(match part {
            Part::Images => images::measure()?,
            Part::Boots => boots::measure()?,
        });
    }
    table::print(&rows);
    Ok(())
}
