//! From a source to a verified download (a *blob*): the exact pinned bytes, under a name that is their digest.

use std::path::PathBuf;

use super::error::{At, ImageError};
use super::job::Job;
use super::spec::{ArtifactSource, ManagedArtifactSpec};
use super::workspace::Workspace;
use super::{download, files, lock};

mod local;
pub(super) mod python;

/// The blob of an artifact: one that is there and still right, or a fresh one.
pub(super) fn fetch(
    job: &Job,
    workspace: &Workspace,
    artifact: &ManagedArtifactSpec,
) -> Result<PathBuf, ImageError> {
    if let Some(blob) = ready(job, workspace, artifact)? {
        return Ok(blob);
    }
    let cache = workspace.cache();
    let (algorithm, hex) = (artifact.digest.algorithm(), artifact.digest.hex());
    if let Some(directory) = cache.blob(algorithm, hex).parent() {
        files::create_directory(directory)?;
    }
    let what = format!("another castra that downloads {}", artifact.source);
    let _lock = lock::take(job, &cache.lock(&format!("blob-{algorithm}-{hex}")), &what)?;
    // Whoever held the lock has probably fetched it.
    if let Some(blob) = ready(job, workspace, artifact)? {
        return Ok(blob);
    }
    match &artifact.source {
        ArtifactSource::Url(urls) => download::fetch(job, cache, artifact, urls),
        ArtifactSource::PythonPackage { name, version, platform } => {
            python::fetch(job, cache, artifact, &python::requirement(name, version, platform.as_deref()))
        }
        ArtifactSource::Path(path) => local::fetch(job, cache, artifact, path),
    }
}

/// A blob that is there, hashed again: it may have lain on that disk for a year.
fn ready(
    job: &Job,
    workspace: &Workspace,
    artifact: &ManagedArtifactSpec,
) -> Result<Option<PathBuf>, ImageError> {
    for blob in workspace.blobs(&artifact.digest) {
        let is_ours = blob.starts_with(workspace.cache().root());
        let trusted = match files::open_if_there(&blob) {
            Ok(Some(file)) => files::is_trusted(&file.metadata().at("look at", &blob)?),
            Err(error) if is_ours => return Err(error),
            Ok(None) | Err(_) => continue,
        };
        if !trusted {
            job.warn(format!("{} belongs to another user; it is fetched again", blob.display()));
            continue;
        }
        job.step(artifact.role, format!("verifying {}", artifact.digest.algorithm()));
        if files::digest(&blob, &artifact.digest, &job.context.cancel)? == artifact.digest {
            return Ok(Some(blob));
        }
        job.warn(format!("{} is damaged; it is fetched again", blob.display()));
        if is_ours {
            files::remove_file(&blob)?;
        }
    }
    Ok(None)
}
