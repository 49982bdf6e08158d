//! Recognises state roots of earlier castras, which made no marks.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::context::RuntimeContext;
use crate::layout::ProjectLayout;
use crate::trusted;

/// Longest path that is read from a note, in bytes: `PATH_MAX` of the kernel's `limits.h`.
const MAX_NOTE_BYTES: u64 = 4096;
/// Time by which a state root may be younger than its note: an earlier `up` wrote the note first.
const SLACK: Duration = Duration::from_secs(10);

/// Returns `true` for a state root that existed when this user's castra noted it in the cache: a
/// repository can neither write to the cache nor choose when its files are made.
pub(super) fn is_of_earlier_castra(layout: &ProjectLayout, context: &RuntimeContext) -> bool {
    let (root, note) = (layout.state_root(), context.cache.known_project(layout));
    let is_noted = noted_root(&note).is_some_and(|known| known == root);
    let noted = fs::symlink_metadata(&note).and_then(|metadata| metadata.modified()).ok();
    is_noted && noted.zip(made(root)).is_some_and(|(noted, made)| made <= noted + SLACK)
}

/// Returns the state root that a note in the cache names; `None` for a file that is not this user's
/// note.
pub(crate) fn noted_root(note: &Path) -> Option<PathBuf> {
    let root = PathBuf::from(OsString::from_vec(trusted::read(note, MAX_NOTE_BYTES).ok()?));
    root.is_absolute().then_some(root)
}

/// Returns the time at which a directory was created; `None` if the filesystem does not record it.
fn made(directory: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(directory).ok()?.created().ok()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::Arc;

    use super::*;
    use crate::cancel::Cancel;
    use crate::context::Environment;
    use crate::report::Silent;

    #[test]
    fn only_a_note_of_this_users_that_is_older_than_nothing_counts() {
        let home = tempfile::tempdir().expect("a directory");
        let environment =
            Environment::of([("XDG_CACHE_HOME", home.path()), ("XDG_STATE_HOME", home.path())]);
        let context =
            RuntimeContext::new(environment, Arc::new(Silent), Cancel::new()).expect("a home");
        let root = home.path().join("project/.castra");
        fs::create_dir_all(&root).expect("made");
        if made(&root).is_none() {
            return castra_test_support::skip(
                "this filesystem does not record when a directory was made",
            );
        }
        let layout = ProjectLayout::unchecked(root.clone());
        let note = context.cache.known_project(&layout);
        let is_one = || is_of_earlier_castra(&layout, &context);
        assert!(!is_one(), "there is no note");
        fs::create_dir_all(note.parent().expect("a parent")).expect("made");
        fs::write(&note, root.as_os_str().as_encoded_bytes()).expect("written");
        assert!(is_one());

        // A repository that was unpacked at the path of a deleted project.
        let age = |by: Duration| {
            let file = fs::OpenOptions::new().write(true).open(&note).expect("opened");
            file.set_modified(SystemTime::now() - by).expect("set");
        };
        age(SLACK * 2);
        assert!(!is_one(), "the state root is younger");
        age(Duration::ZERO);
        assert!(is_one());
        fs::set_permissions(&note, Permissions::from_mode(0o622)).expect("changed");
        assert!(!is_one(), "others may write to the note");
        fs::set_permissions(&note, Permissions::from_mode(0o600)).expect("changed");
        fs::rename(&note, home.path().join("note")).expect("moved");
        symlink(home.path().join("note"), &note).expect("linked");
        assert!(!is_one(), "the note is a link");
        fs::remove_file(&note).expect("removed");
        for other in ["/elsewhere/.castra", "project/.castra", ""] {
            fs::write(&note, other).expect("written");
            assert!(!is_one(), "{other:?}");
        }
    }
}
