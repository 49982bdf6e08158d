//! Benchmarks of Castra: each figure is a ratio to a baseline, measured alternately with it in the
//! same run.

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

/// A part that can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// From a server to an image; takes half a minute.
    Images,
    /// From an image to a command in a VM; takes minutes.
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
