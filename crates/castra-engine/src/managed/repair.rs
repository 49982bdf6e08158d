//! Repair of images: every byte is hashed again, in the project and in the cache. Damaged files are
//! quarantined, and rebuilt or fetched again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::files::{self, At, Digest, FileError, Lock, Stamp};
use crate::layout::{MANIFEST, ProjectLayout};
use crate::managed::store::directory::Place;
use crate::managed::store::finding::{CheckedFile, CheckedImage, Finding, Location};
use crate::managed::store::manifest::{Distrust, Manifest};
use crate::managed::store::witness;

use super::build;
use super::error::ImageError;
use super::fetch;
use super::job::Job;
use super::spec::ManagedImageSpec;

/// Checks every byte of an image and repairs it.
pub(super) fn repair(
    job: &Job,
    project: &ProjectLayout,
    spec: &ManagedImageSpec,
) -> Result<CheckedImage, ImageError> {
    build::note_unvouched(job, project, spec)?;
    let checked = check(job, project, spec)?;
    if checked.files.is_empty() {
        return Err(ImageError::NotPresent { image: spec.label() });
    }
    rebuild(job, project, spec, &checked).map_err(|error| match error {
        ImageError::Interrupted(interrupted) => interrupted.into(),
        error => {
            let (image, checked) = (spec.label(), Box::new(checked.clone()));
            ImageError::NotRepaired { image, checked, source: Box::new(error) }
        }
    })?;
    Ok(checked)
}

/// Hashes everything present, and quarantines damaged files.
fn check(
    job: &Job,
    project: &ProjectLayout,
    spec: &ManagedImageSpec,
) -> Result<CheckedImage, ImageError> {
    let cache = &job.context.cache;
    let (here, there) = (Place::in_project(project, spec), Place::in_cache(cache, spec));
    let mut hashed = Hashed::default();
    let mut files = Vec::new();
    // In the order in which `prepare` takes them.
    if here.image.is_dir() {
        let what = format!("another castra adding {} to this project", job.image);
        let _lock = job.lock(&project.images().lock(&spec.id, &spec.version), &what)?;
        files.extend(check_directory(job, spec, &here, Location::Project, &mut hashed)?);
    }
    if there.image.is_dir() {
        let what = format!("another castra preparing {}", job.image);
        if let Some(_lock) = lock_in_cache(job, &cache.image_lock(&spec.id, &spec.version), &what)?
        {
            files.extend(check_directory(job, spec, &there, Location::Cache, &mut hashed)?);
        }
    }
    let mut digests: Vec<&Digest> =
        spec.artifacts.iter().map(|artifact| &artifact.digest).collect();
    digests.sort();
    digests.dedup();
    for digest in digests {
        files.extend(check_blob(job, digest, &mut hashed)?);
    }
    Ok(CheckedImage { image: spec.label(), files })
}

/// Takes a lock in the cache; returns `None`, with a warning, if the cache cannot be written to.
fn lock_in_cache(job: &Job, path: &Path, what: &str) -> Result<Option<Lock>, ImageError> {
    match job.lock(path, what) {
        Err(error) if error.is_unwritable() => {
            job.warn(format!("the cache was not verified: {}", crate::error::one_line(&error)));
            Ok(None)
        }
        lock => Ok(lock.map(Some)?),
    }
}

fn check_directory(
    job: &Job,
    spec: &ManagedImageSpec,
    place: &Place,
    location: Location,
    hashed: &mut Hashed,
) -> Result<Vec<CheckedFile>, ImageError> {
    let loaded =
        Manifest::load(&place.image).and_then(|manifest| match manifest.is_sound_for(spec) {
            true => Ok(manifest),
            false => Err(Distrust::Foreign),
        });
    let manifest = match loaded {
        Ok(manifest) => manifest,
        Err(Distrust::Missing) => return Ok(Vec::new()),
        Err(distrust) => {
            let path = place.image.join(MANIFEST);
            let moved = place.quarantine(spec, MANIFEST)?;
            job.warn(format!(
                "{} {distrust}; it was quarantined as {}",
                path.display(),
                moved.display()
            ));
            let (expected, quarantined) = (None, Some(moved));
            let finding = Finding::Unusable(distrust.to_string());
            return Ok(vec![CheckedFile { location, path, expected, finding, quarantined }]);
        }
    };
    let mut files = Vec::new();
    let mut right = Vec::new();
    for mut entry in manifest.artifacts.clone() {
        let path = place.image.join(&entry.name);
        job.step(entry.role, format!("verifying {}", path.display()));
        let artifact = spec.artifacts.iter().find(|artifact| artifact.role == entry.role);
        let pinned = artifact.and_then(witness::pinned);
        let expected = Digest::Sha256(pinned.unwrap_or(&entry.sha256).to_owned());
        let (mut finding, stamp) = hashed.look_at(job, &path, &expected)?;
        // The manifest lies beside the file, so it is no evidence.
        if finding == Finding::Intact && !job.witness.vouches_for_entry(artifact, &entry) {
            finding = Finding::Unusable("only the manifest beside it describes it".to_owned());
        }
        let quarantined = report(job, spec, place, &entry.name, &finding)?;
        if let (Finding::Intact, Some(stamp)) = (&finding, stamp) {
            entry.stamp = stamp;
            right.push(entry);
        }
        files.push(CheckedFile { location, path, expected: Some(expected), finding, quarantined });
    }
    // An earlier check may have quarantined files that could not be rebuilt then.
    for artifact in &spec.artifacts {
        if manifest.artifact(artifact.role).is_none() {
            let path = place.image.join(artifact.role.file_name());
            report(job, spec, place, artifact.role.file_name(), &Finding::Missing)?;
            files.push(CheckedFile {
                location,
                path,
                expected: None,
                finding: Finding::Missing,
                quarantined: None,
            });
        }
    }
    if right != manifest.artifacts {
        // Sealed for this description without the damaged files, so that they are rebuilt.
        Manifest::new(spec, right).store(&place.image)?;
    }
    Ok(files)
}

/// Quarantines a damaged file of an image, and warns about it.
fn report(
    job: &Job,
    spec: &ManagedImageSpec,
    place: &Place,
    name: &str,
    finding: &Finding,
) -> Result<Option<PathBuf>, ImageError> {
    let path = place.image.join(name);
    match finding {
        Finding::Intact => Ok(None),
        Finding::Missing => {
            job.warn(format!("{} is missing", path.display()));
            Ok(None)
        }
        Finding::Changed(_) | Finding::Unusable(_) => {
            let problem = match finding {
                Finding::Unusable(why) => format!("cannot be used ({why})"),
                _ => "is damaged".to_owned(),
            };
            let moved = place.quarantine(spec, name)?;
            job.warn(format!(
                "{} {problem}; it was quarantined as {}",
                path.display(),
                moved.display()
            ));
            Ok(Some(moved))
        }
    }
}

fn check_blob(
    job: &Job,
    digest: &Digest,
    hashed: &mut Hashed,
) -> Result<Option<CheckedFile>, ImageError> {
    let cache = &job.context.cache;
    let path = cache.blob(digest.algorithm(), digest.hex());
    if std::fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    let what = format!("another castra downloading {digest}");
    let lock = lock_in_cache(job, &cache.blob_lock(digest.algorithm(), digest.hex()), &what)?;
    let Some(_lock) = lock else { return Ok(None) };
    job.note(&format!("verifying {}", path.display()));
    let (finding, _) = hashed.look_at(job, &path, digest)?;
    let quarantined = match &finding {
        Finding::Missing => return Ok(None),
        Finding::Intact => None,
        Finding::Changed(_) | Finding::Unusable(_) => {
            Some(fetch::blob::quarantine(job, cache, digest)?)
        }
    };
    let location = Location::Download;
    Ok(Some(CheckedFile { location, path, expected: Some(digest.clone()), finding, quarantined }))
}

/// Rebuilds damaged files. A download alone is not fetched again: nothing needs it while the files
/// made from it are intact.
fn rebuild(
    job: &Job,
    project: &ProjectLayout,
    spec: &ManagedImageSpec,
    checked: &CheckedImage,
) -> Result<(), ImageError> {
    if checked.is_damaged_in(Location::Project) {
        build::prepare(job, project, spec)?;
    }
    if checked.is_damaged_in(Location::Cache) {
        build::fill_cache(job, project, spec)?;
    }
    let only_downloads = !checked.has(Location::Project) && !checked.has(Location::Cache);
    if only_downloads && checked.is_damaged_in(Location::Download) {
        build::fill_cache(job, project, spec)?;
    }
    Ok(())
}

/// Digests by inode: project and cache usually share their files, and each is read once.
#[derive(Default)]
struct Hashed(HashMap<(u64, u64), Digest>);

impl Hashed {
    /// Returns the state of the file at this path, and its stamp if it is a file.
    fn look_at(
        &mut self,
        job: &Job,
        path: &Path,
        expected: &Digest,
    ) -> Result<(Finding, Option<Stamp>), FileError> {
        match self.digest(job, path, expected) {
            Ok(None) => Ok((Finding::Missing, None)),
            Ok(Some((found, stamp))) if found == *expected => Ok((Finding::Intact, Some(stamp))),
            Ok(Some((found, stamp))) => Ok((Finding::Changed(found), Some(stamp))),
            Err(FileError::Interrupted(interrupted)) => Err(interrupted.into()),
            // A link, a directory, or sectors that can no longer be read.
            Err(error) => Ok((Finding::Unusable(crate::error::one_line(&error)), None)),
        }
    }

    fn digest(
        &mut self,
        job: &Job,
        path: &Path,
        like: &Digest,
    ) -> Result<Option<(Digest, Stamp)>, FileError> {
        use std::os::unix::fs::MetadataExt;
        let Some(file) = files::open_if_there(path)? else { return Ok(None) };
        let metadata = file.metadata().at("look at", path)?;
        let (key, stamp) = ((metadata.dev(), metadata.ino()), Stamp::of(&metadata));
        let known = self.0.get(&key).filter(|known| known.algorithm() == like.algorithm());
        let digest = match known {
            Some(digest) => digest.clone(),
            None => files::digest(path, like, &job.context.cancel)?,
        };
        self.0.insert(key, digest.clone());
        Ok(Some((digest, stamp)))
    }
}
