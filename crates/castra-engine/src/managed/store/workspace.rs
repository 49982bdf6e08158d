//! Workspaces, in which images are built: in the user's cache, or in the project while the cache
//! cannot be written to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::directory::{ImageDirectory, Place};
use crate::files::{self, Digest, FileError, Lock, OVERLAY_BYTES, Peak, tag_as_cache};
use crate::layout::{CacheLayout, ProjectLayout};
use crate::managed::job::Job;
use crate::managed::spec::{ArtifactSource, ManagedArtifactSpec, ManagedImageSpec};

/// A cache that is locked for one image.
pub(crate) struct Workspace {
    cache: CacheLayout,
    /// A read-only cache, which may hold a download already.
    further: Option<CacheLayout>,
    _lock: Lock,
}

impl Workspace {
    /// Opens the user's cache if it can be used, otherwise one inside the project. Waits for
    /// another castra that builds the same image there.
    pub(crate) fn open(
        job: &Job,
        project: &ProjectLayout,
        spec: &ManagedImageSpec,
        missing: &[&ManagedArtifactSpec],
    ) -> Result<Self, FileError> {
        let cache = job.context.cache.clone();
        match Self::open_in(job, cache.clone(), None, spec, missing) {
            Err(error) if error.is_unwritable() || matches!(error, FileError::NoSpace { .. }) => {
                let own = project.own_cache();
                // The files of `castra run` are in the cache themselves.
                if own.root().starts_with(cache.root()) {
                    return Err(error);
                }
                let place = own.root().display();
                job.warn(format!("the cache cannot be used ({error}); using {place} instead"));
                Self::open_in(job, own, Some(cache), spec, missing)
            }
            other => other,
        }
    }

    /// Opens the user's cache and no other.
    pub(crate) fn open_cache(
        job: &Job,
        spec: &ManagedImageSpec,
        missing: &[&ManagedArtifactSpec],
    ) -> Result<Self, FileError> {
        Self::open_in(job, job.context.cache.clone(), None, spec, missing)
    }

    fn open_in(
        job: &Job,
        cache: CacheLayout,
        further: Option<CacheLayout>,
        spec: &ManagedImageSpec,
        missing: &[&ManagedArtifactSpec],
    ) -> Result<Self, FileError> {
        files::create_directory(&cache.images().image(&spec.id, &spec.version))?;
        tag_as_cache(&cache.tag());
        let what = format!("another castra preparing {}", job.image);
        let lock = job.lock(&cache.image_lock(&spec.id, &spec.version), &what)?;
        files::require_space(cache.root(), &peak(&cache, missing))?;
        Ok(Self { cache, further, _lock: lock })
    }

    /// Checks the space in a project on another filesystem, which links cannot cross.
    pub(crate) fn require_space_beside(
        &self,
        project: &Path,
        missing: &[&ManagedArtifactSpec],
    ) -> Result<(), FileError> {
        if files::is_shared(project, self.cache.root())? {
            return Ok(());
        }
        let image = distinct_sizes(missing).fold(0, |sum: u64, (_, size)| sum.saturating_add(size));
        files::require_space(project, &Peak { image, overlay: OVERLAY_BYTES, ..Peak::default() })
    }

    /// Opens an image's directory. In a project, stamps prove nothing: others may have filled it.
    pub(crate) fn directory(&self, job: &Job, spec: &ManagedImageSpec) -> ImageDirectory {
        let mut directory = ImageDirectory::open(job, Place::in_cache(&self.cache, spec), spec);
        if self.further.is_some() {
            directory.distrust_stamps();
        }
        directory
    }

    /// Returns the directory of an image, which is complete once it has a manifest.
    pub(crate) fn image(&self, spec: &ManagedImageSpec) -> PathBuf {
        self.cache.images().image(&spec.id, &spec.version)
    }

    /// Creates a fresh directory for files in the making, and removes what an interrupted castra
    /// left there.
    pub(crate) fn work(&self, spec: &ManagedImageSpec) -> Result<TempDir, FileError> {
        files::fresh_directory(&self.cache.images().work(&spec.id, &spec.version))
    }

    /// Returns the cache that downloads are written to.
    pub(crate) fn cache(&self) -> &CacheLayout {
        &self.cache
    }

    /// Returns the paths at which a verified download may be, best first.
    pub(crate) fn blobs(&self, digest: &Digest) -> impl Iterator<Item = PathBuf> {
        let caches = std::iter::once(&self.cache).chain(&self.further);
        caches.map(|cache| cache.blob(digest.algorithm(), digest.hex()))
    }

    /// Ends the work. A stand-in for the cache is emptied, since the project has links of its own
    /// by now.
    pub(crate) fn finish(self) -> Result<(), FileError> {
        if self.further.is_some() {
            files::remove_directory(self.cache.images().root())?;
            files::remove_directory(&self.cache.root().join("blobs"))?;
        }
        Ok(())
    }
}

/// Returns the peak disk usage of making these artifacts: each source once, less what is present of
/// it, about as much again for the files made from it, and the disk of the VM they are for.
/// (*Measured*: a 122 MiB raw disk becomes a smaller qcow2, an 82 MiB wheel unpacks to 83 MiB.)
/// Sources without a known size count once the server has announced theirs.
fn peak(cache: &CacheLayout, missing: &[&ManagedArtifactSpec]) -> Peak {
    let mut peak = Peak { overlay: OVERLAY_BYTES, ..Peak::default() };
    for (digest, size) in distinct_sizes(missing) {
        let (algorithm, hex) = (digest.algorithm(), digest.hex());
        let length = |path: PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        let there = length(cache.blob(algorithm, hex)).max(length(cache.partial(algorithm, hex)));
        peak.download = peak.download.saturating_add(size.saturating_sub(there));
        peak.image = peak.image.saturating_add(size);
    }
    peak
}

/// Returns the sizes of these artifacts' sources, pinned or on this machine, each source once.
fn distinct_sizes<'s>(
    artifacts: &[&'s ManagedArtifactSpec],
) -> impl Iterator<Item = (&'s Digest, u64)> + use<'s> {
    let size = |artifact: &ManagedArtifactSpec| {
        let on_this_machine = || match &artifact.source {
            ArtifactSource::Path(path) => {
                std::fs::metadata(path).ok().map(|metadata| metadata.len())
            }
            _ => None,
        };
        artifact.size_bytes.or_else(on_this_machine)
    };
    let sizes: BTreeMap<&Digest, u64> =
        artifacts.iter().filter_map(|artifact| Some((&artifact.digest, size(artifact)?))).collect();
    sizes.into_iter()
}
