//! Availability of an image's sources, and a short memory of slow ones.

use std::fs;
use std::time::{Duration, SystemTime};

use super::{download, python};
use crate::context::RuntimeContext;
use crate::files;
use crate::managed::error::ImageError;
use crate::managed::job::Job;
use crate::managed::spec::{ArtifactSource, ManagedImageSpec};

/// Probes the servers of an image: one address of each source must answer. Python packages are not
/// asked for.
///
/// # Errors
/// Returns [`ImageError::Offline`], or the failure of the last address.
pub(crate) fn probe(job: &Job, spec: &ManagedImageSpec) -> Result<(), ImageError> {
    if job.context.offline {
        return Err(ImageError::Offline { what: spec.label().to_string() });
    }
    let mut probed: Vec<&[String]> = Vec::new();
    for artifact in &spec.artifacts {
        if let ArtifactSource::Url(urls) = &artifact.source
            && !probed.contains(&urls.as_slice())
        {
            download::probe(job, urls)?;
            probed.push(urls);
        }
    }
    Ok(())
}

/// Checks that every source of an image is available now, pip included.
///
/// # Errors
/// Returns errors as [`probe`] does, or those of pip.
pub(crate) fn ask(job: &Job, spec: &ManagedImageSpec) -> Result<(), ImageError> {
    probe(job, spec)?;
    let mut asked = Vec::new();
    for artifact in &spec.artifacts {
        if let ArtifactSource::PythonPackage { name, version, platform } = &artifact.source
            && !asked.contains(&name)
        {
            python::ask(job, name, &python::requirement(name, version, platform.as_deref()))?;
            asked.push(name);
        }
    }
    Ok(())
}

/// Time for which a source that did not answer is not asked again, if an image of another source is
/// on disk.
const SLOW_FOR: Duration = Duration::from_secs(60);

pub(crate) fn was_slow(spec: &ManagedImageSpec, context: &RuntimeContext) -> bool {
    let note = fs::symlink_metadata(context.cache.slow_source(&spec.id, &spec.version));
    let written = note.and_then(|metadata| metadata.modified()).ok();
    // A time in the future is meaningless.
    let age = written.and_then(|written| SystemTime::now().duration_since(written).ok());
    age.is_some_and(|age| age < SLOW_FOR)
}

/// Records that a source was slow, as well as possible: without a record it is asked again.
pub(crate) fn remember_slowness(spec: &ManagedImageSpec, context: &RuntimeContext) {
    let note = context.cache.slow_source(&spec.id, &spec.version);
    if files::create_directory(context.cache.root()).is_ok()
        && let Ok(file) = files::open_or_create(&note)
    {
        let _ = file.set_modified(SystemTime::now());
    }
}
