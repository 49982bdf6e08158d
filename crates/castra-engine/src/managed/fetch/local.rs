//! Sources that are files on this machine.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::failpoint::{self, Point};
use crate::files::{self, At, DigestMismatch, FileError};
use crate::layout::CacheLayout;
use crate::managed::error::ImageError;
use crate::managed::job::Job;
use crate::managed::spec::ManagedArtifactSpec;
use crate::trusted;

/// Copies a file (as a reflink where the filesystem has them), since its owner may change it at any
/// time.
pub(super) fn fetch(
    job: &Job,
    cache: &CacheLayout,
    artifact: &ManagedArtifactSpec,
    path: &Path,
) -> Result<PathBuf, ImageError> {
    let from = open(job, path)?;
    let size = from.metadata().at("look at", path)?.len();
    let mut progress = job.progress(artifact.role, Some(size));
    progress.started(&path.display().to_string(), 0);
    let blob = cache.blob(artifact.digest.algorithm(), artifact.digest.hex());
    // Written under the partial's name, so that the next try reuses what an interruption leaves.
    let copy_path = cache.partial(artifact.digest.algorithm(), artifact.digest.hex());
    let lock = job.lock_own(&copy_path, "another castra copying the same file")?;
    let copy = lock.file();
    copy.set_len(0).at("shorten", &copy_path)?;
    let copied = files::copy(from, copy, &artifact.digest, &job.context.cancel).at("copy", path);
    let (found, length) = copied.map_err(|error| match error {
        // The copy has no room, not the source.
        FileError::DiskFull { source, .. } => {
            FileError::DiskFull { path: copy_path.clone(), source }
        }
        other => other,
    })?;
    failpoint::reach(Point::Collected);
    if found != artifact.digest {
        files::remove_file(&copy_path)?;
        let (from, expected) = (path.display().to_string(), artifact.digest.clone());
        return Err(DigestMismatch { from, expected, found, html: false }.into());
    }
    failpoint::reach(Point::CollectedVerified);
    files::publish_locked(&lock, &copy_path, &blob)?;
    progress.finished(length);
    Ok(blob)
}

/// Opens a source file of the user's for reading. Links are followed, since they are the user's own
/// choice; anything but a regular file at their end is refused without waiting, as a FIFO would
/// make castra do.
pub(super) fn open(job: &Job, path: &Path) -> Result<File, ImageError> {
    match files::open_followed(path) {
        Err(FileError::NotAFile { path }) => Err(ImageError::SourceNotAFile { path }),
        Err(FileError::Io { source, .. }) if trusted::is_absence(&source) => {
            Err(ImageError::SourceMissing { image: job.image.clone(), path: path.to_owned() })
        }
        opened => Ok(opened?),
    }
}
