//! Layers on disk: finds those that can be relied on, and removes the others.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cancel::Cancel;
use crate::files::{self, Lock};
use crate::layout::{CacheLayout, TemplateLayout, TemplatesLayout};

use super::super::bake::clear_leftovers;
use super::super::damage::Damage;
use super::super::error::{TemplateError, file_error};
use super::super::prune::{Use, is_key};
use super::manifest::StepManifest;

/// A layer that other disks can be based on.
#[derive(Debug)]
pub struct StepLayer {
    /// Paths of its files.
    pub layout: TemplateLayout,
    /// Description of the layer.
    pub manifest: StepManifest,
}

impl StepLayer {
    /// Opens the layer with this key, if there is one and it can be relied on by its stamp.
    ///
    /// # Errors
    /// [`Damage`] of the layer.
    pub fn open(steps: &TemplatesLayout, key: &str) -> Result<Option<Self>, Damage> {
        let layout = steps.template(key);
        let unreadable = |error: io::Error| Damage::Manifest(error.to_string());
        let Some(manifest) = StepManifest::load(&layout.step_manifest()).map_err(unreadable)?
        else {
            return Ok(None);
        };
        if manifest.key != key || manifest.ingredients.key() != key {
            return Err(Damage::Manifest("it describes another layer".into()));
        }
        if !manifest.disk.may_be_at(&layout.disk()) {
            return Err(Damage::File("disk"));
        }
        if !manifest.disk.is_at(&layout.disk()) {
            return Err(Damage::Unverified("disk"));
        }
        Ok(Some(Self { layout, manifest }))
    }

    /// Hashes the layer.
    ///
    /// # Errors
    /// [`Damage`] of the layer. A cancelled check reports no damage.
    pub fn verify(&self, cancel: &Cancel) -> Result<(), Damage> {
        match files::sha256(&self.layout.disk(), cancel) {
            Ok(sha256) if sha256 == self.manifest.disk.sha256 => Ok(()),
            Err(_) if cancel.is_cancelled() => Ok(()),
            _ => Err(Damage::File("disk")),
        }
    }
}

/// Opens the layer with this key even if it is a copy: one with an unknown stamp is hashed, once,
/// and its stamp recorded.
///
/// # Errors
/// The user interrupted it. Damage of the layer is the inner result.
pub fn recognise_step(
    cache: &CacheLayout,
    key: &str,
    cancel: &Cancel,
) -> Result<Result<Option<StepLayer>, Damage>, TemplateError> {
    // Without a lock in a read-only cache: no one can remove the layer there meanwhile.
    let _lock = match lock(cache, key, cancel) {
        Err(error) if error.is_interruption() => return Err(error),
        lock => lock.ok(),
    };
    let steps = cache.steps();
    let opened = StepLayer::open(&steps, key);
    if !matches!(opened, Err(Damage::Unverified(_))) {
        return Ok(opened);
    }
    let layout = steps.template(key);
    let Ok(Some(mut manifest)) = StepManifest::load(&layout.step_manifest()) else {
        return Ok(opened);
    };
    let sha256 = |path: &Path| files::sha256(path, cancel).map_err(io::Error::other);
    if let Err(damage) = manifest.disk.recognise("disk", &layout.disk(), sha256, cancel) {
        cancel.check()?;
        return Ok(Err(damage));
    }
    let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    // If it cannot be written, the file is hashed again next time: slower, but correct.
    let _ = files::write_atomically(&layout.step_manifest(), &text, 0o444);
    Ok(Ok(Some(StepLayer { layout, manifest })))
}

/// Returns the finished layers: those of one disk from the lowest up. Leaves out those that cannot
/// be read.
pub fn list_steps(steps: &TemplatesLayout) -> Vec<StepManifest> {
    let entries = files::readable_entries(steps.root());
    let layouts = entries.map(|entry| TemplateLayout::new(entry.path()));
    let mut found: Vec<StepManifest> = layouts
        .filter_map(|layout| StepManifest::load(&layout.step_manifest()).ok().flatten())
        .collect();
    found.sort_by(|one, other| (one.number, &one.key).cmp(&(other.number, &other.key)));
    found
}

/// Determines whether a disk can be based on a layer. `all` are those that [`list_steps`] has
/// returned.
pub fn use_of_step(steps: &TemplatesLayout, layer: &StepManifest, all: &[StepManifest]) -> Use {
    let has_foundation = layer.is_first() || all.iter().any(|below| layer.is_based_on(below));
    if !layer.ingredients.is_of_this_format() || !has_foundation {
        return Use::Outdated;
    }
    match StepLayer::open(steps, &layer.key) {
        Ok(Some(_)) => Use::Ready,
        Err(Damage::Unverified(_)) => Use::Copied,
        Ok(None) | Err(_) => Use::Damaged,
    }
}

/// Removes layers on which no disk can be based any more, or all; with `dry_run`, only lists them.
/// VMs are unaffected: projects have links of their own. What another castra is making or hashing
/// stays, since its step may take hours.
///
/// # Errors
/// A layer cannot be removed, or the user interrupted it.
pub fn prune_steps(
    cache: &CacheLayout,
    all: bool,
    dry_run: bool,
    runtime_root: &Path,
    cancel: &Cancel,
) -> Result<PrunedSteps, TemplateError> {
    let steps = cache.steps();
    let mut staying = list_steps(&steps);
    let mut going = Vec::new();
    // A layer that goes takes those above it along, of which each is in a later round.
    loop {
        let is_to_go = |layer: &StepManifest| {
            all || matches!(use_of_step(&steps, layer, &staying), Use::Outdated | Use::Damaged)
        };
        let keys: HashSet<String> =
            staying.iter().filter(|layer| is_to_go(layer)).map(|layer| layer.key.clone()).collect();
        if keys.is_empty() {
            break;
        }
        going.extend(staying.extract_if(.., |layer| keys.contains(&layer.key)));
    }
    if dry_run {
        let leftover_bytes = leftovers(&steps).iter().map(|(_, path)| allocated(path)).sum();
        return Ok(PrunedSteps { layers: going, leftover_bytes });
    }
    let mut gone = Vec::new();
    for layer in going {
        cancel.check()?;
        let path = cache.step_lock(&layer.key);
        if let Some(lock) = Lock::try_acquire_removable(&path)? {
            discard_step(&steps, &layer.key)?;
            lock.remove(&path);
            gone.push(layer);
        }
    }
    let leftover_bytes = remove_leftovers(cache, &steps, runtime_root)?;
    remove_idle_locks(cache, &steps)?;
    Ok(PrunedSteps { layers: gone, leftover_bytes })
}

/// Result of [`prune_steps`].
#[derive(Debug, Default)]
pub struct PrunedSteps {
    /// Finished layers that were removed, or would be.
    pub layers: Vec<StepManifest>,
    /// Bytes on this machine of what interrupted steps have left, and that was removed, or would
    /// be.
    pub leftover_bytes: u64,
}

/// Removes a layer, its manifest first. The caller holds its lock.
pub(super) fn discard_step(steps: &TemplatesLayout, key: &str) -> Result<(), TemplateError> {
    let layout = steps.template(key);
    files::gone(fs::remove_file(layout.step_manifest()))
        .map_err(file_error("remove", &layout.step_manifest()))?;
    files::gone(fs::remove_dir_all(layout.directory()))
        .map_err(file_error("remove", layout.directory()))
}

/// Removes unfinished layers of castras that were killed, with their machines and sockets.
///
/// # Errors
/// [`TemplateError::File`] and [`TemplateError::Lock`].
pub fn remove_unfinished(
    cache: &CacheLayout,
    steps: &TemplatesLayout,
    runtime_root: &Path,
) -> Result<(), TemplateError> {
    for entry in files::readable_entries(steps.root()) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(key) = TemplatesLayout::key_of_work(&name) else { continue };
        if let Some(_lock) = Lock::try_acquire_removable(&cache.step_lock(key))? {
            clear_leftovers(steps, key, Some(runtime_root))?;
        }
    }
    Ok(())
}

/// Returns unfinished layers, and those without a readable manifest, with their keys.
fn leftovers(steps: &TemplatesLayout) -> Vec<(String, PathBuf)> {
    let leftover = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        if let Some(key) = TemplatesLayout::key_of_work(&name) {
            return Some((key.to_owned(), entry.path()));
        }
        let manifest = || StepManifest::load(&steps.template(&name).step_manifest());
        let is_leftover = is_key(&name) && !matches!(manifest(), Ok(Some(_)));
        is_leftover.then(|| (name, entry.path()))
    };
    files::readable_entries(steps.root()).filter_map(leftover).collect()
}

/// Removes unfinished layers, and those without a readable manifest. Returns the bytes that they
/// took.
fn remove_leftovers(
    cache: &CacheLayout,
    steps: &TemplatesLayout,
    runtime_root: &Path,
) -> Result<u64, TemplateError> {
    let found: Vec<(PathBuf, u64)> =
        leftovers(steps).into_iter().map(|(_, path)| (path.clone(), allocated(&path))).collect();
    remove_unfinished(cache, steps, runtime_root)?;
    for (key, _) in leftovers(steps).into_iter().filter(|(key, path)| path.ends_with(key)) {
        let path = cache.step_lock(&key);
        let Some(_lock) = Lock::try_acquire_removable(&path)? else { continue };
        // It may have been made meanwhile.
        if !matches!(StepManifest::load(&steps.template(&key).step_manifest()), Ok(Some(_))) {
            discard_step(steps, &key)?;
        }
    }
    Ok(found.iter().filter(|(path, _)| !path.exists()).map(|(_, bytes)| bytes).sum())
}

/// Removes the locks of layers of which nothing is there, and that are not being made.
fn remove_idle_locks(cache: &CacheLayout, steps: &TemplatesLayout) -> Result<(), TemplateError> {
    let locks = cache.step_lock("any");
    let entries = fs::read_dir(locks.parent().unwrap_or(Path::new("/")));
    for entry in entries.into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let key = name.strip_prefix("step-").and_then(|name| name.strip_suffix(".lock"));
        let Some(key) = key.filter(|key| is_key(key)) else { continue };
        let path = cache.step_lock(key);
        let is_there = || {
            let is_left = leftovers(steps).iter().any(|(of, _)| of == key);
            is_left || steps.template(key).directory().exists()
        };
        if !is_there()
            && let Some(lock) = Lock::try_acquire_removable(&path)?
            && !is_there()
        {
            lock.remove(&path);
        }
    }
    Ok(())
}

/// Returns the bytes that a directory's files take on this machine.
fn allocated(directory: &Path) -> u64 {
    let metadata = files::readable_entries(directory).filter_map(|entry| entry.metadata().ok());
    metadata.map(|metadata| files::allocated_bytes(&metadata)).sum()
}

fn lock(cache: &CacheLayout, key: &str, cancel: &Cancel) -> Result<Lock, TemplateError> {
    Ok(Lock::acquire_removable(&cache.step_lock(key), cancel, || ())?)
}

#[cfg(test)]
mod tests {
    use super::super::super::manifest::TemplateFile;
    use super::super::manifest::Foundation;
    use super::super::manifest::tests::{sample, sample_on};
    use super::*;

    fn cache() -> (tempfile::TempDir, CacheLayout) {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = CacheLayout::new(directory.path().join("cache"));
        (directory, cache)
    }

    /// Creates a finished layer on the one with this digest, or on the base image.
    fn layer(cache: &CacheLayout, number: u64, text: &str, below: Option<&str>) -> StepManifest {
        let foundation = below
            .map_or(sample().foundation, |sha256| Foundation::Layer { sha256: sha256.to_owned() });
        let ingredients = sample_on(foundation);
        let key = ingredients.key();
        let layout = cache.steps().template(&key);
        fs::create_dir_all(layout.directory()).expect("a directory");
        fs::write(layout.disk(), text).expect("written");
        let sha256 = files::sha256(&layout.disk(), &Cancel::new()).expect("read");
        let manifest = StepManifest {
            key,
            ingredients,
            number,
            text: text.to_owned(),
            castra_version: "0".into(),
            made_unix_ms: 1,
            took_ms: 1,
            disk: TemplateFile::new(&layout.disk(), sha256).expect("is there"),
        };
        let bytes = serde_json::to_vec(&manifest).expect("JSON");
        fs::write(layout.step_manifest(), bytes).expect("written");
        manifest
    }

    /// Creates three layers on each other.
    fn chain(cache: &CacheLayout) -> Vec<StepManifest> {
        let first = layer(cache, 1, "one", None);
        let second = layer(cache, 2, "two", Some(&first.disk.sha256));
        let third = layer(cache, 3, "three", Some(&second.disk.sha256));
        vec![first, second, third]
    }

    fn pruned(cache: &CacheLayout, all: bool) -> Vec<String> {
        let gone =
            prune_steps(cache, all, false, Path::new("/none"), &Cancel::new()).expect("pruned");
        gone.layers.into_iter().map(|layer| layer.text).collect()
    }

    #[test]
    fn a_layer_is_found_and_its_damage_too() {
        let (_directory, cache) = cache();
        let (steps, key) = (cache.steps(), layer(&cache, 1, "one", None).key);
        let open = || StepLayer::open(&steps, &key).map(|layer| layer.is_some());
        assert_eq!(open(), Ok(true));
        let disk = steps.template(&key).disk();
        let verified = || {
            let layer = StepLayer::open(&steps, &key).expect("no damage").expect("is there");
            layer.verify(&Cancel::new())
        };
        assert_eq!(verified(), Ok(()));
        let touch = || {
            fs::File::open(&disk)
                .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
                .expect("touched");
        };
        touch();
        assert_eq!(open(), Err(Damage::Unverified("disk")));
        let recognise =
            || recognise_step(&cache, &key, &Cancel::new()).expect("no trouble").map(drop);
        assert_eq!(recognise(), Ok(()));
        assert_eq!(open(), Ok(true));
        fs::write(&disk, "two").expect("written");
        touch();
        assert_eq!(verified(), Err(Damage::File("disk")));
        fs::write(&disk, "two").expect("written");
        assert_eq!(recognise(), Err(Damage::File("disk")));
        fs::write(&disk, "longer").expect("written");
        assert_eq!(open(), Err(Damage::File("disk")));
        assert_eq!(StepLayer::open(&steps, "abc").map(|layer| layer.is_some()), Ok(false));
    }

    #[test]
    fn a_layer_under_another_ones_name_is_damage() {
        let (_directory, cache) = cache();
        let (steps, key) = (cache.steps(), layer(&cache, 1, "one", None).key);
        let other = "0".repeat(32);
        fs::rename(steps.template(&key).directory(), steps.template(&other).directory())
            .expect("renamed");
        assert!(matches!(StepLayer::open(&steps, &other), Err(Damage::Manifest(_))));
    }

    #[test]
    fn pruning_takes_what_no_disk_can_be_based_on() {
        let (_directory, cache) = cache();
        let layers = chain(&cache);
        assert_eq!(pruned(&cache, false), [""; 0]);
        let texts = |layers: Vec<StepManifest>| {
            layers.into_iter().map(|layer| layer.text).collect::<Vec<_>>()
        };
        assert_eq!(texts(list_steps(&cache.steps())), ["one", "two", "three"]);
        // A layer that is made again is another file.
        fs::write(cache.steps().template(&layers[0].key).disk(), "other").expect("written");
        let dry =
            prune_steps(&cache, false, true, Path::new("/none"), &Cancel::new()).expect("listed");
        assert_eq!(texts(dry.layers), ["one", "two", "three"]);
        assert_eq!(pruned(&cache, false), ["one", "two", "three"]);
        assert!(list_steps(&cache.steps()).is_empty());
        chain(&cache);
        assert_eq!(pruned(&cache, true), ["one", "two", "three"]);
    }

    #[test]
    fn pruning_takes_what_killed_castras_have_left() {
        let (_directory, cache) = cache();
        let steps = cache.steps();
        let key = layer(&cache, 1, "one", None).key;
        let (work, bare) = (steps.work(&key, "ab"), steps.template(&"1".repeat(32)));
        for directory in [work.directory(), bare.directory()] {
            fs::create_dir_all(directory).expect("a directory");
        }
        let lock = Lock::try_acquire(&cache.step_lock(&key)).expect("opened").expect("free");
        assert_eq!(pruned(&cache, true), [""; 0]);
        assert!(work.directory().exists(), "it is being made");
        drop(lock);
        fs::write(work.disk(), "unfinished").expect("written");
        let prune = |dry_run| {
            prune_steps(&cache, false, dry_run, Path::new("/none"), &Cancel::new()).expect("pruned")
        };
        let idle = cache.step_lock(&"2".repeat(32));
        drop(Lock::try_acquire(&idle).expect("opened"));
        assert!(prune(true).leftover_bytes > 0 && work.directory().exists());
        let pruned = prune(false);
        assert!(pruned.layers.is_empty() && pruned.leftover_bytes > 0);
        assert_eq!(prune(false).leftover_bytes, 0);
        assert!(!idle.exists() && cache.step_lock(&key).exists());
        assert!(!work.directory().exists() && !bare.directory().exists());
        assert_eq!(list_steps(&steps).len(), 1);
    }
}
