//! The user's cache: images, templates, and quarantined or left-over files.

use crate::cancel::Interrupted;
use crate::context::RuntimeContext;
use crate::files;
use crate::managed::{Catalog, ImageManager, Manifest};
use crate::qemu::QemuBinary;
use crate::size::ByteSize;
use crate::template::{self, Use};

use super::{Area, Finding, Repair};

pub(super) fn check(
    binary: Option<&QemuBinary>,
    context: &RuntimeContext,
) -> Result<Vec<Finding>, Interrupted> {
    let mut findings = vec![images(context)];
    context.cancel.check()?;
    findings.extend(templates(binary, context));
    findings.extend(quarantined(context));
    Ok(findings)
}

/// Checks images by their stamps; `castra image verify` hashes them.
fn images(context: &RuntimeContext) -> Finding {
    let directory = context.cache.images();
    let mut whole = Vec::new();
    for id in names(directory.root()) {
        for version in
            names(&directory.root().join(&id)).into_iter().filter(|name| !name.starts_with('.'))
        {
            if Manifest::load(&directory.image(&id, &version)).is_ok() {
                whole.push(format!("{id} {version}"));
            }
        }
    }
    if whole.is_empty() {
        let manager = ImageManager::new(&context.cache.runs());
        let catalog = Catalog::builtin();
        let is_near =
            catalog.default_candidates().iter().any(|spec| manager.is_cached(spec, context));
        let message = if is_near {
            "an image is downloaded but not built yet"
        } else {
            "the cache has no images yet: the first start downloads one"
        };
        return Finding::note(Area::Cache, "images", message);
    }
    Finding::good(Area::Cache, "images", format!("images in the cache: {}", whole.join(", ")))
}

fn templates(binary: Option<&QemuBinary>, context: &RuntimeContext) -> Vec<Finding> {
    let directory = context.cache.templates();
    let found = template::list(&directory);
    let mut findings = Vec::new();
    let steps = template::list_steps(&context.cache.steps());
    let use_of = |manifest| template::use_of(&directory, manifest, &steps, binary);
    let uses: Vec<Use> = found.iter().map(use_of).collect();
    let count = |wanted: Use| uses.iter().filter(|one| **one == wanted).count();
    let ready = count(Use::Ready);
    if ready > 0 {
        let words = if ready == 1 { "warm template is" } else { "warm templates are" };
        findings.push(Finding::good(Area::Cache, "templates", format!("{ready} {words} ready")));
    }
    let copied = count(Use::Copied);
    if copied > 0 {
        let message = format!(
            "{copied} of the warm templates were copied and will be verified when they \
                are next used"
        );
        findings.push(Finding::note(Area::Cache, "copied-templates", message));
    }
    for (of, check, what) in [
        (
            Use::Outdated,
            "outdated-templates",
            "warm templates of another castra or QEMU are obsolete",
        ),
        (Use::Damaged, "damaged-templates", "warm templates are damaged"),
    ] {
        let bytes: u64 = found
            .iter()
            .zip(&uses)
            .filter(|(_, one)| **one == of)
            .map(|(one, _)| one.allocated_bytes())
            .sum();
        if count(of) > 0 {
            let message = format!("{} {what} ({})", count(of), ByteSize(bytes));
            findings.push(
                Finding::warning(Area::Cache, check, message)
                    .with_fix("`castra template prune` removes them.")
                    .with_repair(Repair::PruneTemplates),
            );
        }
    }
    findings.extend(refusals(context));
    findings
}

/// Reports failures of templates: VMs boot without one as long as the failure is remembered.
fn refusals(context: &RuntimeContext) -> Option<Finding> {
    let directory = context.cache.templates();
    let keys = names(directory.root());
    let mut reasons = keys.iter().filter_map(|name| name.strip_suffix(".refused.json"));
    let refusal = reasons.find_map(|key| template::refusal(&directory, key))?;
    let message =
        format!("a warm template could not be made, so VMs boot without one: {}", refusal.reason);
    let finding = Finding::warning(Area::Cache, "refused-templates", message);
    Some(
        finding
            .with_fix("`castra template prune` lets the next start try again.")
            .with_repair(Repair::PruneTemplates),
    )
}

/// Reports damaged files in the quarantine, which nothing uses any more.
fn quarantined(context: &RuntimeContext) -> Option<Finding> {
    let count = names(&context.cache.quarantine()).len();
    (count > 0).then(|| {
        let message = format!(
            "{count} damaged files are quarantined in {}",
            context.cache.quarantine().display()
        );
        Finding::note(Area::Cache, "quarantine", message).with_fix(
            "`castra image prune` removes them. Recurring damage points to a failing disk \
                or memory.",
        )
    })
}

fn names(directory: &std::path::Path) -> Vec<String> {
    let entries = files::readable_entries(directory);
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
