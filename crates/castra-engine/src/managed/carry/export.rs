//! Export of an image into one file, for [`super::ImageManager::import`] on a machine without a
//! network.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::archive::{DESCRIPTION, Description, FORMAT, Member, member_name};
use crate::cancel::Cancel;
use crate::context::RuntimeContext;
use crate::files::{self, At, FileError, Peak, TEMPORARY};
use crate::managed::check;
use crate::managed::error::ImageError;
use crate::managed::fetch::{self, blob::Blob};
use crate::managed::job::Job;
use crate::managed::manager::ImageManager;
use crate::managed::spec::{ManagedArtifactSpec, ManagedImageSpec};
use crate::managed::store::workspace::Workspace;

/// Mode of members, the same for every user so that archives are reproducible.
const MEMBER_MODE: u32 = 0o444;
/// Mode of the archive, which is meant to be passed on.
const ARCHIVE_MODE: u32 = 0o644;

impl ImageManager {
    /// Writes the downloads of an image into the new file `target`, and returns its size in bytes.
    /// Downloads that are not in the cache are fetched first. The same image gives the same bytes
    /// everywhere.
    ///
    /// # Errors
    /// Returns [`ImageError::Exists`], or errors of fetching and writing, after which there is no
    /// `target`.
    pub fn export(
        &self,
        spec: &ManagedImageSpec,
        target: &Path,
        context: &RuntimeContext,
    ) -> Result<u64, ImageError> {
        check::spec(spec)?;
        if fs::symlink_metadata(target).is_ok() {
            return Err(ImageError::Exists { path: target.to_owned() });
        }
        let job = self.job_beside(spec.label(), context);
        let blobs = blobs(&job, spec)?;
        let directory = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(directory)
            .at("write in", directory)?;
        let archive = blobs.iter().map(|(member, _)| member.size_bytes).sum();
        files::require_space(directory, &Peak { archive, ..Peak::default() })?;
        write(&job, spec, blobs, temporary.as_file(), target)?;
        let mode = fs::Permissions::from_mode(ARCHIVE_MODE);
        temporary.as_file().set_permissions(mode).at("change the mode of", target)?;
        temporary.as_file().sync_all().at("write to disk", target)?;
        temporary.persist_noclobber(target).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => ImageError::Exists { path: target.to_owned() },
            _ => FileError::io("create", target, error.error).into(),
        })?;
        Ok(target.metadata().at("look at", target)?.len())
    }
}

/// Returns the verified downloads of an image, each once.
fn blobs(job: &Job, spec: &ManagedImageSpec) -> Result<Vec<(Member, Blob)>, ImageError> {
    let mut distinct: Vec<&ManagedArtifactSpec> = Vec::new();
    for artifact in &spec.artifacts {
        if distinct.iter().all(|other| other.digest != artifact.digest) {
            distinct.push(artifact);
        }
    }
    let cache = &job.context.cache;
    let is_missing = |artifact: &&ManagedArtifactSpec| {
        !cache.blob(artifact.digest.algorithm(), artifact.digest.hex()).is_file()
    };
    let missing: Vec<&ManagedArtifactSpec> = distinct.iter().copied().filter(is_missing).collect();
    let workspace = Workspace::open_cache(job, spec, &missing)?;
    let member = |(number, artifact): (usize, &&ManagedArtifactSpec)| {
        let blob = fetch::fetch(job, &workspace, artifact)?;
        let size_bytes = files::open(blob.path())?.metadata().at("look at", blob.path())?.len();
        let (name, digest) = (member_name(number), artifact.digest.clone());
        Ok((Member { name, digest, size_bytes, source: artifact.source.to_string() }, blob))
    };
    distinct.iter().enumerate().map(member).collect()
}

fn write(
    job: &Job,
    spec: &ManagedImageSpec,
    blobs: Vec<(Member, Blob)>,
    to: &File,
    target: &Path,
) -> Result<(), FileError> {
    let cancel = &job.context.cancel;
    let (members, blobs): (Vec<Member>, Vec<Blob>) = blobs.into_iter().unzip();
    let description = Description {
        format: FORMAT,
        image: spec.label(),
        castra_version: env!("CARGO_PKG_VERSION").to_owned(),
        blobs: members,
    };
    let text = serde_json::to_vec_pretty(&description).unwrap_or_default();
    let mut archive = tar::Builder::new(to);
    let mut append = |name: &str, size_bytes, from: &mut dyn Read| {
        let mut header = tar::Header::new_ustar();
        header.set_size(size_bytes);
        header.set_mode(MEMBER_MODE);
        let written = archive.append_data(&mut header, name, Heeding { from, cancel });
        // After an interruption, the error of the write means nothing.
        cancel.check()?;
        written.at("write", target)
    };
    append(DESCRIPTION, text.len() as u64, &mut text.as_slice())?;
    for (member, blob) in description.blobs.iter().zip(&blobs) {
        append(&member.name, member.size_bytes, &mut files::open(blob.path())?)?;
    }
    archive.finish().at("write", target)
}

/// Reader that fails once the operation is cancelled.
struct Heeding<'a> {
    from: &'a mut dyn Read,
    cancel: &'a Cancel,
}

impl Read for Heeding<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        self.from.read(buffer)
    }
}
