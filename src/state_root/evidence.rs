//! State roots of earlier castras, which made no marks.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::context::RuntimeContext;
use crate::layout::ProjectLayout;
use crate::trusted;

/// Longest path there can be, as `PATH_MAX` of the kernel's `limits.h`.
const MAX_NOTE_BYTES: u64 = 4096;
/// Time by which a state root may be younger than its note: an earlier `up` wrote the note first.
const SLACK: Duration = Duration::from_secs(10);

/// Returns `true` for a state root that was there when this user's castra noted it in the cache: a repository can neither
/// write to the cache nor choose when its files are made.
pub(super) fn is_of_earlier_castra(layout: &ProjectLayout, context: &RuntimeContext) -> bool {
    let (root, note) = (layout.state_root(), context.cache.known_project(layout));
    let is_noted = noted_root(&note).is_some_and(|known| known == root);
    let noted = fs::symlink_metadata(&note).and_then(|metadata| metadata.modified()).ok();
    is_noted && noted.zip(made(root)).is_some_and(|(noted, made)| made <= noted + SLACK)
}

/// Returns the state root that a note in the cache names; nothing for a file that is none of this user's notes.
pub(crate) fn noted_root(note: &Path) -> Option<PathBuf> {
    let root = PathBuf::from(OsString::from_vec(trusted::read(note, MAX_NOTE_BYTES).ok()?));
    root.is_absolute().then_some(root)
}

/// When a directory was made; where the filesystem does not tell, nothing.
fn made(directory: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(directory).ok()?.created().ok()
}
