//! Manager of images: the interface of this folder, for projects and the cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::build;
use super::check;
use super::error::{FoundUnpinned, ImageError};
use super::fetch::{self, reach};
use super::job::Job;
use super::log::ImageLog;
use super::repair;
use super::spec::{ArtifactSource, ManagedImagePaths, ManagedImageSpec};
use super::timeouts::Timeouts;
use crate::context::RuntimeContext;
use crate::error::one_line;
use crate::files::{self, Digest};
use crate::layout::{ImagesLayout, ProjectLayout};
use crate::managed::store::directory;
use crate::managed::store::finding::CheckedImage;
use crate::managed::store::manifest::Manifest;
use crate::managed::store::references;
use crate::managed::store::witness::Witness;
use crate::report::{Event, ImageLabel};
use crate::state_root;

/// Manager of a project's images: fetches, verifies, repairs and lists them.
#[derive(Debug, Clone)]
pub struct ImageManager {
    project: ProjectLayout,
    timeouts: Timeouts,
}

/// Image that was chosen for the default project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenImage {
    /// The image.
    pub spec: ManagedImageSpec,
    /// The image's files.
    pub paths: ManagedImagePaths,
    /// Reason for the choice, as half a sentence.
    pub reason: String,
}

/// Locations of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundImage {
    /// The image's files in the project, if it has all of them.
    pub in_project: Option<ManagedImagePaths>,
    /// The image's files in the cache, if it has all of them.
    pub in_cache: Option<ManagedImagePaths>,
    /// True if all its downloads are in the cache.
    pub is_downloaded: bool,
}

/// An image on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// The image.
    pub image: ImageLabel,
    /// True if this project has it.
    pub in_project: bool,
    /// True if the user's cache has it.
    pub in_cache: bool,
    /// Total size of its files, in bytes. Project and cache usually share them.
    pub size_bytes: u64,
}

impl ImageManager {
    /// Creates the manager of one project's images.
    pub fn new(project: &ProjectLayout) -> Self {
        Self { project: project.clone(), timeouts: Timeouts::default() }
    }

    /// Returns the manager with other timeouts.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Ensures that the project has a complete, verified image, and returns its paths. If the
    /// project has it already, this takes milliseconds: the files' stamps are checked, not their
    /// bytes.
    ///
    /// Reports [`Event::ImageCacheHit`] if nothing had to be done, and ends with
    /// [`Event::ImageReady`] either way.
    ///
    /// # Errors
    /// Returns any [`ImageError`]. Downloads that can be resumed are kept; no file ever has its
    /// final name before it is complete and verified.
    pub fn ensure_image(
        &self,
        spec: &ManagedImageSpec,
        context: &RuntimeContext,
    ) -> Result<ManagedImagePaths, ImageError> {
        check::spec(spec)?;
        context.cancel.check()?;
        if let Some(paths) = directory::complete(&self.directory(spec), spec, &Witness::of(context))
        {
            self.note_again(spec, context);
            context.reporter.report(&Event::ImageCacheHit { image: spec.label() });
            context.reporter.report(&Event::ImageReady { image: spec.label() });
            return Ok(paths);
        }
        state_root::make(&self.project, context)?;
        let job = self.job(spec, context);
        trying_again(&job, || build::prepare(&job, &self.project, spec))
    }

    /// Ensures that the cache has a complete, verified image, and returns its paths. Nothing is put
    /// into the project.
    ///
    /// # Errors
    /// Returns errors as [`Self::ensure_image`] does, or that the cache cannot be written to.
    pub fn ensure_cached(
        &self,
        spec: &ManagedImageSpec,
        context: &RuntimeContext,
    ) -> Result<ManagedImagePaths, ImageError> {
        check::spec(spec)?;
        context.cancel.check()?;
        let cached = context.cache.images().image(&spec.id, &spec.version);
        if let Some(paths) = directory::complete(&cached, spec, &Witness::of(context)) {
            context.reporter.report(&Event::ImageCacheHit { image: spec.label() });
            context.reporter.report(&Event::ImageReady { image: spec.label() });
            return Ok(paths);
        }
        let job = self.job_beside(spec.label(), context);
        trying_again(&job, || build::fill_cache(&job, &self.project, spec))
    }

    /// Hashes every file of an image in the project and in the cache, quarantines damaged ones, and
    /// rebuilds or fetches them.
    ///
    /// # Errors
    /// Returns [`ImageError::NotPresent`], or [`ImageError::NotRepaired`], after which all damaged
    /// files are in quarantine.
    pub fn repair(
        &self,
        spec: &ManagedImageSpec,
        context: &RuntimeContext,
    ) -> Result<CheckedImage, ImageError> {
        check::spec(spec)?;
        repair::repair(&self.job_beside(spec.label(), context), &self.project, spec)
    }

    /// Hashes the files of an image that [`Self::ensure_image`] has found by their stamps, and
    /// repairs the image if the stamps were misleading. Takes some 50 ms per 100 MB.
    ///
    /// # Errors
    /// Returns errors as [`Self::repair`] does.
    pub fn confirm_disk(
        &self,
        spec: &ManagedImageSpec,
        paths: ManagedImagePaths,
        context: &RuntimeContext,
    ) -> Result<ManagedImagePaths, ImageError> {
        let manifest = Manifest::load(&paths.directory);
        let entries = manifest.map(|manifest| manifest.artifacts).unwrap_or_default();
        let mut is_right = entries.iter().any(|entry| entry.sha256 == paths.disk_sha256);
        for entry in entries {
            let path = paths.directory.join(entry.role.file_name());
            is_right = is_right && files::sha256(&path, &context.cancel)? == entry.sha256;
        }
        if is_right {
            return Ok(paths);
        }
        self.repair(spec, context)?;
        self.ensure_image(spec, context)
    }

    /// Fetches a source that nothing pins yet, keeps it in the cache under its digest, and returns
    /// that digest, so that pinning it makes the next run a cache hit. `place` names it in errors.
    ///
    /// # Errors
    /// Returns errors of fetching, and [`ImageError::WebPage`].
    pub fn fetch_unpinned(
        &self,
        place: &str,
        source: &ArtifactSource,
        context: &RuntimeContext,
    ) -> Result<FoundUnpinned, ImageError> {
        let label = ImageLabel { id: place.to_owned(), version: String::new() };
        let job = self.job_beside(label, context);
        let (digest, size_bytes) = fetch::fetch_unpinned(&job, source, None)?;
        Ok(FoundUnpinned { place: place.to_owned(), from: source.to_string(), digest, size_bytes })
    }

    /// Finds the files of an image, in the project and in the cache, by their stamps.
    pub fn find(&self, spec: &ManagedImageSpec, context: &RuntimeContext) -> FoundImage {
        let in_cache = context.cache.images().image(&spec.id, &spec.version);
        FoundImage {
            in_project: directory::complete(&self.directory(spec), spec, &Witness::of(context)),
            in_cache: directory::complete(&in_cache, spec, &Witness::of(context)),
            is_downloaded: self.has_blobs(spec, context),
        }
    }

    /// Takes the first of these images that is on disk or can be reached, in their order, and
    /// ensures that the project has it: an image on disk never outranks a better one that can be
    /// reached. Only an unreachable image leads to the next one; a wrong digest or a missing tool
    /// never does.
    ///
    /// Reports [`Event::ImageChosen`] before the chosen image's own events.
    ///
    /// # Errors
    /// Returns [`ImageError::NoneReachable`], or the error of the chosen image.
    pub fn choose_default(
        &self,
        candidates: &[ManagedImageSpec],
        context: &RuntimeContext,
    ) -> Result<ChosenImage, ImageError> {
        let mut tried: Vec<(ImageLabel, ImageError)> = Vec::new();
        let mut reasons: Vec<String> = Vec::new();
        for (index, spec) in candidates.iter().enumerate() {
            let (image, is_cached) = (spec.label(), self.is_cached(spec, context));
            let has_cached_fallback =
                || candidates[index + 1..].iter().any(|one| self.is_cached(one, context));
            if !is_cached
                && !context.offline
                && reach::was_slow(spec, context)
                && has_cached_fallback()
            {
                reasons.push(format!("the servers of {image} timed out less than a minute ago"));
                continue;
            }
            let reached = if is_cached { Ok(()) } else { self.reach(spec, context) };
            let taken =
                reached.and_then(|()| self.take(spec, reason(spec, is_cached, &reasons), context));
            match taken {
                Err(error) if error.is_unreachable() => {
                    if error.is_slowness() {
                        reach::remember_slowness(spec, context);
                    }
                    reasons.push(format!("{image} is unreachable: {}", one_line(&error)));
                    tried.push((image, error));
                }
                other => return other,
            }
        }
        Err(ImageError::NoneReachable { tried })
    }

    /// Returns `true` if an image can be put into the project without the network.
    pub fn is_cached(&self, spec: &ManagedImageSpec, context: &RuntimeContext) -> bool {
        let in_cache = context.cache.images().image(&spec.id, &spec.version);
        let witness = Witness::of(context);
        check::spec(spec).is_ok()
            && (directory::seems_complete(&self.directory(spec), spec, &witness)
                || directory::seems_complete(&in_cache, spec, &witness)
                || self.has_blobs(spec, context))
    }

    fn has_blobs(&self, spec: &ManagedImageSpec, context: &RuntimeContext) -> bool {
        let blob = |digest: &Digest| context.cache.blob(digest.algorithm(), digest.hex());
        spec.artifacts.iter().all(|artifact| blob(&artifact.digest).is_file())
    }

    /// Lists the images on disk, in the project or the cache, whose manifests can be trusted.
    pub fn list(&self, context: &RuntimeContext) -> Vec<StoredImage> {
        let mut images: BTreeMap<ImageLabel, StoredImage> = BTreeMap::new();
        for (layout, is_project) in [(self.project.images(), true), (context.cache.images(), false)]
        {
            for manifest in manifests(&layout) {
                let image =
                    ImageLabel { id: manifest.id.clone(), version: manifest.version.clone() };
                let size_bytes =
                    manifest.artifacts.iter().map(|artifact| artifact.size_bytes).sum();
                let stored = images.entry(image.clone()).or_insert(StoredImage {
                    image,
                    in_project: false,
                    in_cache: false,
                    size_bytes,
                });
                stored.in_project |= is_project;
                stored.in_cache |= !is_project;
            }
        }
        images.into_values().collect()
    }

    fn directory(&self, spec: &ManagedImageSpec) -> PathBuf {
        self.project.images().image(&spec.id, &spec.version)
    }

    fn job<'a>(&'a self, spec: &ManagedImageSpec, context: &'a RuntimeContext) -> Job<'a> {
        let log = ImageLog::open(&self.project.image_manager_log());
        Job::new(context, spec.label(), &self.timeouts, log)
    }

    /// Returns a job for work on the cache, which does not turn a directory into a project.
    pub(super) fn job_beside<'a>(
        &'a self,
        image: ImageLabel,
        context: &'a RuntimeContext,
    ) -> Job<'a> {
        let log = match self.project.is_made() {
            true => ImageLog::open(&self.project.image_manager_log()),
            false => ImageLog::none(),
        };
        Job::new(context, image, &self.timeouts, log)
    }

    /// Records a moved or copied project by its new location, unless there is no cache.
    fn note_again(&self, spec: &ManagedImageSpec, context: &RuntimeContext) {
        if context.cache.root().is_dir()
            && !references::is_noted(&context.cache, &self.project, spec)
        {
            references::note(&self.job(spec, context), &self.project, spec);
        }
    }

    /// Checks every source of an image for availability. Takes seconds, and fetches next to
    /// nothing.
    ///
    /// # Errors
    /// Returns the reason why the image could not be fetched now.
    pub fn ask(&self, spec: &ManagedImageSpec, context: &RuntimeContext) -> Result<(), ImageError> {
        check::spec(spec)?;
        reach::ask(&self.job_beside(spec.label(), context), spec)
    }

    /// Probes the servers of an image.
    fn reach(&self, spec: &ManagedImageSpec, context: &RuntimeContext) -> Result<(), ImageError> {
        check::spec(spec)?;
        reach::probe(&self.job_beside(spec.label(), context), spec)
    }

    fn take(
        &self,
        spec: &ManagedImageSpec,
        reason: String,
        context: &RuntimeContext,
    ) -> Result<ChosenImage, ImageError> {
        state_root::make(&self.project, context)?;
        self.job(spec, context).note(&format!("is chosen: {reason}"));
        context
            .reporter
            .report(&Event::ImageChosen { image: spec.label(), reason: reason.clone() });
        let paths = self.ensure_image(spec, context)?;
        Ok(ChosenImage { spec: spec.clone(), paths, reason })
    }
}

/// Times that work is restarted because the cache was removed meanwhile. Once is a user who tidies
/// up; repeated removal has to be reported.
const AGAIN: usize = 4;

/// Does the work, and restarts it if the cache was removed meanwhile, so that users may remove it
/// at any time. A failure is written to the log.
fn trying_again<T>(job: &Job, work: impl Fn() -> Result<T, ImageError>) -> Result<T, ImageError> {
    let mut done = work();
    for _ in 0..AGAIN {
        let Err(error) = &done else { break };
        if !error.is_loss_below(job.context.cache.root()) {
            break;
        }
        job.warn(format!("the cache changed meanwhile ({error}); starting over"));
        done = work();
    }
    if let Err(error) = &done {
        job.note(&format!("failed: {}", one_line(error)));
    }
    done
}

/// Returns the reason why an image is used, with its description unless it is the first choice.
fn reason(spec: &ManagedImageSpec, is_cached: bool, others: &[String]) -> String {
    let first = match is_cached {
        true => "cached",
        false => "first choice",
    };
    match (others, is_cached) {
        ([], _) => first.to_owned(),
        (others, false) => format!("{}; {}", spec.description, others.join("; ")),
        (others, true) => format!("{first}; {}; {}", spec.description, others.join("; ")),
    }
}

fn manifests(layout: &ImagesLayout) -> impl Iterator<Item = Manifest> {
    let ids = subdirectories(layout.root());
    let versions = ids.flat_map(|id| subdirectories(&id).collect::<Vec<_>>());
    versions.filter_map(|directory| Manifest::load(&directory).ok())
}

fn subdirectories(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = files::readable_entries(path);
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}
