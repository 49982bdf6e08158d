//! One image's directory, in a project or in the cache, and the files in it that can be trusted.

use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::{self, Distrust, Manifest, ManifestArtifact};
use super::quarantine;
use super::witness::{self, Witness};
use crate::files::{self, At, FileError, Hasher, Stamp, feed};
use crate::layout::{CacheLayout, ProjectLayout};
use crate::managed::job::Job;
use crate::managed::spec::{
    ArtifactRole, ManagedArtifactSpec, ManagedImagePaths, ManagedImageSpec,
};

/// An image's directory, with the entries of its manifest.
pub(crate) struct ImageDirectory {
    path: PathBuf,
    /// Quarantine for its damaged files.
    quarantine: PathBuf,
    entries: Vec<ManifestArtifact>,
    /// Files in the manifest for which there is no evidence outside the directory.
    unvouched: Vec<ArtifactRole>,
}

/// Location of an image's directory, in a project or in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The image's directory.
    pub(crate) image: PathBuf,
    /// Quarantine for its damaged files.
    pub(crate) quarantine: PathBuf,
}

impl Place {
    /// Returns the image's place in a project.
    pub(crate) fn in_project(project: &ProjectLayout, spec: &ManagedImageSpec) -> Self {
        let image = project.images().image(&spec.id, &spec.version);
        Self { image, quarantine: project.quarantine() }
    }

    /// Returns the image's place in a cache.
    pub(crate) fn in_cache(cache: &CacheLayout, spec: &ManagedImageSpec) -> Self {
        let image = cache.images().image(&spec.id, &spec.version);
        Self { image, quarantine: cache.quarantine() }
    }

    /// Moves a damaged file of the image into the quarantine, and returns where it is now.
    pub(crate) fn quarantine(
        &self,
        spec: &ManagedImageSpec,
        name: &str,
    ) -> Result<PathBuf, FileError> {
        let label = format!("{}-{}-{name}", spec.id, spec.version);
        quarantine::keep(&self.quarantine, &self.image.join(name), &label)
    }
}

/// Returns the paths of an image whose files are all present, unchanged by their stamps, and known
/// to be made from the pinned downloads. Takes a few `stat`s, no lock and no hashing.
pub(crate) fn complete(
    directory: &Path,
    spec: &ManagedImageSpec,
    witness: &Witness,
) -> Option<ManagedImagePaths> {
    let manifest = Manifest::load(directory).ok()?;
    let all_there = spec.artifacts.iter().all(|artifact| {
        let entry = manifest.artifact(artifact.role);
        entry.is_some_and(|entry| {
            is_for(entry, artifact)
                && stamp_fits(directory, entry)
                && witness.vouches_for(artifact, &entry.sha256)
        })
    });
    (all_there && manifest.spec_digest == manifest::spec_digest(spec))
        .then(|| paths(directory, &manifest))?
}

/// Returns `true` if all files of an image seem to be present. Their stamps may differ, as after
/// the directory was copied; then hashing them decides.
pub(crate) fn seems_complete(directory: &Path, spec: &ManagedImageSpec, witness: &Witness) -> bool {
    let Ok(manifest) = Manifest::load(directory) else { return false };
    let has_size = |entry: &ManifestArtifact| {
        let metadata = fs::symlink_metadata(directory.join(&entry.name));
        metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == entry.size_bytes)
    };
    spec.artifacts.iter().all(|artifact| {
        let entry = manifest.artifact(artifact.role);
        entry.is_some_and(|entry| {
            is_for(entry, artifact)
                && has_size(entry)
                && witness.vouches_for(artifact, &entry.sha256)
        })
    })
}

/// Returns `true` if an entry was made from this description.
pub(crate) fn is_for(entry: &ManifestArtifact, artifact: &ManagedArtifactSpec) -> bool {
    entry.name == artifact.role.file_name()
        && entry.spec_digest == manifest::artifact_digest(artifact)
}

fn stamp_fits(directory: &Path, entry: &ManifestArtifact) -> bool {
    let metadata = fs::symlink_metadata(directory.join(&entry.name));
    metadata.is_ok_and(|metadata| {
        metadata.is_file() && files::is_trusted(&metadata) && Stamp::of(&metadata) == entry.stamp
    })
}

fn paths(directory: &Path, manifest: &Manifest) -> Option<ManagedImagePaths> {
    let file = |role| manifest.artifact(role).map(|entry| directory.join(&entry.name));
    Some(ManagedImagePaths {
        directory: directory.to_owned(),
        disk: file(ArtifactRole::Rootfs)?,
        disk_sha256: manifest.artifact(ArtifactRole::Rootfs)?.sha256.clone(),
        kernel: file(ArtifactRole::Kernel),
        initramfs: file(ArtifactRole::Initramfs),
        manifest: manifest::path_in(directory),
    })
}

impl ImageDirectory {
    /// Opens a directory, which need not exist. The manifest's entries are used only if it can be
    /// trusted; otherwise this warns and treats the directory as empty.
    pub(crate) fn open(job: &Job, place: Place, spec: &ManagedImageSpec) -> Self {
        let Place { image: path, quarantine } = place;
        let loaded = Manifest::load(&path).and_then(|manifest| {
            let same = manifest.id == spec.id && manifest.version == spec.version;
            if same { Ok(manifest) } else { Err(Distrust::Foreign) }
        });
        let entries = match loaded {
            Ok(mut manifest) => {
                let has = |role| spec.artifacts.iter().any(|artifact| artifact.role == role);
                manifest.artifacts.retain(|entry| has(entry.role));
                manifest.artifacts
            }
            Err(Distrust::Missing) => Vec::new(),
            Err(distrust) => {
                let manifest = manifest::path_in(&path);
                job.warn(format!("{} {distrust}; rebuilding the image", manifest.display()));
                Vec::new()
            }
        };
        Self { path, quarantine, entries, unvouched: Vec::new() }
    }

    /// Invalidates the stamps, so that every file is hashed: for a directory that others may have
    /// filled.
    pub(crate) fn distrust_stamps(&mut self) {
        for entry in &mut self.entries {
            entry.stamp.size_bytes = u64::MAX;
        }
    }

    /// Returns the entry of an artifact whose file is present, intact, and known to be made from
    /// the pinned download. A file whose stamp has changed is hashed.
    pub(crate) fn intact(
        &mut self,
        job: &Job,
        artifact: &ManagedArtifactSpec,
    ) -> Result<Option<ManifestArtifact>, FileError> {
        let Some(entry) = self.entries.iter_mut().find(|entry| is_for(entry, artifact)) else {
            return self.recognise(job, artifact);
        };
        if !job.witness.vouches_for(artifact, &entry.sha256) {
            self.unvouched.push(artifact.role);
            return Ok(None);
        }
        if stamp_fits(&self.path, entry) {
            return Ok(Some(entry.clone()));
        }
        let path = self.path.join(&entry.name);
        job.step(artifact.role, "verifying sha256");
        match sha256_and_stamp(job, &path) {
            Ok((sha256, stamp)) if sha256 == entry.sha256 => {
                entry.stamp = stamp;
                Ok(Some(entry.clone()))
            }
            Err(FileError::Interrupted(interrupted)) => Err(interrupted.into()),
            Err(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                job.warn(format!("{} is missing; rebuilding it", path.display()));
                Ok(None)
            }
            // Reported when it is quarantined.
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// Creates an entry for a file that no manifest describes, if it is the one that the
    /// description pins.
    fn recognise(
        &mut self,
        job: &Job,
        artifact: &ManagedArtifactSpec,
    ) -> Result<Option<ManifestArtifact>, FileError> {
        let Some(pinned) = witness::pinned(artifact) else { return Ok(None) };
        let path = self.file(artifact.role);
        if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            return Ok(None);
        }
        job.step(artifact.role, "verifying sha256");
        match sha256_and_stamp(job, &path) {
            Ok((sha256, stamp)) if sha256 == pinned => {
                self.record_new(artifact, sha256, stamp);
                Ok(self.entries.last().cloned())
            }
            Err(FileError::Interrupted(interrupted)) => Err(interrupted.into()),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// Returns `true` and keeps the file of an artifact that had no evidence until now, if the file
    /// has this SHA-256.
    pub(crate) fn keeps(
        &mut self,
        job: &Job,
        artifact: &ManagedArtifactSpec,
        sha256: &str,
    ) -> Result<bool, FileError> {
        if !self.unvouched.contains(&artifact.role) || !self.is_trusted(artifact.role) {
            return Ok(false);
        }
        let path = self.file(artifact.role);
        let Some(entry) = self.entries.iter_mut().find(|entry| is_for(entry, artifact)) else {
            return Ok(false);
        };
        let stamp = match sha256_and_stamp(job, &path) {
            Ok((found, stamp)) if found == sha256 && entry.sha256 == sha256 => stamp,
            Err(FileError::Interrupted(interrupted)) => return Err(interrupted.into()),
            Ok(_) | Err(_) => return Ok(false),
        };
        entry.stamp = stamp;
        self.unvouched.retain(|role| *role != artifact.role);
        Ok(true)
    }

    /// Returns `true` if only this user and root can change the file of this role.
    pub(crate) fn is_trusted(&self, role: ArtifactRole) -> bool {
        fs::symlink_metadata(self.file(role)).is_ok_and(|metadata| files::is_trusted(&metadata))
    }

    /// Returns the size in bytes that the manifest has for the file of an artifact.
    pub(crate) fn size_of(&self, artifact: &ManagedArtifactSpec) -> Option<u64> {
        self.entries.iter().find(|entry| is_for(entry, artifact)).map(|entry| entry.size_bytes)
    }

    /// Returns the directory's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path that the file of this role has or will have.
    pub(crate) fn file(&self, role: ArtifactRole) -> PathBuf {
        self.path.join(role.file_name())
    }

    /// Makes way for an artifact that is not [intact](Self::intact): removes it from the manifest
    /// before its file is replaced, so that no file is ever described wrongly, and quarantines a
    /// damaged file. The caller must hold the directory's lock.
    pub(crate) fn make_way(
        &mut self,
        job: &Job,
        spec: &ManagedImageSpec,
        artifact: &ManagedArtifactSpec,
    ) -> Result<(), FileError> {
        let role = artifact.role;
        let Some(entry) = self.entries.iter().find(|entry| entry.role == role).cloned() else {
            return Ok(());
        };
        self.entries.retain(|entry| entry.role != role);
        self.store(spec)?;
        // A file of another description is not damaged, and simply replaced.
        if is_for(&entry, artifact) && fs::symlink_metadata(self.file(role)).is_ok() {
            let place = Place { image: self.path.clone(), quarantine: self.quarantine.clone() };
            let moved = place.quarantine(spec, role.file_name())?;
            let problem = match self.unvouched.contains(&role) {
                true => "does not match the pinned download",
                false => "is damaged",
            };
            job.warn(format!(
                "{} {problem}; it was quarantined as {} and will be rebuilt",
                self.file(role).display(),
                moved.display()
            ));
        }
        Ok(())
    }

    /// Returns `true` if the file of this role has this stamp.
    pub(crate) fn has(&self, role: ArtifactRole, stamp: Stamp) -> bool {
        fs::symlink_metadata(self.file(role)).is_ok_and(|metadata| Stamp::of(&metadata) == stamp)
    }

    /// Records a file that has just been made, verified and published with this stamp.
    pub(crate) fn record_new(
        &mut self,
        artifact: &ManagedArtifactSpec,
        sha256: String,
        stamp: Stamp,
    ) {
        self.put(ManifestArtifact {
            role: artifact.role,
            name: artifact.role.file_name().to_owned(),
            spec_digest: manifest::artifact_digest(artifact),
            source: artifact.source.to_string(),
            sha256,
            size_bytes: stamp.size_bytes,
            made_at: manifest::now(),
            stamp,
        });
    }

    /// Records a file that has just been published, with its current stamp.
    pub(crate) fn record(&mut self, mut entry: ManifestArtifact) -> Result<(), FileError> {
        let path = self.path.join(&entry.name);
        entry.stamp = Stamp::of(&fs::symlink_metadata(&path).at("look at", &path)?);
        self.put(entry);
        Ok(())
    }

    fn put(&mut self, entry: ManifestArtifact) {
        self.entries.retain(|other| other.role != entry.role);
        self.entries.push(entry);
    }

    /// Writes the manifest.
    pub(crate) fn store(&self, spec: &ManagedImageSpec) -> Result<(), FileError> {
        Manifest::new(spec, self.entries.clone()).store(&self.path)
    }
}

/// Returns both for the same open file, so that it cannot be replaced in between.
fn sha256_and_stamp(job: &Job, path: &Path) -> Result<(String, Stamp), FileError> {
    let file = files::open(path)?;
    let mut hasher = Hasher::sha256();
    feed(&mut hasher, &file, &job.context.cancel).at("read", path)?;
    let stamp = Stamp::of(&file.metadata().at("look at", path)?);
    Ok((hasher.finish().hex().to_owned(), stamp))
}
