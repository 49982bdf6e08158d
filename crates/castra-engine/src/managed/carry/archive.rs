//! Archive in which an image travels to a machine without a network: a tar file of the image's
//! downloads.
//!
//! ```text
//! castra-image.json    image, and name, digest and size of each further member; always the first
//! blob-0, blob-1, …    the downloads themselves
//! ```
//!
//! An archive is untrusted input, so nothing in it decides where anything is written: members are
//! known by the names above and by nothing else, and each becomes a file named by its actual
//! digest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{At, Digest};
use crate::managed::build::transform::MAX_FILE_BYTES;
use crate::managed::check;
use crate::managed::error::ImageError;
use crate::managed::fetch::blob::{self, Refusal};
use crate::managed::job::Job;
use crate::report::ImageLabel;

/// Name of the first member.
pub(super) const DESCRIPTION: &str = "castra-image.json";
/// Version of the format. A larger one comes from a newer Castra.
pub(super) const FORMAT: u32 = 1;
/// Most bytes of a description, which usually takes a kilobyte.
const MAX_DESCRIPTION_BYTES: u64 = 1024 * 1024;
/// Most members: an image has three files, each made from at most one download.
const MAX_MEMBERS: usize = 16;

/// Contents of `castra-image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) format: u32,
    /// Image that was exported.
    pub(super) image: ImageLabel,
    /// Version of the Castra that wrote the archive.
    pub(super) castra_version: String,
    pub(super) blobs: Vec<Member>,
}

/// One download in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    /// Name in the archive: `blob-` and a number.
    pub(super) name: String,
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    /// Source of the download, for people.
    pub(super) source: String,
}

/// A file that was recognised as an archive.
pub(super) struct Archive {
    path: PathBuf,
    file: File,
}

impl Archive {
    /// Returns the archive in `file`, or `None` if it is something else.
    pub(super) fn recognise(path: &Path, file: File) -> Result<Option<Self>, ImageError> {
        /// Place of the magic number in a POSIX.1-1988 header.
        const MAGIC: std::ops::Range<usize> = 257..262;
        let mut header = [0; 512];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read.at("read", path)?,
        }
        let is_first = header.starts_with(DESCRIPTION.as_bytes()) && header[DESCRIPTION.len()] == 0;
        let is_one = is_first && &header[MAGIC] == b"ustar";
        Ok(is_one.then(|| Self { path: path.to_owned(), file }))
    }

    /// Turns each member into a blob, and returns digests and sizes.
    pub(super) fn unpack(mut self, job: &Job) -> Result<Vec<(Digest, u64)>, ImageError> {
        self.file.rewind().at("read", &self.path)?;
        let mut archive = tar::Archive::new(&self.file);
        // Raw: extensions of the format, which could rename the members that follow them, count as
        // unknown members and are refused.
        let mut entries = archive.entries().at("read", &self.path)?.raw(true);
        let first =
            entries.next().ok_or_else(|| self.damaged("it is empty"))?.at("read", &self.path)?;
        let description = self.describe(first)?;
        let mut awaited: BTreeMap<&str, &Member> =
            description.blobs.iter().map(|member| (member.name.as_str(), member)).collect();
        job.note(&format!("{} holds {}", self.path.display(), description.image));
        for entry in entries {
            let entry = entry.map_err(|error| self.damaged(&error.to_string()))?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let is_file = entry.header().entry_type() == tar::EntryType::Regular;
            let member = awaited.remove(name.as_str()).filter(|_| is_file);
            let Some(member) = member else {
                let problem = format!("unexpected member `{}`", name.escape_debug());
                return Err(self.damaged(&problem));
            };
            if entry.size() != member.size_bytes {
                return Err(self.damaged(&format!("`{name}` does not have its declared size")));
            }
            let put =
                blob::into_cache(job, &member.digest, member.size_bytes, || Ok(Box::new(entry)));
            put.map_err(|refusal| match refusal {
                Refusal::Bytes(problem) => self.damaged(&format!("`{name}` {problem}")),
                Refusal::Other(error) => error,
            })?;
        }
        match awaited.keys().next() {
            Some(name) => Err(self.damaged(&format!("`{name}` is missing"))),
            None => Ok(description
                .blobs
                .iter()
                .map(|one| (one.digest.clone(), one.size_bytes))
                .collect()),
        }
    }

    fn describe(&self, entry: impl Read) -> Result<Description, ImageError> {
        let mut text = Vec::new();
        entry.take(MAX_DESCRIPTION_BYTES).read_to_end(&mut text).at("read", &self.path)?;
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let format = serde_json::from_slice(&text).map(|Format { format }| format);
        if let Ok(newer) = format
            && newer > FORMAT
        {
            return Err(
                self.damaged(&format!("it was written by a newer castra, in format {newer}"))
            );
        }
        let unreadable =
            |error| self.damaged(&format!("its {DESCRIPTION} cannot be read: {error}"));
        let description: Description = serde_json::from_slice(&text).map_err(unreadable)?;
        let is_sound = |(number, member): (usize, &Member)| {
            member.name == member_name(number)
                && check::is_digest(&member.digest)
                && member.size_bytes <= MAX_FILE_BYTES
        };
        let all_sound = description.blobs.iter().enumerate().all(is_sound);
        if !all_sound || description.blobs.len() > MAX_MEMBERS {
            return Err(self.damaged(&format!("its {DESCRIPTION} is invalid")));
        }
        Ok(description)
    }

    fn damaged(&self, problem: &str) -> ImageError {
        ImageError::Archive { path: self.path.clone(), problem: problem.to_owned() }
    }
}

/// Returns the name of the n-th download in an archive, counted from 0.
pub(super) fn member_name(number: usize) -> String {
    format!("blob-{number}")
}
