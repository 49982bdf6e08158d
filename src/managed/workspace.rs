//! Where an image is made: in the user's cache, or in the project while the cache cannot be written to.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::error::{At, ImageError};
use super::job::Job;
use super::lock;
use super::spec::{Digest, ManagedArtifactSpec, ManagedImageSpec};
use super::{files, space};
use crate::layout::{CacheLayout, ProjectLayout};
use crate::lock::Lock;

/// A cache that is locked for one image.
pub(super) struct Workspace {
    cache: CacheLayout,
    /// A cache that can be read only; it may hold a download already.
    further: Option<CacheLayout>,
    _lock: Lock,
}

impl Workspace {
    /// The user's cache if it can be used, else one inside the project. Waits for whoever makes the same image there.
    pub(super) fn open(
        job: &Job,
        project: &ProjectLayout,
        spec: &ManagedImageSpec,
        missing: &[&ManagedArtifactSpec],
    ) -> Result<Self, ImageError> {
        let cache = job.context.cache.clone();
        match Self::open_in(job, cache.clone(), None, spec, missing) {
            Err(error) if error.is_unwritable() || matches!(error, ImageError::NoSpace { .. }) => {
                job.warn(format!("the cache cannot be used ({error}); working in the project instead"));
                Self::open_in(job, project.own_cache(), Some(cache), spec, missing)
            }
            other => other,
        }
    }

    fn open_in(
        job: &Job,
        cache: CacheLayout,
        further: Option<CacheLayout>,
        spec: &ManagedImageSpec,
        missing: &[&ManagedArtifactSpec],
    ) -> Result<Self, ImageError> {
        files::create_directory(&cache.images().image(&spec.id, &spec.version))?;
        let what = format!("another castra that prepares {}", job.image);
        let name = format!("image-{}-{}", spec.id, spec.version);
        let lock = lock::take(job, &cache.lock(&name), &what)?;
        space::require(cache.root(), peak_bytes(&cache, missing))?;
        Ok(Self { cache, further, _lock: lock })
    }

    /// Files cannot be linked from one filesystem to another, so a project that is elsewhere needs room of its own.
    pub(super) fn require_space_beside(
        &self,
        project: &Path,
        missing: &[&ManagedArtifactSpec],
    ) -> Result<(), ImageError> {
        let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev()).at("look at", path);
        if device(project)? == device(self.cache.root())? {
            return Ok(());
        }
        let needed = distinct_sizes(missing).fold(0, |sum: u64, (_, size)| sum.saturating_add(size));
        space::require(project, needed)
    }

    /// The directory of an image that is complete when its manifest says so.
    pub(super) fn image(&self, spec: &ManagedImageSpec) -> PathBuf {
        self.cache.images().image(&spec.id, &spec.version)
    }

    /// The directory for what is in the making.
    pub(super) fn work(&self, spec: &ManagedImageSpec) -> PathBuf {
        self.cache.images().work(&spec.id, &spec.version)
    }

    /// The same, empty; what an interrupted castra left there is removed.
    pub(super) fn fresh_work(&self, spec: &ManagedImageSpec) -> Result<PathBuf, ImageError> {
        let work = self.work(spec);
        files::remove_directory(&work)?;
        files::create_directory(&work)?;
        Ok(work)
    }

    /// Where downloads are written.
    pub(super) fn cache(&self) -> &CacheLayout {
        &self.cache
    }

    /// Where a verified download may be, best first.
    pub(super) fn blobs(&self, digest: &Digest) -> impl Iterator<Item = PathBuf> {
        let caches = std::iter::once(&self.cache).chain(&self.further);
        caches.map(|cache| cache.blob(digest.algorithm(), digest.hex()))
    }

    /// Ends the work; a stand-in for the cache is emptied, for the project has links of its own by now.
    pub(super) fn finish(self) -> Result<(), ImageError> {
        if self.further.is_some() {
            files::remove_directory(self.cache.images().root())?;
            files::remove_directory(&self.cache.root().join("blobs"))?;
        }
        Ok(())
    }
}

/// What making these artifacts takes at its peak: each source once, less what is there of it, and about as much again
/// for the files made from it. (*Measured*: a 122 MiB raw disk becomes a smaller qcow2, an 82 MiB wheel unpacks to
/// 83 MiB.) Sources without a pinned size count when the server has told theirs.
fn peak_bytes(cache: &CacheLayout, missing: &[&ManagedArtifactSpec]) -> u64 {
    let each = distinct_sizes(missing).map(|(digest, size)| {
        let (algorithm, hex) = (digest.algorithm(), digest.hex());
        let length = |path: PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        let there = length(cache.blob(algorithm, hex)).max(length(cache.partial(algorithm, hex)));
        size.saturating_sub(there).saturating_add(size)
    });
    each.fold(0, u64::saturating_add)
}

/// The pinned sizes of these artifacts' sources, each source once.
fn distinct_sizes<'s>(
    artifacts: &[&'s ManagedArtifactSpec],
) -> impl Iterator<Item = (&'s Digest, u64)> + use<'s> {
    let sizes: BTreeMap<&Digest, u64> =
        artifacts.iter().filter_map(|artifact| Some((&artifact.digest, artifact.size_bytes?))).collect();
    sizes.into_iter()
}
