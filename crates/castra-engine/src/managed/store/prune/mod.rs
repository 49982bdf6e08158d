//! Removal of what no project needs from the cache.
//!
//! ```text
//! a project's reference ─► its images, and the downloads they are made from ─► kept
//! an image with a file that is linked outside the cache ─► kept: removing it would free nothing
//! anything that a running castra has locked ─► kept
//! everything else: images, downloads, parts of interrupted downloads, quarantine, references of
//! projects that are gone ─► removed
//! ```
//!
//! Projects have links or copies of their own, so that removing too much costs time and never data.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};

use super::manifest;
use super::references::{self, Loaded};
use crate::cancel::Cancel;
use crate::files::{self, Digest, FileError, Lock, entries};
use crate::layout::{CacheLayout, ProjectLayout};
use crate::managed::error::ImageError;
use crate::managed::job::lock_if_free;
use crate::report::ImageLabel;
use crate::trusted;

mod usage;

use usage::Usage;

/// Options of a prune.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PruneOptions {
    /// Only report what would be removed.
    pub dry_run: bool,
    /// Also remove downloads of images that projects have: they serve only to rebuild those.
    pub downloads: bool,
}

/// One thing that was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// Kind of thing.
    pub kind: PrunedKind,
    /// An image's name and version, a digest, or a file's name.
    pub name: String,
    /// The file or directory.
    pub path: PathBuf,
    /// Disk space in bytes that its removal frees: 0 for a file with another name elsewhere.
    pub freed_bytes: u64,
}

/// Kinds of things in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PrunedKind {
    /// An image, or a part of one that an interrupted castra left.
    Image,
    /// A verified download.
    Download,
    /// A part of a download that was interrupted.
    Partial,
    /// A damaged file in quarantine.
    Quarantine,
    /// The reference of a project that is gone.
    Project,
}

/// Removes what no project needs from the cache, and the quarantine of `project`. Returns what was
/// removed, ordered by kind.
///
/// # Errors
/// Returns [`ImageError::NewerReference`] before anything is removed, errors of reading and writing
/// the cache, and [`ImageError::Interrupted`]. What was removed before stays removed.
pub fn prune(
    cache: &CacheLayout,
    project: Option<&ProjectLayout>,
    options: PruneOptions,
    cancel: &Cancel,
) -> Result<Vec<Pruned>, ImageError> {
    if !options.dry_run {
        release_runs(cache);
    }
    let usage = Usage::of(cache, project)?;
    let (needed, done) = (Needed::default(), Vec::new());
    let mut pruning = Pruning { cache, project, options, cancel, usage, needed, done };
    pruning.references()?;
    pruning.images()?;
    pruning.downloads()?;
    pruning.quarantine()?;
    pruning.done.sort_by(|one, other| (one.kind, &one.name).cmp(&(other.kind, &other.name)));
    Ok(pruning.done)
}

/// Removes the links to images and templates that throwaway VMs leave behind, so that they keep
/// nothing from being pruned. While such a VM is starting it holds the lock of its directory, and
/// the links stay.
fn release_runs(cache: &CacheLayout) {
    let runs = cache.runs();
    let entries = files::readable_entries(&runs.vms());
    let is_starting = |vm: String| {
        let path = runs.vm(&vm).lock();
        trusted::open(&path).is_ok_and(|file| !matches!(Lock::try_hold(file, &path), Ok(Some(_))))
    };
    if entries.filter_map(|entry| entry.file_name().into_string().ok()).any(is_starting) {
        return;
    }
    // A link that cannot be removed stays, and keeps its image.
    let _ = fs::remove_dir_all(runs.images().root());
    let _ = fs::remove_dir_all(runs.state_root().join("templates"));
}

/// Everything that projects need.
#[derive(Default)]
struct Needed {
    images: BTreeSet<ImageLabel>,
    blobs: BTreeSet<Digest>,
}

struct Pruning<'a> {
    cache: &'a CacheLayout,
    project: Option<&'a ProjectLayout>,
    options: PruneOptions,
    cancel: &'a Cancel,
    usage: Usage,
    needed: Needed,
    done: Vec<Pruned>,
}

impl Pruning<'_> {
    /// Collects what is needed, and removes references of projects that are gone.
    fn references(&mut self) -> Result<(), ImageError> {
        let mut gone = Vec::new();
        for (path, loaded) in references::all(self.cache)? {
            let reference = match loaded {
                Loaded::Reference(reference) => reference,
                Loaded::Newer(format) => return Err(ImageError::NewerReference { path, format }),
                Loaded::Junk => {
                    gone.push((file_name(&path), path));
                    continue;
                }
            };
            let mut is_alive = false;
            for one in reference.alive() {
                is_alive = true;
                self.needed.images.insert(one.image.clone());
                self.needed.blobs.extend(one.blobs.iter().cloned());
            }
            if !is_alive {
                gone.push((reference.state_root.display().to_string(), path));
            }
        }
        for (name, path) in gone {
            self.remove(PrunedKind::Project, name, &path)?;
        }
        Ok(())
    }

    fn images(&mut self) -> Result<(), FileError> {
        for id in entries(self.cache.images().root())? {
            for version in entries(&id.path())? {
                self.cancel.check()?;
                self.image(&id, &version)?;
            }
            if !self.options.dry_run {
                // Fails as long as the directory is not empty.
                let _ = fs::remove_dir(id.path());
            }
        }
        Ok(())
    }

    fn image(&mut self, id: &DirEntry, version: &DirEntry) -> Result<(), FileError> {
        let (id, name) = (text(id), text(version));
        // `.<version>~work…`: something is being made there, or an interrupted castra left it.
        let unfinished = name.strip_prefix('.').and_then(|name| name.split_once("~work"));
        let version_name = unfinished.map_or(name.as_str(), |(version, _)| version);
        let image = ImageLabel { id, version: version_name.to_owned() };
        let path = version.path();
        let is_needed =
            self.needed.images.contains(&image) || self.usage.has_links_elsewhere(&path);
        if unfinished.is_none() && is_needed {
            return Ok(());
        }
        let Some(_lock) = self.lock(&self.cache.image_lock(&image.id, &image.version))? else {
            return Ok(());
        };
        self.remove(PrunedKind::Image, image.to_string(), &path)
    }

    fn downloads(&mut self) -> Result<(), FileError> {
        for algorithm in entries(&self.cache.blobs())? {
            for entry in entries(&algorithm.path())? {
                self.cancel.check()?;
                self.download(&text(&algorithm), &entry)?;
            }
        }
        Ok(())
    }

    fn download(&mut self, algorithm: &str, entry: &DirEntry) -> Result<(), FileError> {
        let name = text(entry);
        let (hex, kind) = match name.split_once('.') {
            Some((hex, _)) => (hex, PrunedKind::Partial),
            None => (name.as_str(), PrunedKind::Download),
        };
        let digest = match algorithm {
            "sha512" => Digest::Sha512(hex.to_owned()),
            _ => Digest::Sha256(hex.to_owned()),
        };
        let may_go_all_the_same = self.options.downloads && kind == PrunedKind::Download;
        if self.needed.blobs.contains(&digest) && !may_go_all_the_same {
            return Ok(());
        }
        let Some(_lock) = self.lock(&self.cache.blob_lock(algorithm, hex))? else {
            return Ok(());
        };
        self.remove(kind, format!("{algorithm}:{hex}"), &entry.path())
    }

    fn quarantine(&mut self) -> Result<(), FileError> {
        let here = self.project.map(ProjectLayout::quarantine);
        for quarantine in std::iter::once(self.cache.quarantine()).chain(here) {
            for entry in entries(&quarantine)? {
                self.remove(PrunedKind::Quarantine, text(&entry), &entry.path())?;
            }
        }
        Ok(())
    }

    /// Takes the lock of something to be removed; returns `None` if a running castra holds it. A
    /// dry run takes it too, so that its report is the same.
    fn lock(&self, path: &Path) -> Result<Option<crate::files::Lock>, FileError> {
        lock_if_free(path)
    }

    fn remove(&mut self, kind: PrunedKind, name: String, path: &Path) -> Result<(), FileError> {
        let freed_bytes = self.usage.take(path);
        if !self.options.dry_run {
            if kind == PrunedKind::Image {
                // Removed first, so that what is left after a crash is not an image.
                files::remove_file(&manifest::path_in(path))?;
            }
            // Removes a link itself, not its target.
            match fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
                true => files::remove_directory(path)?,
                false => files::remove_file(path)?,
            }
        }
        self.done.push(Pruned { kind, name, path: path.to_owned(), freed_bytes });
        Ok(())
    }
}

fn text(entry: &DirEntry) -> String {
    entry.file_name().to_string_lossy().into_owned()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
