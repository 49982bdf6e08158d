//! State roots of earlier castras, which made no marks.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::context::RuntimeContext;
use crate::layout::ProjectLayout;
use crate::trusted;

use std::os::unix::ffi::OsStrExt as _;

/// Longest path there can be, as `PATH_MAX` of the kernel's `limits.h`.
const MAX_NOTE_BYTES: u64 = 4096;
/// How much later a state root may be made than its note: an earlier `up` wrote the note first.
const SLACK: Duration = Duration::from_secs(10);

/// Returns `true` for a state root that was there when this user's castra noted it in the cache: a repository can neither
/// write to the cache nor choose when its files are made.
pub(super) fn is_of_earlier_castra(layout: &ProjectLayout, context: &RuntimeContext) -> bool {
    let (root, note) = (layout.state_root(), context.cache.known_project(layout));
    let is_noted =
        trusted::read(&note, MAX_NOTE_BYTES).is_ok_and(|known| known == root.as_os_str().as_bytes());
    let noted = fs::symlink_metadata(&note).and_then(|metadata| metadata.modified()).ok();
    is_noted && noted.zip(made(root)).is_some_and(|(noted, made)| made <= noted + SLACK)
}

/// When a directory was made; where the filesystem does not tell, nothing.
fn made(directory: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(directory).ok()?.created().ok()
}
