//! Preparation of an image in a project.
//!
//! ```text
//! complete in the project ────────────────────────────────────────► done, in milliseconds
//!   │ no: lock the project's copy
//! intact in the cache ─────────────────────────────► link each file into the project ─► manifest
//!   │ no: lock the image in the cache, look again                         ▲
//! source ─► verified download ─► steps ─► verified file ─► published in the cache
//! ```
//!
//! Each file is judged by itself: only missing, damaged or newly described ones are made.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::error::ImageError;
use super::fetch::{self, blob::Blob};
use super::job::Job;
use super::spec::{ArtifactRole, ManagedArtifactSpec, ManagedImagePaths, ManagedImageSpec};
use crate::error::one_line;
use crate::failpoint::{self, Point};
use crate::files::{self, At, Digest, FileError, OVERLAY_BYTES, Peak, Shared};
use crate::layout::ProjectLayout;
use crate::managed::store::directory::{self, ImageDirectory, Place};
use crate::managed::store::manifest::Manifest;
use crate::managed::store::references;
use crate::managed::store::workspace::Workspace;
use crate::report::Event;

pub(super) mod transform;
mod verify;

/// Puts an incomplete image into a project.
pub(crate) fn prepare(
    job: &Job,
    project: &ProjectLayout,
    spec: &ManagedImageSpec,
) -> Result<ManagedImagePaths, ImageError> {
    let images = project.images();
    let path = images.image(&spec.id, &spec.version);
    files::create_directory(&path)?;
    let what = format!("another castra adding {} to this project", job.image);
    let _lock = job.lock(&images.lock(&spec.id, &spec.version), &what)?;
    files::remove_leftovers(&path).at("read", &path)?;
    // Noted before anything is fetched for this project, so that nothing prunes it as unneeded.
    references::note(job, project, spec);
    let mut here = ImageDirectory::open(job, Place::in_project(project, spec), spec);

    let missing = not_intact(job, &mut here, spec.artifacts.iter())?;
    let cached = ImageDirectory::open(job, Place::in_cache(&job.context.cache, spec), spec);
    let missing = take_over(job, &mut here, spec, cached, missing)?;
    if !missing.is_empty() {
        let workspace = Workspace::open(job, project, spec, &missing)?;
        workspace.require_space_beside(here.path(), &missing)?;
        // The last holder of the lock has probably made what is missing.
        let missing = take_over(job, &mut here, spec, workspace.directory(job, spec), missing)?;
        make(job, spec, &workspace, &missing)?;
        let left = take_over(job, &mut here, spec, workspace.directory(job, spec), missing)?;
        if let Some(artifact) = left.first() {
            let path = workspace.image(spec).join(artifact.role.file_name());
            return Err(FileError::ChangedMeanwhile { path }.into());
        }
        workspace.finish()?;
    }
    failpoint::reach(Point::ImageShared);
    here.store(spec)?;
    failpoint::reach(Point::ImageRecorded);
    let paths = directory::complete(here.path(), spec, &job.witness);
    let paths =
        paths.ok_or_else(|| FileError::ChangedMeanwhile { path: here.path().to_owned() })?;
    job.note("is complete in the project");
    job.report(Event::ImageReady { image: job.image.clone() });
    Ok(paths)
}

/// Returns the artifacts of a directory that cannot be trusted.
fn not_intact<'s>(
    job: &Job,
    directory: &mut ImageDirectory,
    artifacts: impl Iterator<Item = &'s ManagedArtifactSpec>,
) -> Result<Vec<&'s ManagedArtifactSpec>, ImageError> {
    let mut missing = Vec::new();
    for artifact in artifacts {
        if directory.intact(job, artifact)?.is_none() || !directory.is_trusted(artifact.role) {
            missing.push(artifact);
        }
    }
    Ok(missing)
}

/// Ensures that the cache has an image, and returns its paths. Missing files are taken from
/// `donor`, a project, only if the description pins the digest of the finished file or this user's
/// castra has recorded it.
pub(crate) fn fill_cache(
    job: &Job,
    donor: &ProjectLayout,
    spec: &ManagedImageSpec,
) -> Result<ManagedImagePaths, ImageError> {
    let cache = &job.context.cache;
    let place = || Place::in_cache(cache, spec);
    let mut there = ImageDirectory::open(job, place(), spec);
    let missing = not_intact(job, &mut there, spec.artifacts.iter())?;
    let workspace = Workspace::open_cache(job, spec, &missing)?;
    // The last holder of the lock has probably made what is missing.
    let mut there = ImageDirectory::open(job, place(), spec);
    let missing = not_intact(job, &mut there, spec.artifacts.iter())?;
    // Every byte of a project's file is hashed, and compared with what is known outside the
    // project.
    let mut given = ImageDirectory::open(job, Place::in_project(donor, spec), spec);
    given.distrust_stamps();
    let missing = take_over(job, &mut there, spec, given, missing)?;
    if missing.len() < spec.artifacts.len() {
        // Includes files that were recognised, or verified under another stamp.
        there.store(spec)?;
    }
    make(job, spec, &workspace, &missing)?;
    let paths = directory::complete(there.path(), spec, &job.witness);
    let paths =
        paths.ok_or_else(|| FileError::ChangedMeanwhile { path: there.path().to_owned() })?;
    job.note("is complete in the cache");
    job.report(Event::ImageReady { image: job.image.clone() });
    Ok(paths)
}

/// Links the missing artifacts that `there` has into `here`, and returns those still missing.
fn take_over<'s>(
    job: &Job,
    here: &mut ImageDirectory,
    spec: &ManagedImageSpec,
    mut there: ImageDirectory,
    missing: Vec<&'s ManagedArtifactSpec>,
) -> Result<Vec<&'s ManagedArtifactSpec>, ImageError> {
    if missing.is_empty() {
        return Ok(missing);
    }
    let image = missing.iter().filter_map(|artifact| there.size_of(artifact)).sum();
    if image > 0 && !files::is_shared(there.path(), here.path())? {
        // Links cannot cross filesystems, so these are copies.
        files::require_space(
            here.path(),
            &Peak { image, overlay: OVERLAY_BYTES, ..Peak::default() },
        )?;
    }
    let mut left = Vec::new();
    for artifact in missing {
        let Some(entry) = there.intact(job, artifact)? else {
            left.push(artifact);
            continue;
        };
        let role = artifact.role;
        if here.keeps(job, artifact, &entry.sha256)? {
            continue;
        }
        here.make_way(job, spec, artifact)?;
        let source = there.file(role);
        match files::share(&source, &here.file(role), &entry.sha256, &job.context.cancel) {
            Ok(Shared::Linked) if !here.has(role, entry.stamp) => {
                // Replaced between check and link, by a holder of the lock that comes next.
                left.push(artifact);
                continue;
            }
            // Removed between check and link.
            Err(error) if error.is_absence_of(&source) => {
                left.push(artifact);
                continue;
            }
            shared => shared?,
        };
        failpoint::reach(Point::FileShared);
        job.note(&format!("{role}: taken from {}", there.path().display()));
        here.record(entry)?;
    }
    Ok(left)
}

/// Rebuilds every file of an image that has no record, as far as the downloads are present, and
/// records its digest: a project or a cache of an earlier castra has files without records.
///
/// # Errors
/// Returns the user's interruption. Files that cannot be rebuilt stay without a record.
pub(crate) fn note_unvouched(
    job: &Job,
    project: &ProjectLayout,
    spec: &ManagedImageSpec,
) -> Result<(), ImageError> {
    let places = [Place::in_project(project, spec), Place::in_cache(&job.context.cache, spec)];
    let manifests: Vec<Manifest> =
        places.iter().filter_map(|place| Manifest::load(&place.image).ok()).collect();
    let is_unvouched = |artifact: &&ManagedArtifactSpec| {
        let entries = manifests.iter().filter_map(|manifest| manifest.artifact(artifact.role));
        let mut entries = entries.filter(|entry| directory::is_for(entry, artifact));
        let cache = &job.context.cache;
        entries.any(|entry| !job.witness.vouches_for(artifact, &entry.sha256))
            && cache.blob(artifact.digest.algorithm(), artifact.digest.hex()).is_file()
    };
    let unvouched: Vec<&ManagedArtifactSpec> = spec.artifacts.iter().filter(is_unvouched).collect();
    let build = |artifact: &ManagedArtifactSpec| {
        let workspace = Workspace::open_cache(job, spec, &[])?;
        let blob = fetch::fetch(job, &workspace, artifact)?;
        let work = workspace.work(spec)?;
        let made = transform::run(job, artifact, blob.path(), work.path())?;
        let (_, sha256) = verify::verify(job, artifact, made)?;
        Ok(job.witness.note(artifact, &sha256)?)
    };
    for artifact in unvouched {
        match build(artifact) {
            Err(ImageError::Interrupted(interrupted)) => return Err(interrupted.into()),
            Err(error) => job.note(&format!("{}: {}", artifact.role, one_line(&error))),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Makes these artifacts and publishes each in the cache.
fn make(
    job: &Job,
    spec: &ManagedImageSpec,
    workspace: &Workspace,
    missing: &[&ManagedArtifactSpec],
) -> Result<(), ImageError> {
    if missing.is_empty() {
        return Ok(());
    }
    if missing.iter().any(|artifact| artifact.role == ArtifactRole::Rootfs) {
        // Needed at the end; better to learn of its absence before an hour of downloading.
        transform::convert::qemu_img(job)?;
    }
    make_each(job, spec, workspace, missing)
}

fn make_each(
    job: &Job,
    spec: &ManagedImageSpec,
    workspace: &Workspace,
    missing: &[&ManagedArtifactSpec],
) -> Result<(), ImageError> {
    let mut there = ImageDirectory::open(job, Place::in_cache(workspace.cache(), spec), spec);
    files::remove_leftovers(there.path()).at("read", there.path())?;
    // Artifacts of one source share its download and its verification.
    let mut blobs: BTreeMap<&Digest, Blob> = BTreeMap::new();
    for artifact in missing {
        let blob = match blobs.entry(&artifact.digest) {
            Entry::Occupied(fetched) => fetched.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(fetch::fetch(job, workspace, artifact)?),
        };
        let work = workspace.work(spec)?;
        failpoint::reach(Point::WorkMade);
        let made = transform::run(job, artifact, blob.path(), work.path())?;
        let (file, sha256) = verify::verify(job, artifact, made)?;
        failpoint::reach(Point::ProductVerified);
        if let Err(error) = job.witness.note(artifact, &sha256) {
            job.warn(format!(
                "the next castra will rebuild {}: {}",
                artifact.role,
                one_line(&error)
            ));
        }
        if there.keeps(job, artifact, &sha256)? {
            there.store(spec)?;
            continue;
        }
        there.make_way(job, spec, artifact)?;
        let stamp = files::publish(&file, &there.file(artifact.role))?;
        // Removed before the manifest is written, since nothing looks for leftovers of a complete
        // image.
        files::remove_directory(work.path())?;
        failpoint::reach(Point::ProductPublished);
        there.record_new(artifact, sha256, stamp);
        there.store(spec)?;
        failpoint::reach(Point::ProductRecorded);
    }
    Ok(())
}
