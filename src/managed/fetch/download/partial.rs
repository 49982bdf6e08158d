//! What an earlier attempt left, and what this one adds.

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

/// An address and an ETag do not take more.
const MAX_SIDECAR_BYTES: u64 = 64 * 1024;

/// A download that is not complete yet: bytes on disk, and their digest so far.
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

/// Where the first bytes of a partial came from. Nothing depends on its being true: the digest decides in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) url: String,
    pub(super) etag: Option<String>,
    pub(super) total_bytes: Option<u64>,
}

impl Partial {
    /// Opens what is there, and hashes it: bytes that went bad on disk are found at the end, but those that are
    /// already all there are found now. What is longer than it should be is discarded.
    pub(super) fn open(
        job: &Job,
        cache: &CacheLayout,
        artifact: &ManagedArtifactSpec,
    ) -> Result<Self, FileError> {
        let (algorithm, hex) = (artifact.digest.algorithm(), artifact.digest.hex());
        let path = cache.partial(algorithm, hex);
        // Besides the download's own lock: that one may have been removed with the cache, and then a castra that holds a new
        // one must not write into these bytes.
        let what = format!("another castra that downloads {}", artifact.source);
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
        let (file, writeback, resumed) = (SparseWriter::new(file, length), Writeback::default(), length > 0);
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
                "{} is not the start of what it should become; discarded",
                partial.path.display()
            ));
            partial.discard()?;
        }
        failpoint::reach(Point::PartialOpened);
        Ok(partial)
    }

    /// Opens one for bytes that nothing pins yet; `artifact` has a stand-in for their digest. What an earlier attempt left
    /// is discarded, for nothing would show that both halves belong together.
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

    /// Whether it is known which bytes these should become.
    pub(super) fn is_pinned(&self) -> bool {
        self.is_pinned
    }

    /// Takes the bytes there are for the right ones, and hands back their digest.
    pub(super) fn pin(&mut self) -> Digest {
        self.expected = self.digest();
        self.blob = self.path.with_file_name(self.expected.hex());
        self.is_pinned = true;
        self.expected.clone()
    }

    /// The directory it is in.
    pub(super) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    pub(super) fn length(&self) -> u64 {
        self.file.position()
    }

    /// The digest of the bytes so far.
    pub(super) fn digest(&self) -> Digest {
        self.hasher.so_far()
    }

    /// Whether these are the pinned bytes, all of them.
    pub(super) fn is_right(&self) -> bool {
        self.length() > 0 && self.digest() == self.expected
    }

    /// Whether the bytes came by more than one request.
    pub(super) fn was_resumed(&self) -> bool {
        self.resumed
    }

    /// What is known about where the bytes came from, if that was this address.
    pub(super) fn origin(&self, url: &str) -> Option<&Origin> {
        self.origin.as_ref().filter(|origin| origin.url == url && self.length() > 0)
    }

    /// Whether this address says which version of its file the bytes are of.
    pub(super) fn has_strong_etag(&self, url: &str) -> bool {
        self.origin(url).and_then(|origin| origin.etag.as_ref()).is_some_and(|etag| is_strong(etag))
    }

    /// Forgets all bytes and starts with those of this origin.
    pub(super) fn restart(&mut self, origin: Origin) -> Result<(), FileError> {
        self.discard()?;
        let text = serde_json::to_vec(&origin).unwrap_or_default();
        // Cut off half-way it says nothing, which is fine: nothing depends on it.
        let mut sidecar = files::open_or_create(&self.sidecar_path)?;
        sidecar.write_all(&text).at("write", &self.sidecar_path)?;
        self.origin = Some(origin);
        failpoint::reach(Point::OriginNoted);
        Ok(())
    }

    /// Goes on behind the bytes there are.
    pub(super) fn resume(&mut self) {
        self.resumed = true;
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).at("write", &self.path)?;
        self.writeback.grown(self.file.file(), self.length()).at("write to disk", &self.path)?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// The start of the bytes, to see what they look like.
    pub(super) fn first_bytes(&self) -> Result<Vec<u8>, FileError> {
        let mut start = vec![0; 64];
        let count = self.file.file().read_at(&mut start, 0).at("read", &self.path)?;
        start.truncate(count);
        Ok(start)
    }

    /// Forgets all bytes.
    pub(super) fn discard(&mut self) -> Result<(), FileError> {
        self.writeback.restart().at("write to disk", &self.path)?;
        self.file.restart().at("shorten", &self.path)?;
        files::remove_file(&self.sidecar_path)?;
        self.hasher = Hasher::like(&self.expected);
        self.resumed = false;
        self.origin = None;
        Ok(())
    }

    /// After a failure: keeps what can be resumed, and leaves nothing behind otherwise.
    pub(super) fn clean_up(mut self) -> Result<(), FileError> {
        self.writeback.settle().at("write to disk", &self.path)?;
        if self.length() > 0 {
            return self.file.settle().at("lengthen", &self.path);
        }
        files::remove_file(&self.sidecar_path)?;
        files::remove_file(&self.path)
    }

    /// Makes the right bytes the blob. The sidecar goes first: who finds the blob looks for nothing else.
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

/// A sidecar that is missing or makes no sense says nothing, and nothing needs it.
fn read_origin(path: &Path) -> Result<Option<Origin>, FileError> {
    let Some(file) = files::open_if_there(path)? else {
        return Ok(None);
    };
    let mut text = Vec::new();
    file.take(MAX_SIDECAR_BYTES).read_to_end(&mut text).at("read", path)?;
    Ok(serde_json::from_slice(&text).ok())
}
