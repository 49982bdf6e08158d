//! Images by hand, for machines without a network: a file that an image is made from, or an archive of such files,
//! becomes a download in the cache. Nothing has to be believed, for every byte is checked against the pinned digests.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::archive::Archive;
use crate::context::RuntimeContext;
use crate::files::{self, At, Digest, FileError, HashError, Hasher, Peak};
use crate::managed::error::ImageError;
use crate::managed::fetch;
use crate::managed::job::Job;
use crate::managed::manager::ImageManager;
use crate::managed::spec::ManagedImageSpec;
use crate::managed::store::lock;
use crate::report::ImageLabel;

/// What an import has brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The files that are in the cache now.
    pub files: Vec<ImportedFile>,
}

/// A file that is in the cache now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedFile {
    /// Its digest, by which it is found.
    pub digest: Digest,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// The images that are made from it, of those that are known.
    pub images: Vec<ImageLabel>,
}

impl ImageManager {
    /// Puts a file, or all files of an archive that [`Self::export`] made, into the cache's downloads. `known` are the
    /// images that a single file may belong to.
    ///
    /// # Errors
    /// [`ImageError::NotImportable`] for a file that no known image is made from; [`ImageError::Archive`] for an archive
    /// that is damaged or has members that no export writes; that a file cannot be read or written. What was imported
    /// before the error stays: each file was verified by itself.
    pub fn import(
        &self,
        path: &Path,
        known: &[&ManagedImageSpec],
        context: &RuntimeContext,
    ) -> Result<Imported, ImageError> {
        let nothing = |problem| ImageError::NothingToImport { path: path.to_owned(), problem };
        let file = match files::open_followed(path) {
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(nothing("there is no such file"));
            }
            Err(FileError::NotAFile { .. }) => return Err(nothing("it is not a regular file")),
            // Whatever else is wrong, the error of opening it tells.
            opened => opened?,
        };
        let label = ImageLabel { id: "import".to_owned(), version: String::new() };
        let job = self.job_beside(label, context);
        let digests = match Archive::recognise(path, file)? {
            None => vec![import_file(&job, path, known)?],
            Some(archive) => archive.unpack(&job)?,
        };
        let files = digests.into_iter().map(|(digest, size_bytes)| {
            let images = known.iter().filter(|spec| is_made_from(spec, &digest));
            let images = images.map(|spec| spec.label()).collect();
            ImportedFile { digest, size_bytes, images }
        });
        Ok(Imported { files: files.collect() })
    }
}

fn is_made_from(spec: &ManagedImageSpec, digest: &Digest) -> bool {
    spec.artifacts.iter().any(|artifact| artifact.digest == *digest)
}

/// Imports a file that is itself what an image is made from.
fn import_file(job: &Job, path: &Path, known: &[&ManagedImageSpec]) -> Result<(Digest, u64), ImageError> {
    let file = files::open_followed(path)?;
    let [sha256, sha512] = files::both_digests(file, &job.context.cancel).at("read", path)?;
    let artifacts = || known.iter().flat_map(|spec| &spec.artifacts);
    let pinned = artifacts().find(|artifact| [&sha256, &sha512].contains(&&artifact.digest));
    let Some(artifact) = pinned else {
        return Err(ImageError::NotImportable { path: path.to_owned(), found: sha256 });
    };
    let size_bytes = path.metadata().at("look at", path)?.len();
    let open = || Ok(Box::new(files::open_followed(path)?) as Box<dyn Read>);
    into_cache(job, &artifact.digest, size_bytes, open).map_err(|refusal| match refusal {
        // It was right a moment ago.
        Refusal::Bytes(_) => FileError::ChangedMeanwhile { path: path.to_owned() }.into(),
        Refusal::Other(error) => error,
    })?;
    Ok((artifact.digest.clone(), size_bytes))
}

/// Why bytes did not become a blob.
pub(super) enum Refusal {
    /// They are not the right ones; how, as the end of a sentence about them.
    Bytes(String),
    /// Something else went wrong.
    Other(ImageError),
}

impl<E: Into<ImageError>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Makes a blob of these bytes under its lock, unless it is there already and right.
pub(super) fn into_cache<'r>(
    job: &Job,
    digest: &Digest,
    size_bytes: u64,
    open: impl FnOnce() -> Result<Box<dyn Read + 'r>, ImageError>,
) -> Result<(), Refusal> {
    let cache = &job.context.cache;
    let blob = cache.blob(digest.algorithm(), digest.hex());
    let directory = blob.parent().unwrap_or(Path::new("/"));
    files::create_directory(directory)?;
    let what = format!("another castra that downloads {digest}");
    let _lock = lock::take(job, &cache.blob_lock(digest.algorithm(), digest.hex()), &what)?;
    if files::open_if_there(&blob)?.is_some() {
        if files::digest(&blob, digest, &job.context.cancel)? == *digest {
            return Ok(());
        }
        fetch::set_aside(job, cache, digest)?;
    }
    files::require_space(directory, &Peak { download: size_bytes, ..Peak::default() })?;
    // Where a download would write them, so that what an interruption leaves is used up by the next try.
    let partial = cache.partial(digest.algorithm(), digest.hex());
    let own = lock::take(job, &partial, &what)?;
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
    // One byte more than announced, so that too many are found out.
    let from = from.take(size_bytes.saturating_add(1));
    let length =
        files::copy_sparse(from, file, &mut hasher, &job.context.cancel).map_err(|error| match error {
            HashError::Interrupted(interrupted) => interrupted.into(),
            HashError::Io(error) if error.raw_os_error().is_some() => {
                FileError::io("write", partial, error).into()
            }
            HashError::Io(error) => Refusal::Bytes(format!("cannot be read: {error}")),
        })?;
    if length != size_bytes {
        return Err(Refusal::Bytes(format!("has {length} bytes, not {size_bytes}: was it cut off?")));
    }
    match hasher.finish() {
        found if found == *digest => Ok(()),
        found => Err(Refusal::Bytes(format!("has digest {found}, not {digest}"))),
    }
}
