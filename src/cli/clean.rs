//! `castra clean`: removes files that no VM needs, whole VMs, or orphaned QEMUs.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use castra_engine::config::Bounds;
use castra_engine::error::Result;
use castra_engine::size::ByteSize;
use castra_engine::vm::{
    self, CleanOptions, CleanReport, Cleaned, CleanedKind, DataDisks, RecordError,
};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::CleanArgs;
use super::context::CommandContext;
use super::error::CliError;
use super::printer::Printer;
use super::table::table;

/// Kind of a VM whose project is gone.
const ORPHAN: &str = "orphan";

/// Kind of a process that has outlived its VM, for which it worked.
const COMPANION: &str = "companion";

/// Outcome of `castra clean`.
#[derive(Serialize, JsonSchema)]
pub(super) struct CleanedUp {
    /// True if this was a dry run, which removes nothing.
    dry_run: bool,
    /// Everything that was removed, or would be.
    removed: Vec<Removed>,
    /// Everything that stays although a user might expect it to go.
    kept: Vec<Stays>,
    /// Bytes freed in all.
    freed_bytes: u64,
}

/// One thing that was removed, or would be.
#[derive(Serialize, JsonSchema)]
struct Removed {
    /// `disk`, `data-disk`, `vm`, `record`, `layer`, `image`, `quarantine`, `log`, `leftover`,
    /// `cache`, `orphan` or `companion`.
    kind: &'static str,
    /// The VM it belonged to, if it belonged to one.
    vm: Option<String>,
    /// File or directory removed; for a record in the quarantine, where it is now; for an orphan,
    /// where its project was; for a companion, where its sockets were.
    path: PathBuf,
    /// Bytes freed: 0 if the file has another name elsewhere.
    freed_bytes: u64,
}

/// One thing that stays.
#[derive(Serialize, JsonSchema)]
struct Stays {
    /// The VM it is about, if it is about one.
    vm: Option<String>,
    /// The thing that stays, and the reason.
    why: String,
}

/// Removes what no VM needs, or whole VMs, and prints what was removed, what stays and why.
pub(super) fn run(clean: &CleanArgs, context: &CommandContext) -> Result<ExitCode> {
    if clean.orphans {
        return end_orphans(clean, context);
    }
    let (layout, bounds) = context.layout_and_bounds()?;
    let project = vm::ProjectRef::new(layout, &context.runtime);
    let data_disks = match (clean.data_disks, clean.data_disk.as_slice()) {
        (true, _) => DataDisks::All,
        (false, []) => DataDisks::Keep,
        (false, names) => DataDisks::Named(names),
    };
    let (dry_run, disks, records) = (clean.dry_run, clean.disks, clean.records);
    let options = CleanOptions { dry_run, disks, data_disks, records };
    if (clean.disks || data_disks != DataDisks::Keep)
        && !clean.dry_run
        && !clean.yes
        && !may_go(clean, options, bounds, project, context)?
    {
        context.printer.tip("Nothing was removed.");
        return Ok(ExitCode::SUCCESS);
    }
    let report = vm::clean(&clean.vms, options, bounds, project)?;
    show(&report, clean.dry_run, layout.directory(), context.printer)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns `true` if no disk would be removed, or if the user agrees.
fn may_go(
    clean: &CleanArgs,
    options: CleanOptions<'_>,
    bounds: &Arc<Bounds>,
    project: vm::ProjectRef<'_>,
    context: &CommandContext,
) -> Result<bool> {
    let dry_run = CleanOptions { dry_run: true, ..options };
    let would = vm::clean(&clean.vms, dry_run, bounds, project)?;
    let is_disk = |one: &&Cleaned| matches!(one.kind, CleanedKind::Disk | CleanedKind::DataDisk);
    let disks: Vec<&Cleaned> = would.removed.iter().filter(is_disk).collect();
    if disks.is_empty() {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(CliError::NobodyToAsk.into());
    }
    let names: Vec<String> = disks.iter().map(|disk| title(disk)).collect();
    let bytes = ByteSize(disks.iter().map(|disk| disk.freed_bytes).sum());
    context.printer.tip(&format!(
        "Remove {} with all that is on the disks ({bytes})? [y/N]",
        names.join(", ")
    ));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(CliError::Streams)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Returns the title of a disk, or of the VM that goes with it.
fn title(disk: &Cleaned) -> String {
    let vm = disk.vm.clone().unwrap_or_default();
    match (disk.kind, disk.path.file_stem()) {
        (CleanedKind::DataDisk, Some(name)) => {
            format!("disk {} of {vm}", name.to_string_lossy())
        }
        _ => vm,
    }
}

fn show(
    report: &CleanReport,
    dry_run: bool,
    directory: &Path,
    printer: &Printer,
) -> Result<(), CliError> {
    let removed = report.removed.iter().map(|one| Removed {
        kind: word(one.kind),
        vm: one.vm.clone(),
        path: one.path.clone(),
        freed_bytes: one.freed_bytes,
    });
    let kept = report.kept.iter().map(|kept| Stays { vm: kept.vm.clone(), why: kept.why.clone() });
    let content = CleanedUp {
        dry_run,
        removed: removed.collect(),
        kept: kept.collect(),
        freed_bytes: report.removed.iter().map(|one| one.freed_bytes).sum(),
    };
    content.show(directory, printer)
}

impl CleanedUp {
    fn show(&self, directory: &Path, printer: &Printer) -> Result<(), CliError> {
        let mut rows = vec![["KIND", "VM", "FREES", "PATH"].map(String::from)];
        rows.extend(self.removed.iter().map(|one| {
            // As seen from the project, where it is inside.
            let path = one.path.strip_prefix(directory).unwrap_or(&one.path);
            let vm = one.vm.clone().unwrap_or_else(|| "-".into());
            [
                one.kind.to_owned(),
                vm,
                ByteSize(one.freed_bytes).to_string(),
                path.display().to_string(),
            ]
        }));
        let text = if self.removed.is_empty() { String::new() } else { table(&rows) };
        printer.show(self, &text)?;
        for kept in &self.kept {
            printer.tip(&format!("kept: {}", kept.why));
        }
        let freed = ByteSize(self.freed_bytes);
        let orphans = self.removed.iter().filter(|one| one.kind == ORPHAN).count();
        let companions = self.removed.iter().filter(|one| one.kind == COMPANION).count();
        printer.success(&match (self.removed.is_empty(), self.dry_run) {
            _ if orphans > 0 && self.dry_run => format!("{orphans} would be stopped"),
            _ if orphans > 0 => {
                format!("{orphans} stopped; their disks were gone with their projects")
            }
            _ if companions > 0 && self.dry_run => format!("{companions} would be ended"),
            _ if companions > 0 => format!("{companions} ended"),
            (true, _) => "nothing to remove".to_owned(),
            (false, true) => format!("{freed} would be freed"),
            (false, false) => format!("{freed} freed"),
        });
        Ok(())
    }
}

/// Ends VMs whose projects are gone; if `clean` names VMs, only those.
fn end_orphans(clean: &CleanArgs, context: &CommandContext) -> Result<ExitCode> {
    let orphans = vm::orphans();
    let companions = vm::outlived_companions(&context.runtime);
    let names = orphans.iter().map(|orphan| &orphan.vm);
    let names: Vec<&String> = names.chain(companions.iter().map(|one| &one.vm)).collect();
    if let Some(unknown) = clean.vms.iter().find(|name| !names.contains(name)) {
        return Err(RecordError::unknown(unknown, &names).into());
    }
    let mut removed = Vec::new();
    for orphan in
        orphans.iter().filter(|orphan| clean.vms.is_empty() || clean.vms.contains(&orphan.vm))
    {
        if !clean.dry_run {
            vm::end_orphan(orphan, &context.runtime)?;
        }
        let (vm, path) = (Some(orphan.vm.clone()), orphan.directory.clone());
        removed.push(Removed { kind: ORPHAN, vm, path, freed_bytes: 0 });
    }
    let is_wanted = |vm: &String| clean.vms.is_empty() || clean.vms.contains(vm);
    for companion in companions.into_iter().filter(|companion| is_wanted(&companion.vm)) {
        if !clean.dry_run {
            vm::end_companion(&companion);
        }
        let (vm, path) = (Some(companion.vm), companion.sockets);
        removed.push(Removed { kind: COMPANION, vm, path, freed_bytes: 0 });
    }
    let freed_bytes = removed.iter().map(|one| one.freed_bytes).sum();
    let content = CleanedUp { dry_run: clean.dry_run, removed, kept: Vec::new(), freed_bytes };
    content.show(Path::new(""), context.printer)?;
    Ok(ExitCode::SUCCESS)
}

fn word(kind: CleanedKind) -> &'static str {
    match kind {
        CleanedKind::Disk => "disk",
        CleanedKind::DataDisk => "data-disk",
        CleanedKind::Vm => "vm",
        CleanedKind::Record => "record",
        CleanedKind::Layer => "layer",
        CleanedKind::Image => "image",
        CleanedKind::Quarantine => "quarantine",
        CleanedKind::Log => "log",
        CleanedKind::Leftover => "leftover",
        CleanedKind::Cache => "cache",
    }
}
