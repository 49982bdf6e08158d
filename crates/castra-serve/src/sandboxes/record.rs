//! Records of sandboxes and snapshots: one file each, replaced as a whole.
//!
//! ```text
//! <state>/lock                    held while a server runs
//! <state>/token
//! <state>/sandboxes/<id>.json
//! <state>/snapshots/<id>.json
//! <state>/.castra/                the VMs
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    /// Template or snapshot that it was made from.
    pub(crate) template: String,
    pub(crate) shape: Shape,
    pub(crate) metadata: BTreeMap<String, String>,
    /// Variables of all its processes.
    pub(crate) environment: BTreeMap<String, String>,
    /// Token of requests for it; `None` if it was made without.
    pub(crate) access_token: Option<String>,
    pub(crate) started_unix_ms: i64,
    pub(crate) ends_unix_ms: i64,
    /// Time that its maker gave it.
    pub(crate) timeout_ms: i64,
    pub(crate) on_timeout: OnTimeout,
    /// A request for it resumes it.
    pub(crate) auto_resume: bool,
    /// Kind of its pause, if it is paused.
    pub(crate) paused: Option<Paused>,
}

/// A snapshot: a sandbox that is never started, but cloned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) id: String,
    pub(crate) names: Vec<String>,
    /// Sandbox that it was made of.
    pub(crate) source: String,
    pub(crate) template: String,
    pub(crate) shape: Shape,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) made_unix_ms: i64,
}

/// Machine of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    /// Image, instead of the default one.
    pub(crate) image: Option<String>,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) disk_mib: u64,
    /// True if it reaches nothing over the network.
    pub(crate) is_isolated: bool,
}

/// Fate of a sandbox whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnTimeout {
    Kill,
    Pause,
    /// A pause without its memory.
    Stop,
}

/// Kind of a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Paused {
    WithMemory,
    DiskOnly,
}

/// Record with a name.
pub(crate) trait Named: Serialize + DeserializeOwned {
    /// Directory of all records of this kind.
    const DIRECTORY: &'static str;

    fn id(&self) -> &str;
}

impl Named for SandboxRecord {
    const DIRECTORY: &'static str = "sandboxes";

    fn id(&self) -> &str {
        &self.id
    }
}

impl Named for SnapshotRecord {
    const DIRECTORY: &'static str = "snapshots";

    fn id(&self) -> &str {
        &self.id
    }
}

/// All records of one kind.
pub(crate) struct Records<R> {
    directory: PathBuf,
    kind: PhantomData<fn(R)>,
}

impl<R: Named> Records<R> {
    /// Returns the records below a directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let directory = root.join(R::DIRECTORY);
        fs::create_dir_all(&directory)?;
        Ok(Self { directory, kind: PhantomData })
    }

    /// Loads all records that can be read.
    pub(crate) fn load(&self) -> Vec<R> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let read = |path: PathBuf| {
            let record: R = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
            // Its name decides which VM is removed with it.
            (path.file_stem()?.to_str()? == record.id()).then_some(record)
        };
        entries.filter_map(|entry| read(entry.path())).collect()
    }

    /// Writes a record, in place of an earlier one.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn save(&self, record: &R) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.as_file().sync_all()?;
        file.persist(self.path(record.id())).map_err(|error| error.error)?;
        fs::File::open(&self.directory)?.sync_all()
    }

    /// Removes a record, if it is there.
    pub(crate) fn remove(&self, id: &str) {
        let _ = fs::remove_file(self.path(id));
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}
