//! Verified downloads (*blobs*): the exact pinned bytes of a source, under a name that is their
//! digest.

use std::path::{Path, PathBuf};

use super::error::ImageError;
use super::job::Job;
use super::spec::{ArtifactRole, ArtifactSource, ManagedArtifactSpec};
use crate::files::{self, At, Digest, sha256_hex};
use crate::managed::store::workspace::Workspace;

pub(crate) mod blob;
pub(crate) mod download;
pub(crate) mod error;
mod local;
mod python;
pub(crate) mod reach;

use blob::Blob;

/// Finds an intact blob of an artifact, or fetches it.
pub(crate) fn fetch(
    job: &Job,
    workspace: &Workspace,
    artifact: &ManagedArtifactSpec,
) -> Result<Blob, ImageError> {
    let lock_file = workspace.cache().blob_lock(artifact.digest.algorithm(), artifact.digest.hex());
    let what = format!("another castra downloading {}", artifact.source);
    let mut fetched: Option<PathBuf> = None;
    loop {
        let share = job.share_lock(&lock_file, &what)?;
        let found = match fetched.take() {
            Some(path) => path.is_file().then_some(path),
            None => ready(job, workspace, artifact)?,
        };
        if let Some(path) = found {
            return Ok(Blob::shared(path, share));
        }
        drop(share);
        // Between this and the shared lock, a `prune` can remove the file again; then it is fetched
        // once more.
        fetched = Some(fetch_alone(job, workspace, artifact, &lock_file)?);
    }
}

/// Fetches the blob of an artifact under its lock.
fn fetch_alone(
    job: &Job,
    workspace: &Workspace,
    artifact: &ManagedArtifactSpec,
    lock_file: &Path,
) -> Result<PathBuf, ImageError> {
    let cache = workspace.cache();
    if let Some(directory) = cache.blob(artifact.digest.algorithm(), artifact.digest.hex()).parent()
    {
        files::create_directory(directory)?;
    }
    let what = format!("another castra downloading {}", artifact.source);
    let _lock = job.lock(lock_file, &what)?;
    // The last holder of the lock has probably fetched it.
    if let Some(blob) = ready(job, workspace, artifact)? {
        return Ok(blob);
    }
    match &artifact.source {
        ArtifactSource::Url(urls) => download::fetch(job, cache, artifact, urls),
        ArtifactSource::PythonPackage { name, version, platform } => python::fetch(
            job,
            cache,
            artifact,
            &python::requirement(name, version, platform.as_deref()),
        ),
        ArtifactSource::Path(path) => local::fetch(job, cache, artifact, path),
    }
}

/// Fetches bytes that nothing pins yet and keeps them under their digest, so that they need not be
/// fetched again once that is pinned. Returns the digest and the number of bytes. A file on this
/// machine is only hashed.
pub(crate) fn fetch_unpinned(
    job: &Job,
    source: &ArtifactSource,
    size_bytes: Option<u64>,
) -> Result<(Digest, u64), ImageError> {
    let cache = &job.context.cache;
    // Names the download while its own digest is unknown.
    let stand_in = Digest::Sha256(sha256_hex(source.to_string().as_bytes()));
    let blob = cache.blob(stand_in.algorithm(), stand_in.hex());
    files::create_directory(blob.parent().unwrap_or(cache.root()))?;
    let what = format!("another castra downloading {source}");
    let _lock = job.lock(&cache.blob_lock(stand_in.algorithm(), stand_in.hex()), &what)?;
    let (role, pipeline, product_digest) = (ArtifactRole::Rootfs, Vec::new(), None);
    let (source, digest) = (source.clone(), stand_in);
    let artifact =
        ManagedArtifactSpec { role, source, digest, size_bytes, pipeline, product_digest };
    match &artifact.source {
        ArtifactSource::Url(urls) => download::fetch_unpinned(job, cache, &artifact, urls),
        ArtifactSource::PythonPackage { name, version, platform } => {
            let requirement = python::requirement(name, version, platform.as_deref());
            python::fetch_unpinned(job, cache, &artifact, &requirement)
        }
        ArtifactSource::Path(path) => {
            let file = local::open(job, path)?;
            let length = file.metadata().at("look at", path)?.len();
            let [sha256, _] = files::both_digests(file, &job.context.cancel).at("read", path)?;
            Ok((sha256, length))
        }
    }
}

/// Returns a blob that is present, after hashing it again: it may have been on that disk for a
/// year.
fn ready(
    job: &Job,
    workspace: &Workspace,
    artifact: &ManagedArtifactSpec,
) -> Result<Option<PathBuf>, ImageError> {
    for blob in workspace.blobs(&artifact.digest) {
        let is_ours = blob.starts_with(workspace.cache().root());
        let trusted = match files::open_if_there(&blob) {
            Ok(Some(file)) => files::is_trusted(&file.metadata().at("look at", &blob)?),
            Err(error) if is_ours => return Err(error.into()),
            Ok(None) | Err(_) => continue,
        };
        if !trusted {
            job.warn(format!("{} belongs to another user; fetching it again", blob.display()));
            continue;
        }
        job.step(artifact.role, format!("verifying {}", artifact.digest.algorithm()));
        if files::digest(&blob, &artifact.digest, &job.context.cancel)? == artifact.digest {
            return Ok(Some(blob));
        }
        if is_ours {
            blob::quarantine(job, workspace.cache(), &artifact.digest)?;
        } else {
            job.warn(format!("{} is damaged; fetching it again", blob.display()));
        }
    }
    Ok(None)
}
