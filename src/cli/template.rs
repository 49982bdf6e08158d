//! `castra template`: lists, verifies and prunes warm templates.

use std::process::ExitCode;

use castra_engine::error::{Kind, Result};
use castra_engine::host::since_unix_ms;
use castra_engine::qemu::{Accelerator, QemuBinary};
use castra_engine::report::ImageLabel;
use castra_engine::size::ByteSize;
use castra_engine::template::{
    self, Damage, PrunedSteps, StepLayer, StepManifest, Template as Opened, TemplateManifest, Use,
};
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
    /// Layers of provisioned disks.
    layers: Vec<Layer>,
}

#[derive(Serialize, JsonSchema)]
struct Layer {
    key: String,
    image: ImageLabel,
    /// Number of the step, from 1.
    number: u64,
    /// The step as one short line.
    step: String,
    accelerator: Accelerator,
    disk_bytes: u64,
    made_unix_ms: u64,
    allocated_bytes: u64,
    /// `ready`, `outdated`, `copied` or `damaged`.
    state: &'static str,
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
    /// SHA-256 of the layer of the last step, if the disk was provisioned.
    #[serde(skip_serializing_if = "Option::is_none")]
    provisioned: Option<String>,
    /// `ready`, `outdated`, `copied` or `damaged`.
    state: &'static str,
}

/// Runs one subcommand.
pub(super) fn run(template: &TemplateArgs, context: &CommandContext) -> Result<ExitCode> {
    let found = template::list(&context.runtime.cache.templates());
    let steps = template::list_steps(&context.runtime.cache.steps());
    // Without QEMU, no template counts as outdated because of its QEMU.
    let qemu = QemuBinary::find(&context.runtime.environment).ok();
    match template.command {
        TemplateCommand::List => {
            if found.is_empty() && steps.is_empty() {
                context.printer.tip(
                    "There are no warm templates yet. `castra up` makes one when \
                    it first starts a VM of a new configuration.",
                );
            }
            let entries = entries(&found, &steps, qemu.as_ref(), context);
            print(entries, layers(&steps, context), context.printer)
        }
        TemplateCommand::Verify => verify(&found, &steps, qemu.as_ref(), context),
        TemplateCommand::Prune { all, dry_run } => {
            prune(&found, &steps, qemu.as_ref(), Extent { all, dry_run }, context)
        }
    }
}

/// Extent of pruning.
#[derive(Clone, Copy)]
struct Extent {
    all: bool,
    dry_run: bool,
}

/// Removes layers first: templates on them are unusable then.
fn prune(
    found: &[TemplateManifest],
    steps: &[StepManifest],
    qemu: Option<&QemuBinary>,
    Extent { all, dry_run }: Extent,
    context: &CommandContext,
) -> Result<ExitCode> {
    let (cache, cancel) = (&context.runtime.cache, &context.runtime.cancel);
    let (entries, layers) = (entries(found, steps, qemu, context), layers(steps, context));
    let gone_steps =
        template::prune_steps(cache, all, dry_run, &context.runtime.runtime_root, cancel)?;
    let gone = template::prune(cache, qemu, all, dry_run, cancel)?;
    let PrunedSteps { layers: gone_steps, leftover_bytes } = gone_steps;
    let of_steps: u64 = gone_steps.iter().map(|layer| layer.disk.allocated_bytes).sum();
    let freed: u64 =
        gone.iter().map(TemplateManifest::allocated_bytes).sum::<u64>() + of_steps + leftover_bytes;
    context.printer.success(&match (
        gone.is_empty() && gone_steps.is_empty() && leftover_bytes == 0,
        dry_run,
    ) {
        (true, _) => "nothing to remove".to_owned(),
        (false, true) => format!("{} would be freed", ByteSize(freed)),
        (false, false) => format!("{} freed", ByteSize(freed)),
    });
    let entries = entries.into_iter().filter(|entry| gone.iter().any(|one| one.key == entry.key));
    let layers =
        layers.into_iter().filter(|layer| gone_steps.iter().any(|one| one.key == layer.key));
    print(entries.collect(), layers.collect(), context.printer)
}

/// Hashes every file of every template. Warns about a damaged one; the next VM of its shape
/// rebuilds it.
fn verify(
    found: &[TemplateManifest],
    steps: &[StepManifest],
    qemu: Option<&QemuBinary>,
    context: &CommandContext,
) -> Result<ExitCode> {
    let templates = context.runtime.cache.templates();
    let (mut entries, mut layers) = (entries(found, steps, qemu, context), layers(steps, context));
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
    for layer in &mut layers {
        context.runtime.cancel.check()?;
        if let Err(damage) = verify_layer(layer, context)? {
            context.printer.warning(&format!(
                "layer {} {damage}; its step is run again when it is needed",
                layer.key
            ));
            layer.state = "damaged";
            is_all_right = false;
        }
    }
    print(entries, layers, context.printer)?;
    Ok(if is_all_right { ExitCode::SUCCESS } else { exit::of_kind(Kind::Data) })
}

fn verify_layer(
    layer: &mut Layer,
    context: &CommandContext,
) -> Result<std::result::Result<(), Damage>> {
    let (cache, cancel) = (&context.runtime.cache, &context.runtime.cancel);
    let opened = match StepLayer::open(&cache.steps(), &layer.key) {
        Err(Damage::Unverified(_)) => template::recognise_step(cache, &layer.key, cancel)?,
        opened => opened,
    };
    if matches!(opened, Ok(Some(_))) && layer.state == "copied" {
        layer.state = "ready";
    }
    Ok(opened.and_then(|opened| opened.map_or(Ok(()), |opened| opened.verify(cancel))))
}

fn layers(steps: &[StepManifest], context: &CommandContext) -> Vec<Layer> {
    let root = context.runtime.cache.steps();
    let layer = |manifest: &StepManifest| Layer {
        key: manifest.key.clone(),
        image: manifest.ingredients.image.clone(),
        number: manifest.number,
        step: manifest.text.clone(),
        accelerator: manifest.ingredients.accelerator,
        disk_bytes: manifest.ingredients.disk_bytes,
        made_unix_ms: manifest.made_unix_ms,
        allocated_bytes: manifest.disk.allocated_bytes,
        state: state(template::use_of_step(&root, manifest, steps)),
    };
    steps.iter().map(layer).collect()
}

/// Returns the name of a use.
fn state(used: Use) -> &'static str {
    match used {
        Use::Ready => "ready",
        Use::Outdated => "outdated",
        Use::Copied => "copied",
        Use::Damaged => "damaged",
    }
}

fn entries(
    found: &[TemplateManifest],
    steps: &[StepManifest],
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
            provisioned: ingredients.provisioned.clone(),
            state: state(template::use_of(&templates, manifest, steps, qemu)),
        }
    };
    found.iter().map(entry).collect()
}

fn print(entries: Vec<Entry>, layers: Vec<Layer>, printer: &Printer) -> Result<ExitCode> {
    let mut rows = vec![
        ["KEY", "IMAGE", "CPUS", "MEMORY", "DISK", "ACCEL", "AGE", "SIZE", "STATE"]
            .map(String::from),
    ];
    rows.extend(entries.iter().map(row));
    let mut text = if entries.is_empty() { String::new() } else { table(&rows) };
    if !layers.is_empty() {
        let heads = ["LAYER", "IMAGE", "STEP", "ACCEL", "AGE", "SIZE", "STATE", "COMMAND"];
        let rows: Vec<[String; 8]> =
            [heads.map(String::from)].into_iter().chain(layers.iter().map(layer_row)).collect();
        let gap = if text.is_empty() { "" } else { "\n" };
        text = format!("{text}{gap}{}", table(&rows));
    }
    printer.show(&Templates { templates: entries, layers }, &text)?;
    Ok(ExitCode::SUCCESS)
}

fn layer_row(layer: &Layer) -> [String; 8] {
    [
        layer.key[..layer.key.len().min(12)].to_owned(),
        layer.image.to_string(),
        layer.number.to_string(),
        layer.accelerator.name().to_owned(),
        span(since_unix_ms(layer.made_unix_ms)),
        ByteSize(layer.allocated_bytes).to_string(),
        layer.state.to_owned(),
        layer.step.clone(),
    ]
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
