//! `castra template`: lists, verifies and prunes warm templates.

use std::process::ExitCode;

use castra_engine::error::{Kind, Result};
use castra_engine::host::since_unix_ms;
use castra_engine::qemu::{Accelerator, QemuBinary};
use castra_engine::report::ImageLabel;
use castra_engine::size::ByteSize;
use castra_engine::template::{self, Damage, Template as Opened, TemplateManifest, Use};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{TemplateArgs, TemplateCommand};
use super::context::CommandContext;
use super::exit;
use super::printer::Printer;
use super::table::table;
use super::units::span;

#[derive(Serialize, JsonSchema)]
pub(super) struct Templates {
    templates: Vec<Entry>,
}

#[derive(Serialize, JsonSchema)]
struct Entry {
    key: String,
    image: ImageLabel,
    accelerator: Accelerator,
    cpus: u32,
    memory_mib: u64,
    disk_bytes: u64,
    made_unix_ms: u64,
    allocated_bytes: u64,
    /// `ready`, `outdated`, `copied` or `damaged`.
    state: &'static str,
}

/// Runs one subcommand.
pub(super) fn run(template: &TemplateArgs, context: &CommandContext) -> Result<ExitCode> {
    let found = template::list(&context.runtime.cache.templates());
    // Without QEMU, no template counts as outdated because of its QEMU.
    let qemu = QemuBinary::find(&context.runtime.environment).ok();
    match template.command {
        TemplateCommand::List => {
            if found.is_empty() {
                context.printer.tip(
                    "There are no warm templates yet. `castra up` makes one when \
                    it first starts a VM of a new configuration.",
                );
            }
            print(entries(&found, qemu.as_ref(), context), context.printer)
        }
        TemplateCommand::Verify => verify(&found, qemu.as_ref(), context),
        TemplateCommand::Prune { all, dry_run } => {
            let entries = entries(&found, qemu.as_ref(), context);
            let gone = template::prune(
                &context.runtime.cache,
                qemu.as_ref(),
                all,
                dry_run,
                &context.runtime.cancel,
            )?;
            let freed: u64 = gone.iter().map(TemplateManifest::allocated_bytes).sum();
            context.printer.success(&match (gone.is_empty(), dry_run) {
                (true, _) => "nothing to remove".to_owned(),
                (false, true) => format!("{} would be freed", ByteSize(freed)),
                (false, false) => format!("{} freed", ByteSize(freed)),
            });
            let entries =
                entries.into_iter().filter(|entry| gone.iter().any(|one| one.key == entry.key));
            print(entries.collect(), context.printer)
        }
    }
}

/// Hashes every file of every template. Warns about a damaged one; the next VM of its shape
/// rebuilds it.
fn verify(
    found: &[TemplateManifest],
    qemu: Option<&QemuBinary>,
    context: &CommandContext,
) -> Result<ExitCode> {
    let templates = context.runtime.cache.templates();
    let mut entries = entries(found, qemu, context);
    let mut is_all_right = true;
    for entry in &mut entries {
        context.runtime.cancel.check()?;
        let opened = match Opened::open(&templates, &entry.key) {
            Err(Damage::Unverified(_)) => {
                template::recognise(&context.runtime.cache, &entry.key, &context.runtime.cancel)?
            }
            opened => opened,
        };
        if matches!(opened, Ok(Some(_))) && entry.state == "copied" {
            entry.state = "ready";
        }
        let whole = opened.and_then(|opened| {
            opened.map_or(Ok(()), |opened| opened.verify(&context.runtime.cancel))
        });
        if let Err(damage) = whole {
            context.printer.warning(&format!(
                "template {} {damage}; it is rebuilt when it is needed",
                entry.key
            ));
            entry.state = "damaged";
            is_all_right = false;
        }
    }
    print(entries, context.printer)?;
    Ok(if is_all_right { ExitCode::SUCCESS } else { exit::of_kind(Kind::Data) })
}

fn entries(
    found: &[TemplateManifest],
    qemu: Option<&QemuBinary>,
    context: &CommandContext,
) -> Vec<Entry> {
    let templates = context.runtime.cache.templates();
    let entry = |manifest: &TemplateManifest| {
        let ingredients = &manifest.ingredients;
        Entry {
            key: manifest.key.clone(),
            image: ingredients.image.clone(),
            accelerator: ingredients.accelerator,
            cpus: ingredients.cpus,
            memory_mib: ingredients.memory_mib,
            disk_bytes: ingredients.disk_bytes,
            made_unix_ms: manifest.made_unix_ms,
            allocated_bytes: manifest.allocated_bytes(),
            state: match template::use_of(&templates, manifest, qemu) {
                Use::Ready => "ready",
                Use::Outdated => "outdated",
                Use::Copied => "copied",
                Use::Damaged => "damaged",
            },
        }
    };
    found.iter().map(entry).collect()
}

fn print(entries: Vec<Entry>, printer: &Printer) -> Result<ExitCode> {
    let mut rows = vec![
        ["KEY", "IMAGE", "CPUS", "MEMORY", "DISK", "ACCEL", "AGE", "SIZE", "STATE"]
            .map(String::from),
    ];
    rows.extend(entries.iter().map(row));
    let text = if entries.is_empty() { String::new() } else { table(&rows) };
    printer.show(&Templates { templates: entries }, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn row(entry: &Entry) -> [String; 9] {
    [
        entry.key[..entry.key.len().min(12)].to_owned(),
        entry.image.to_string(),
        entry.cpus.to_string(),
        format!("{} MiB", entry.memory_mib),
        ByteSize(entry.disk_bytes).to_string(),
        entry.accelerator.name().to_owned(),
        span(since_unix_ms(entry.made_unix_ms)),
        ByteSize(entry.allocated_bytes).to_string(),
        entry.state.to_owned(),
    ]
}
