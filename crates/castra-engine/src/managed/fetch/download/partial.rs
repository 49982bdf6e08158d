//! Partial downloads: the bytes that an earlier attempt left, and those that this one adds.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::headers::is_strong;
use super::writeback::Writeback;
use crate::failpoint::{self, Point};
use crate::files::{self, At, Digest, FileError, Hasher, Lock, SparseWriter, feed};
use crate::layout::CacheLayout;
use crate::managed::job::Job;
use crate::managed::spec::ManagedArtifactSpec;

/// Most bytes of a sidecar, which holds an address and an ETag.
const MAX_SIDECAR_BYTES: u64 = 64 * 1024;

/// An incomplete download: bytes on disk, and their digest so far.
pub(super) struct Partial {
    file: SparseWriter,
    writeback: Writeback,
    path: PathBuf,
    sidecar_path: PathBuf,
    blob: PathBuf,
    expected: Digest,
    hasher: Hasher,
    resumed: bool,
    origin: Option<Origin>,
    is_pinned: bool,
    lock: Lock,
}

/// Origin of the first bytes of a partial. Nothing depends on its being true: the digest decides in
/// the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) url: String,
    pub(super) etag: Option<String>,
    pub(super) total_bytes: Option<u64>,
}

impl Partial {
    /// Opens a partial, and hashes the bytes present. Bytes that went bad on disk are found at the
    /// end, but if all are present they are found now. A partial that is too long is discarded.
    pub(super) fn open(
        job: &Job,
        cache: &CacheLayout,
        artifact: &ManagedArtifactSpec,
    ) -> Result<Self, FileError> {
        let (algorithm, hex) = (artifact.digest.algorithm(), artifact.digest.hex());
        let path = cache.partial(algorithm, hex);
        // Taken besides the download's own lock: that one may have been removed with the cache, and
        // then a castra that holds a new one must not write into these bytes.
        let what = format!("another castra downloading {}", artifact.source);
        let lock = job.lock_own(&path, &what)?;
        let file = lock.file().try_clone().at("open", &path)?;
        if file.metadata().at("look at", &path)?.len() > 0 {
            job.step(artifact.role, "verifying what an earlier download left");
        }
        let mut hasher = Hasher::like(&artifact.digest);
        let length = feed(&mut hasher, &file, &job.context.cancel).at("read", &path)?;
        let sidecar_path = cache.partial_sidecar(algorithm, hex);
        let origin = read_origin(&sidecar_path)?;
        let (blob, expected) = (cache.blob(algorithm, hex), artifact.digest.clone());
        let (file, writeback, resumed) =
            (SparseWriter::new(file, length), Writeback::default(), length > 0);
        let mut partial = Self {
            file,
            writeback,
            path,
            sidecar_path,
            blob,
            expected,
            hasher,
            resumed,
            origin,
            is_pinned: true,
            lock,
        };
        let too_long = artifact.size_bytes.is_some_and(|size| length > size);
        let whole_but_wrong = artifact.size_bytes == Some(length) && !partial.is_right();
        if too_long || whole_but_wrong {
            job.note(&format!(
                "{} does not match the expected file; discarded",
                partial.path.display()
            ));
            partial.discard()?;
        }
        failpoint::reach(Point::PartialOpened);
        Ok(partial)
    }

    /// Opens a partial for bytes that nothing pins yet; `artifact` has a stand-in for their digest.
    /// The bytes of an earlier attempt are discarded, since nothing would show that both halves
    /// belong together.
    pub(super) fn open_unpinned(
        job: &Job,
        cache: &CacheLayout,
        artifact: &ManagedArtifactSpec,
    ) -> Result<Self, FileError> {
        let mut partial = Self::open(job, cache, artifact)?;
        partial.discard()?;
        partial.is_pinned = false;
        Ok(partial)
    }

    /// Returns `true` if the expected digest is known.
    pub(super) fn is_pinned(&self) -> bool {
        self.is_pinned
    }

    /// Accepts the bytes present as the right ones, and returns their digest.
    pub(super) fn pin(&mut self) -> Digest {
        self.expected = self.digest();
        self.blob = self.path.with_file_name(self.expected.hex());
        self.is_pinned = true;
        self.expected.clone()
    }

    /// Returns the partial's directory.
    pub(super) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    pub(super) fn length(&self) -> u64 {
        self.file.position()
    }

    /// Returns the digest of the bytes so far.
    pub(super) fn digest(&self) -> Digest {
        self.hasher.so_far()
    }

    /// Returns `true` if these are all of the pinned bytes.
    pub(super) fn is_right(&self) -> bool {
        self.length() > 0 && self.digest() == self.expected
    }

    /// Returns `true` if the bytes arrived by more than one request.
    pub(super) fn was_resumed(&self) -> bool {
        self.resumed
    }

    /// Returns what is known about the bytes' origin, if they came from this address.
    pub(super) fn origin(&self, url: &str) -> Option<&Origin> {
        self.origin.as_ref().filter(|origin| origin.url == url && self.length() > 0)
    }

    /// Returns `true` if this address has identified the version of its file by a strong ETag.
    pub(super) fn has_strong_etag(&self, url: &str) -> bool {
        self.origin(url).and_then(|origin| origin.etag.as_ref()).is_some_and(|etag| is_strong(etag))
    }

    /// Discards all bytes, and records the origin of those to come.
    pub(super) fn restart(&mut self, origin: Origin) -> Result<(), FileError> {
        self.discard()?;
        let text = serde_json::to_vec(&origin).unwrap_or_default();
        // A truncated sidecar is ignored, and nothing depends on it.
        let mut sidecar = files::open_or_create(&self.sidecar_path)?;
        sidecar.write_all(&text).at("write", &self.sidecar_path)?;
        self.origin = Some(origin);
        failpoint::reach(Point::OriginNoted);
        Ok(())
    }

    /// Continues after the bytes present.
    pub(super) fn resume(&mut self) {
        self.resumed = true;
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).at("write", &self.path)?;
        self.writeback.grown(self.file.file(), self.length()).at("write to disk", &self.path)?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Returns the first 64 bytes, to recognise a web page.
    pub(super) fn first_bytes(&self) -> Result<Vec<u8>, FileError> {
        let mut start = vec![0; 64];
        let count = self.file.file().read_at(&mut start, 0).at("read", &self.path)?;
        start.truncate(count);
        Ok(start)
    }

    /// Discards all bytes.
    pub(super) fn discard(&mut self) -> Result<(), FileError> {
        self.writeback.restart().at("write to disk", &self.path)?;
        self.file.restart().at("shorten", &self.path)?;
        files::remove_file(&self.sidecar_path)?;
        self.hasher = Hasher::like(&self.expected);
        self.resumed = false;
        self.origin = None;
        Ok(())
    }

    /// Cleans up after a failure: keeps bytes that can be resumed, or else removes the files.
    pub(super) fn clean_up(mut self) -> Result<(), FileError> {
        self.writeback.settle().at("write to disk", &self.path)?;
        if self.length() > 0 {
            return self.file.settle().at("lengthen", &self.path);
        }
        files::remove_file(&self.sidecar_path)?;
        files::remove_file(&self.path)
    }

    /// Publishes the complete bytes as the blob. The sidecar goes first, since nothing looks for
    /// leftovers once the blob exists.
    pub(super) fn publish(mut self) -> Result<PathBuf, FileError> {
        failpoint::reach(Point::BodyVerified);
        self.writeback.settle().at("write to disk", &self.path)?;
        self.file.settle().at("lengthen", &self.path)?;
        files::remove_file(&self.sidecar_path)?;
        failpoint::reach(Point::SidecarRemoved);
        files::publish_locked(&self.lock, &self.path, &self.blob)?;
        failpoint::reach(Point::BlobPublished);
        Ok(self.blob)
    }
}

/// Reads a sidecar. A missing or invalid one is ignored, since nothing depends on it.
fn read_origin(path: &Path) -> Result<Option<Origin>, FileError> {
    let Some(file) = files::open_if_there(path)? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    file.take(MAX_SIDECAR_BYTES).read_to_end(&mut text).at("read", path)?;
    Ok(serde_json::from_slice(&text).ok())
}
