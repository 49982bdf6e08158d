//! Benchmarks of Castra: each figure is a ratio to a baseline, measured alternately with it in the
//! same run.

mod boots;
mod castra;
mod common;
mod disk;
mod floor;
mod images;
mod mounts;
mod plain;
mod quicksand;
mod real_disks;
mod server;
mod table;
mod warm;

use std::process::Command;

use crate::newer_qemu;
use crate::run::{cargo, run, run_command};
use crate::tools;

/// A part that can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// From a server to an image; takes half a minute.
    Images,
    /// From an image to a command in a VM; takes minutes.
    Boots,
    /// Files of the host in a VM; takes minutes.
    Mounts,
    /// Boots and restores of distributions' disks; takes a quarter of an hour, as root.
    Disks,
    /// A command in a fresh VM, beside the same by quicksand; takes minutes.
    Quicksand,
}

impl Part {
    /// All parts, in the order of the table.
    pub(crate) const ALL: [Self; 5] =
        [Self::Images, Self::Boots, Self::Mounts, Self::Disks, Self::Quicksand];

    /// Returns the part with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Boots => "boots",
            Self::Mounts => "mounts",
            Self::Disks => "disks",
            Self::Quicksand => "quicksand",
        }
    }
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
            Part::Mounts => mounts::measure()?,
            Part::Disks => real_disks::measure()?,
            Part::Quicksand => quicksand::measure()?,
        });
    }
    table::print(&rows);
    Ok(())
}

/// Runs the benchmark in a process that finds the newer QEMU first.
pub(crate) fn rerun_with_newer_qemu(arguments: &[String]) -> Result<(), String> {
    let path = newer_qemu::first_on_path(&newer_qemu::ensure()?)?;
    let own = std::env::current_exe().map_err(|error| format!("this program: {error}"))?;
    run_command(Command::new(own).arg("bench").args(arguments).env("PATH", path))
}
