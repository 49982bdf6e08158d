//! Whether the sources of an image answer now, and which did not a moment ago.

use std::fs;
use std::time::{Duration, SystemTime};

use super::{download, python};
use crate::context::RuntimeContext;
use crate::files;
use crate::managed::error::ImageError;
use crate::managed::job::Job;
use crate::managed::spec::{ArtifactSource, ManagedImageSpec};

/// Probes the servers of an image: one address of each source must answer. What comes by pip is not asked for.
///
/// # Errors
/// [`ImageError::Offline`]; what the last address did instead.
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

/// Asks every source of an image whether it could be fetched now, pip included.
///
/// # Errors
/// As for [`probe`]; what pip said.
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

/// Time for which a source that did not answer is not asked again, where an image of another one is on disk.
const SLOW_FOR: Duration = Duration::from_secs(60);

pub(crate) fn was_slow(spec: &ManagedImageSpec, context: &RuntimeContext) -> bool {
    let note = fs::symlink_metadata(context.cache.slow_source(&spec.id, &spec.version));
    let written = note.and_then(|metadata| metadata.modified()).ok();
    // A time in the future says nothing.
    let age = written.and_then(|written| SystemTime::now().duration_since(written).ok());
    age.is_some_and(|age| age < SLOW_FOR)
}

/// Best effort: what cannot be remembered is asked again.
pub(crate) fn remember_slowness(spec: &ManagedImageSpec, context: &RuntimeContext) {
    let note = context.cache.slow_source(&spec.id, &spec.version);
    if files::create_directory(context.cache.root()).is_ok()
        && let Ok(file) = files::open_or_create(&note)
    {
        let _ = file.set_modified(SystemTime::now());
    }
}
