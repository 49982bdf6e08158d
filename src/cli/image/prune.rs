//! `castra image prune`: removes unneeded images and downloads from the cache.

use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::managed::{self, PruneOptions, Pruned, PrunedKind};
use castra_engine::size::ByteSize;
use schemars::JsonSchema;
use serde::Serialize;

use super::table::table;
use crate::cli::context::CommandContext;

#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct ImagesPruned {
    dry_run: bool,
    removed: Vec<Removed>,
    freed_bytes: u64,
}

#[derive(Serialize, JsonSchema)]
struct Removed {
    /// `image`, `download`, `partial`, `quarantine` or `project`.
    kind: &'static str,
    name: String,
    path: PathBuf,
    freed_bytes: u64,
}

/// Removes what no project needs. Works in any directory, even if its castra.toml is invalid.
pub(super) fn run(dry_run: bool, downloads: bool, context: &CommandContext) -> Result<ExitCode> {
    let here = context.silent_layout().ok();
    let options = PruneOptions { dry_run, downloads };
    let pruned = managed::prune(&context.runtime.cache, here, options, &context.runtime.cancel)?;
    let freed_bytes = pruned.iter().map(|one| one.freed_bytes).sum();
    let mut rows = vec![["KIND", "FREES", "NAME"].map(String::from)];
    rows.extend(pruned.iter().map(|one| {
        [word(one.kind).to_owned(), ByteSize(one.freed_bytes).to_string(), one.name.clone()]
    }));
    let text = if pruned.is_empty() { String::new() } else { table(&rows) };
    let summary = match (pruned.is_empty(), dry_run) {
        (true, _) => "nothing to remove: projects need everything in the cache".to_owned(),
        (false, true) => format!("{} would be freed", ByteSize(freed_bytes)),
        (false, false) => format!("{} freed", ByteSize(freed_bytes)),
    };
    let removed = pruned.into_iter().map(removed).collect();
    context.show(&ImagesPruned { dry_run, removed, freed_bytes }, &text)?;
    context.printer.success(&summary);
    Ok(ExitCode::SUCCESS)
}

fn removed(one: Pruned) -> Removed {
    Removed { kind: word(one.kind), name: one.name, path: one.path, freed_bytes: one.freed_bytes }
}

fn word(kind: PrunedKind) -> &'static str {
    match kind {
        PrunedKind::Image => "image",
        PrunedKind::Download => "download",
        PrunedKind::Partial => "partial",
        PrunedKind::Quarantine => "quarantine",
        PrunedKind::Project => "project",
    }
}
