//! Verified downloads (*blobs*): holding one, creating one from other bytes, and quarantining a
//! damaged one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::files::{self, At, Digest, FileError, HashError, Hasher, Lock, Peak};
use crate::layout::CacheLayout;
use crate::managed::error::ImageError;
use crate::managed::job::Job;
use crate::managed::store;

/// A verified download, which nothing prunes from the cache until this is dropped.
pub(crate) struct Blob {
    path: PathBuf,
    _share: Lock,
}

impl Blob {
    /// Wraps a verified download, which the lock keeps in the cache.
    pub(super) fn shared(path: PathBuf, share: Lock) -> Self {
        Self { path, _share: share }
    }

    /// Returns the file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Reason why bytes did not become a blob.
pub(crate) enum Refusal {
    /// The bytes are not the right ones; the reason completes a sentence about them.
    Bytes(String),
    /// Another error.
    Other(ImageError),
}

impl<E: Into<ImageError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Makes a blob of these bytes under its lock, unless it is present and intact.
pub(crate) fn into_cache<'r>(
    job: &Job,
    digest: &Digest,
    size_bytes: u64,
    open: impl FnOnce() -> Result<Box<dyn Read + 'r>, ImageError>,
) -> Result<(), Refusal> {
    let cache = &job.context.cache;
    let blob = cache.blob(digest.algorithm(), digest.hex());
    let directory = blob.parent().unwrap_or(Path::new("/"));
    files::create_directory(directory)?;
    let what = format!("another castra downloading {digest}");
    let _lock = job.lock(&cache.blob_lock(digest.algorithm(), digest.hex()), &what)?;
    if files::open_if_there(&blob)?.is_some() {
        if files::digest(&blob, digest, &job.context.cancel)? == *digest {
            return Ok(());
        }
        quarantine(job, cache, digest)?;
    }
    files::require_space(directory, &Peak { download: size_bytes, ..Peak::default() })?;
    // Written to the path that a download would use, so that the next try reuses what an
    // interruption leaves.
    let partial = cache.partial(digest.algorithm(), digest.hex());
    let own = job.lock(&partial, &what)?;
    let written = write(job, digest, size_bytes, open()?, &partial, own.file());
    if written.is_err() {
        files::remove_file(&partial)?;
    }
    written?;
    Ok(files::publish_locked(&own, &partial, &blob)?)
}

fn write(
    job: &Job,
    digest: &Digest,
    size_bytes: u64,
    from: impl Read,
    partial: &Path,
    file: &File,
) -> Result<(), Refusal> {
    let file = file.try_clone().at("open", partial)?;
    file.set_len(0).at("shorten", partial)?;
    let mut hasher = Hasher::like(digest);
    // Reads one byte more than announced, so that excess bytes are noticed.
    let from = from.take(size_bytes.saturating_add(1));
    let length =
        files::copy_sparse(from, file, &mut hasher, &job.context.cancel).map_err(|error| {
            match error {
                HashError::Interrupted(interrupted) => interrupted.into(),
                HashError::Io(error) if error.raw_os_error().is_some() => {
                    FileError::io("write", partial, error).into()
                }
                HashError::Io(error) => Refusal::Bytes(format!("cannot be read: {error}")),
            }
        })?;
    if length != size_bytes {
        return Err(Refusal::Bytes(format!(
            "has {length} bytes, not {size_bytes}: was it truncated?"
        )));
    }
    match hasher.finish() {
        found if found == *digest => Ok(()),
        found => Err(Refusal::Bytes(format!("has digest {found}, not {digest}"))),
    }
}

/// Quarantines a damaged blob, warns about it, and returns its new path.
pub(crate) fn quarantine(
    job: &Job,
    cache: &CacheLayout,
    digest: &Digest,
) -> Result<PathBuf, ImageError> {
    let blob = cache.blob(digest.algorithm(), digest.hex());
    let name = format!("{}-{}", digest.algorithm(), digest.hex());
    let moved = store::quarantine::keep(&cache.quarantine(), &blob, &name)?;
    job.warn(format!(
        "{} is damaged; it was quarantined as {} and will be fetched again if needed",
        blob.display(),
        moved.display()
    ));
    Ok(moved)
}
