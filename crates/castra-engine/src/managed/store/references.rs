//! References: what each project needs from the cache, one small file per project, written when an
//! image is put into it.
//!
//! A reference counts as long as the project has its directory of that image. Removing or moving a
//! project therefore needs no notice; a moved one is recorded again by its next `castra up`.
//! Projects have links or copies of their own, so even a wrong reference costs time and never data.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, At, Digest, FileError};
use crate::layout::{CacheLayout, ProjectLayout};
use crate::managed::job::Job;
use crate::managed::spec::ManagedImageSpec;
use crate::report::ImageLabel;

/// Version of the format. A larger one comes from a newer Castra.
const FORMAT: u32 = 1;
/// Mode of a reference, which names a directory of the user.
const PRIVATE: u32 = 0o400;
/// Most bytes of a reference, which usually takes some hundred.
const MAX_BYTES: u64 = 1024 * 1024;

/// Images of one project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reference {
    format: u32,
    /// State root of the project.
    pub(crate) state_root: PathBuf,
    /// Images that the project has.
    pub(crate) images: Vec<ReferredImage>,
}

/// An image that a project has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReferredImage {
    /// The image.
    pub(crate) image: ImageLabel,
    /// Downloads that the image is made from.
    pub(crate) blobs: BTreeSet<Digest>,
}

impl ReferredImage {
    fn of(spec: &ManagedImageSpec) -> Self {
        let blobs = spec.artifacts.iter().map(|artifact| artifact.digest.clone()).collect();
        Self { image: spec.label(), blobs }
    }
}

impl Reference {
    /// Returns the images that the project still has.
    pub(crate) fn alive(&self) -> impl Iterator<Item = &ReferredImage> {
        let images = ProjectLayout::unchecked(self.state_root.clone()).images();
        self.images
            .iter()
            .filter(move |one| images.image(&one.image.id, &one.image.version).is_dir())
    }
}

/// Records that a project has an image. Without a writable cache there is nothing to keep.
pub(crate) fn note(job: &Job, project: &ProjectLayout, spec: &ManagedImageSpec) {
    let cache = &job.context.cache;
    // JSON holds text only. The images of such a project are kept by their link counts, see
    // `prune`.
    if project.state_root().to_str().is_none() || is_noted(cache, project, spec) {
        return;
    }
    if let Err(error) = add(job, cache, project, spec) {
        job.note(&format!("cannot register this project in the cache: {error}"));
    }
}

/// Contents of a file in the directory of references.
pub(crate) enum Loaded {
    /// A reference.
    Reference(Reference),
    /// A reference in this format, which a newer Castra wrote, so its needs are unknown.
    Newer(u32),
    /// A file that Castra did not write.
    Junk,
}

/// Returns `true` if the cache has a current reference of this project for this image. Takes a few
/// microseconds.
pub(crate) fn is_noted(
    cache: &CacheLayout,
    project: &ProjectLayout,
    spec: &ManagedImageSpec,
) -> bool {
    match load(&cache.reference(project)) {
        Loaded::Reference(reference) => {
            reference.state_root == project.state_root()
                && reference.images.contains(&ReferredImage::of(spec))
        }
        // Must not be overwritten.
        Loaded::Newer(_) => true,
        Loaded::Junk => false,
    }
}

fn add(
    job: &Job,
    cache: &CacheLayout,
    project: &ProjectLayout,
    spec: &ManagedImageSpec,
) -> Result<(), FileError> {
    let path = cache.reference(project);
    files::create_directory(&cache.projects())?;
    let name = format!("project-{}", project.short_digest(16));
    // Several images may be put into one project at once.
    let _lock = job.lock(&cache.lock(&name), "another castra recording this project's images")?;
    let mut images = match load(&path) {
        Loaded::Reference(reference) if reference.state_root == project.state_root() => {
            reference.images
        }
        _ => Vec::new(),
    };
    images.retain(|one| one.image != spec.label());
    images.push(ReferredImage::of(spec));
    let reference =
        Reference { format: FORMAT, state_root: project.state_root().to_owned(), images };
    let text = serde_json::to_vec_pretty(&reference).unwrap_or_default();
    files::write_locked(&path, &text, PRIVATE)
}

/// Returns all references, each with its file.
pub(crate) fn all(cache: &CacheLayout) -> Result<Vec<(PathBuf, Loaded)>, FileError> {
    let directory = cache.projects();
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("read", &directory)?,
    };
    let mut references = Vec::new();
    for entry in entries {
        let path = entry.at("read", &directory)?.path();
        let loaded = load(&path);
        references.push((path, loaded));
    }
    Ok(references)
}

fn load(path: &Path) -> Loaded {
    /// Header with the one field that every format will have.
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let mut text = Vec::new();
    let read =
        files::open(path).ok().and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text).ok());
    match serde_json::from_slice(&text) {
        Ok(Format { format }) if format > FORMAT => return Loaded::Newer(format),
        _ => {}
    }
    let reference = read.and_then(|_| serde_json::from_slice(&text).ok());
    reference.map_or(Loaded::Junk, Loaded::Reference)
}
