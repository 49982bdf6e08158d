//! Removes templates: unusable ones, or all.

use std::fs;

use crate::cancel::Cancel;
use crate::files::{self, Lock};
use crate::layout::{CacheLayout, TemplatesLayout};
use crate::qemu::QemuBinary;

use super::bake::clear_leftovers;
use super::damage::Damage;
use super::error::TemplateError;
use super::manifest::TemplateManifest;
use super::step::{StepManifest, list_steps};
use super::store::{Template, discard, list};

/// Usability of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A VM of its shape would be restored from it.
    Ready,
    /// Made by another castra or another QEMU; no VM will be restored from it again.
    Outdated,
    /// The files are copies, which are hashed before the next VM of its shape is restored.
    Copied,
    /// A file is missing or was changed.
    Damaged,
}

impl Use {
    /// Returns `true` for a template from which no VM will be restored any more.
    fn is_none(self) -> bool {
        matches!(self, Self::Outdated | Self::Damaged)
    }
}

/// Determines whether this castra can use a template with this QEMU. `steps` are the layers of
/// provisioned disks.
pub fn use_of(
    templates: &TemplatesLayout,
    manifest: &TemplateManifest,
    steps: &[StepManifest],
    qemu: Option<&QemuBinary>,
) -> Use {
    // A layer that is made again is another file.
    let has_layer = manifest
        .ingredients
        .provisioned
        .as_ref()
        .is_none_or(|sha256| steps.iter().any(|layer| layer.disk.sha256 == *sha256));
    if !has_layer
        || !manifest.ingredients.is_of_this_castra()
        || qemu.is_some_and(|qemu| qemu.identity != manifest.ingredients.qemu)
    {
        return Use::Outdated;
    }
    match Template::open(templates, &manifest.key) {
        Ok(Some(_)) => Use::Ready,
        Err(Damage::Unverified(_)) => Use::Copied,
        Ok(None) | Err(_) => Use::Damaged,
    }
}

/// Removes unusable templates, or all; with `dry_run`, only lists them. Templates that are copies
/// are hashed first. Also removes remembered failures, and unfinished templates of killed castras.
/// VMs are unaffected, running or not: their disks are their own.
///
/// # Errors
/// A template cannot be removed, or the user interrupted it.
pub fn prune(
    cache: &CacheLayout,
    qemu: Option<&QemuBinary>,
    all: bool,
    dry_run: bool,
    cancel: &Cancel,
) -> Result<Vec<TemplateManifest>, TemplateError> {
    let templates = cache.templates();
    let steps = list_steps(&cache.steps());
    let is_to_go = |manifest: &TemplateManifest| match use_of(&templates, manifest, &steps, qemu) {
        _ if all => Ok(true),
        // Hashing copies records the result, which a dry run must not do.
        Use::Copied if !dry_run => Ok(recognise(cache, &manifest.key, cancel)?.is_err()),
        found => Ok::<_, TemplateError>(found.is_none()),
    };
    let mut going = Vec::new();
    for manifest in list(&templates) {
        if is_to_go(&manifest)? {
            going.push(manifest);
        }
    }
    if dry_run {
        return Ok(going);
    }
    let mut gone = Vec::new();
    for manifest in going {
        let _lock = lock(cache, &manifest.key, cancel)?;
        // Another castra may have rebuilt it while it held the lock.
        if all || use_of(&templates, &manifest, &steps, qemu) != Use::Ready {
            discard(&templates, &manifest.key)?;
            gone.push(manifest);
        }
    }
    remove_leftovers(cache, &templates, cancel)?;
    Ok(gone)
}

/// Removes everything that is not listed: unfinished templates, those without a readable manifest,
/// and remembered failures.
fn remove_leftovers(
    cache: &CacheLayout,
    templates: &TemplatesLayout,
    cancel: &Cancel,
) -> Result<(), TemplateError> {
    let entries = files::readable_entries(templates.root());
    for path in entries.map(|entry| entry.path()) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(key) = TemplatesLayout::key_of_work(name) {
            let _lock = lock(cache, key, cancel)?;
            clear_leftovers(templates, key, None)?;
        } else if name.ends_with(".refused.json") {
            // If it cannot be removed, baking is tried again a little later than necessary.
            let _ = fs::remove_file(&path);
        } else if is_key(name) {
            let _lock = lock(cache, name, cancel)?;
            if !matches!(TemplateManifest::load(&templates.template(name).manifest()), Ok(Some(_)))
            {
                discard(templates, name)?;
            }
        }
    }
    Ok(())
}

pub(super) fn is_key(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Hashes the files of a template that are copies, and records their stamps.
///
/// # Errors
/// The user interrupted it. Damage of the template is the inner result.
pub fn recognise(
    cache: &CacheLayout,
    key: &str,
    cancel: &Cancel,
) -> Result<Result<Option<Template>, Damage>, TemplateError> {
    // Without a lock in a read-only cache: no one can remove the template there meanwhile.
    let _lock = match lock(cache, key, cancel) {
        Err(error) if error.is_interruption() => return Err(error),
        lock => lock.ok(),
    };
    let recognised = Template::recognise(&cache.templates(), key, cancel);
    cancel.check()?;
    Ok(recognised)
}

fn lock(cache: &CacheLayout, key: &str, cancel: &Cancel) -> Result<Lock, TemplateError> {
    Ok(Lock::acquire(&cache.lock(&format!("template-{key}")), cancel, || ())?)
}
