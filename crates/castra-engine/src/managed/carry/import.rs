//! Import of images by hand, for machines without a network: a file that an image is made from, or
//! an archive of such files, becomes a download in the cache. Nothing has to be trusted, since
//! every byte is checked against the pinned digests.

use std::io::{self, Read};
use std::path::Path;

use super::archive::Archive;
use crate::context::RuntimeContext;
use crate::files::{self, At, Digest, FileError};
use crate::managed::error::ImageError;
use crate::managed::fetch::blob::{self, Refusal};
use crate::managed::job::Job;
use crate::managed::manager::ImageManager;
use crate::managed::spec::ManagedImageSpec;
use crate::report::ImageLabel;

/// Result of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Files that are in the cache now.
    pub files: Vec<ImportedFile>,
}

/// A file that is in the cache now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedFile {
    /// Digest of the file, by which it is found.
    pub digest: Digest,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Known images that are made from it.
    pub images: Vec<ImageLabel>,
}

impl ImageManager {
    /// Puts a file, or all files of an archive that [`Self::export`] made, into the cache's
    /// downloads. `known` are the images that a single file may belong to.
    ///
    /// # Errors
    /// Returns [`ImageError::NotImportable`] for a file that no known image is made from,
    /// [`ImageError::Archive`] for an archive that is damaged or has members that no export writes,
    /// and errors of reading and writing. Files imported before the error stay, since each was
    /// verified by itself.
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
            // Any other problem shows when the file is opened.
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

/// Imports a single file that a known image is made from.
fn import_file(
    job: &Job,
    path: &Path,
    known: &[&ManagedImageSpec],
) -> Result<(Digest, u64), ImageError> {
    let file = files::open_followed(path)?;
    let [sha256, sha512] = files::both_digests(file, &job.context.cancel).at("read", path)?;
    let artifacts = || known.iter().flat_map(|spec| &spec.artifacts);
    let pinned = artifacts().find(|artifact| [&sha256, &sha512].contains(&&artifact.digest));
    let Some(artifact) = pinned else {
        return Err(ImageError::NotImportable { path: path.to_owned(), found: sha256 });
    };
    let size_bytes = path.metadata().at("look at", path)?.len();
    let open = || Ok(Box::new(files::open_followed(path)?) as Box<dyn Read>);
    blob::into_cache(job, &artifact.digest, size_bytes, open).map_err(|refusal| match refusal {
        // The bytes were right a moment ago.
        Refusal::Bytes(_) => FileError::ChangedMeanwhile { path: path.to_owned() }.into(),
        Refusal::Other(error) => error,
    })?;
    Ok((artifact.digest.clone(), size_bytes))
}
