//! State roots (`.castra/`): one is used only if this user's castra made it.
//!
//! A configuration names a [`StateRoot`]. Its contents may have come with a repository, an archive,
//! or from another user, so nothing in it is used before [`StateRoot::open`] has verified
//!
//! - that the state root and its directories belong to this user and no other user can write to
//!   them,
//! - that git tracks nothing in it, since tracked files change with every pull,
//! - and its mark: a random ID, signed with a key of the user's that is kept outside all projects
//!   (`key`, `mark`).
//!
//! Only then is there a [`ProjectLayout`], which everything that reads and writes state requires.
//! The mark does not contain the path of the state root, which may be moved and copied on this
//! machine. A state root from elsewhere is adopted by `castra adopt` at the user's request.

mod adopt;
mod error;
mod evidence;
mod git_index;
mod key;
mod mark;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::context::RuntimeContext;
use crate::files::{self, create_private_directory};
use crate::layout::{CacheLayout, LINKED_FROM, ProjectLayout, STATE_DIRECTORY};
use crate::trusted::{self, Distrust};

pub use adopt::{Adoption, VmFound};
pub use error::StateRootError;
pub(crate) use evidence::noted_root;

use key::Key;
use mark::Found;

/// Location of a project's state, as a configuration names it; its contents are unverified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRoot {
    layout: ProjectLayout,
}

impl StateRoot {
    /// Returns the state root of a project at this absolute path.
    pub fn new(path: PathBuf) -> Self {
        Self { layout: ProjectLayout::unchecked(path) }
    }

    /// Returns the default state root of a project in this directory.
    pub fn of_project(directory: &Path) -> Self {
        Self::new(directory.join(STATE_DIRECTORY))
    }

    /// Returns the state root of throw-away VMs, in the user's own cache or in a directory that was
    /// just created: no repository can put anything there, so owner and mode suffice.
    pub fn of_runs(cache: &CacheLayout) -> Self {
        Self { layout: cache.runs() }
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        self.layout.state_root()
    }

    /// Returns the paths of everything in it, to name them but not to use them.
    pub fn names(&self) -> &ProjectLayout {
        &self.layout
    }

    /// Checks the state root and returns the layout of its contents. Changes nothing, except that a
    /// state root of an earlier castra of this user's gets its mark, and that its logs are kept
    /// within bounds as long as the context exists. There may be no state root yet; the first
    /// operation that changes a VM creates it.
    ///
    /// # Errors
    /// [`StateRootError`].
    pub fn open(&self, context: &RuntimeContext) -> Result<ProjectLayout, StateRootError> {
        self.check(context)?;
        context.log_watch.watch(&self.layout.logs());
        Ok(self.layout.clone())
    }

    fn check(&self, context: &RuntimeContext) -> Result<(), StateRootError> {
        let (layout, root) = (&self.layout, self.path());
        if !self.check_kind()? || !layout.needs_mark() {
            return Ok(());
        }
        self.check_untracked()?;
        let look = || mark::read(&layout.mark(), || Key::load(context));
        let mut found = look()?;
        if found == Found::None {
            if is_as_good_as_empty(root)? {
                return Ok(());
            }
            // Another castra may just have created it.
            found = look()?;
        }
        match found {
            Found::Own => {}
            Found::None if evidence::is_of_earlier_castra(layout, context) => {
                // If the mark cannot be written, the evidence is examined again next time.
                if Key::load_or_create(context)
                    .is_ok_and(|key| mark::write(&layout.mark(), &key).is_ok())
                {
                    write_git_ignore(layout);
                }
            }
            Found::None | Found::Foreign => {
                return Err(StateRootError::Foreign { root: root.to_owned() });
            }
        }
        self.check_links()
    }

    /// Checks that no directory has been replaced by a link: castra would write and remove files
    /// elsewhere. A link in place of a file is replaced, or refused when the file is opened.
    fn check_links(&self) -> Result<(), StateRootError> {
        let layout = &self.layout;
        let (images, templates, cache) = (layout.images(), layout.templates(), layout.own_cache());
        let mut open = vec![self.path().to_owned()];
        let own =
            [layout.vms(), images.root().into(), templates.root().into(), cache.root().into()];
        while let Some(directory) = open.pop() {
            for entry in files::readable_entries(&directory) {
                let path = entry.path();
                // Next to castra's own entries, a user may keep others, which castra does not write
                // to.
                let is_own = directory != self.path() || own.contains(&path);
                match entry.file_type() {
                    Ok(kind) if is_own && kind.is_dir() => open.push(path),
                    Ok(kind) if is_own && kind.is_symlink() && path.is_dir() => {
                        let source = Distrust::LINKED_DIRECTORY.into();
                        return Err(StateRootError::Refused { path, source });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Checks owner, mode and type of the state root and of the directories that contain everything
    /// else. Returns `false` if there is no state root.
    fn check_kind(&self) -> Result<bool, StateRootError> {
        let layout = &self.layout;
        let check = |path: &Path| {
            trusted::directory(path)
                .map_err(|source| StateRootError::Refused { path: path.to_owned(), source })
        };
        if !check_root(self.path())? {
            return Ok(false);
        }
        let (images, templates) = (layout.images(), layout.templates());
        for path in
            [&layout.vms(), &layout.logs(), &layout.quarantine(), images.root(), templates.root()]
        {
            check(path)?;
        }
        Ok(true)
    }

    fn check_untracked(&self) -> Result<(), StateRootError> {
        // Git knows paths without links, and tracks links themselves.
        let real = |path: &Path| {
            fs::canonicalize(path).map_err(|source| StateRootError::Io {
                action: "find",
                path: path.to_owned(),
                source,
            })
        };
        let target = real(self.path())?;
        let (above, name) = (self.path().parent(), self.path().file_name());
        let link = above
            .zip(name)
            .map(|(above, name)| real(above).map(|above| above.join(name)))
            .transpose()?;
        let link = link.filter(|link| *link != target);
        let tracked = git_index::tracked_below(&target);
        let tracked = tracked.or_else(|| git_index::tracked_below(&link?));
        tracked.map_or(Ok(()), |tracked| {
            let (tree, file) = (tracked.tree, tracked.file);
            Err(StateRootError::Tracked { root: self.path().to_owned(), tree, file })
        })
    }
}

/// Checks the state root itself, which may be a link of this user's: `config` has checked its
/// target.
fn check_root(root: &Path) -> Result<bool, StateRootError> {
    let refused = |source| StateRootError::Refused { path: root.to_owned(), source };
    match fs::symlink_metadata(root) {
        Ok(link) if link.is_symlink() && trusted::is_own(&link) => {
            let target = fs::metadata(root).map_err(refused)?;
            trusted::check_directory(&target)
                .map(|()| true)
                .map_err(|distrust| refused(distrust.into()))
        }
        _ => trusted::directory(root).map_err(refused),
    }
}

/// Creates a state root and marks it, if there is none or it is still empty. For operations that
/// are about to put something there and have opened it.
///
/// # Errors
/// [`StateRootError`].
pub(crate) fn make(layout: &ProjectLayout, context: &RuntimeContext) -> Result<(), StateRootError> {
    let (root, mark) = (layout.state_root(), layout.mark());
    if !layout.needs_mark() {
        files::tag_as_cache(&context.cache.tag());
        return create(root);
    }
    // An existing mark was verified when the state root was opened.
    if fs::symlink_metadata(&mark).is_err() {
        let key = Key::load_or_create(context)?;
        create(root)?;
        if !is_as_good_as_empty(root)? && fs::symlink_metadata(&mark).is_err() {
            return Err(StateRootError::Foreign { root: root.to_owned() });
        }
        write_git_ignore(layout);
        // If several castras create it at once, the last one wins, and all their marks are valid.
        if let Err(source) = mark::write(&mark, &key)
            && fs::symlink_metadata(&mark).is_err()
        {
            return Err(StateRootError::Io { action: "create", path: mark, source });
        }
    }
    // Only marks are written under such names here, and there is one.
    let _ = files::remove_leftovers(root);
    if fs::symlink_metadata(layout.git_ignore()).is_err() {
        write_git_ignore(layout);
    }
    Ok(())
}

/// Creates the directory, which is still empty.
pub(crate) fn create(root: &Path) -> Result<(), StateRootError> {
    create_private_directory(root).map_err(|source| StateRootError::Io {
        action: "create",
        path: root.to_owned(),
        source,
    })
}

/// Writes a `.gitignore`, which keeps `git add -A` from publishing disks and private keys.
/// Everything works without it.
fn write_git_ignore(layout: &ProjectLayout) {
    let _ = files::write_atomically(
        &layout.git_ignore(),
        b"# Made by castra: disks and private keys.\n*\n",
        0o600,
    );
}

/// Returns `true` if a state root holds nothing except files that castra writes before the mark, or
/// leaves when it removes the last VM: none of them is relied on.
fn is_as_good_as_empty(root: &Path) -> Result<bool, StateRootError> {
    let failed =
        |source: io::Error| StateRootError::Io { action: "read", path: root.to_owned(), source };
    let layout = ProjectLayout::unchecked(root.to_owned());
    for entry in fs::read_dir(root).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let is_known = path == layout.project_lock()
            || path == layout.git_ignore()
            || path == root.join(LINKED_FROM)
            || name.starts_with(files::TEMPORARY.as_bytes());
        // Another castra may be at work here, and temporary files are renamed.
        let is_refused = trusted::open(&path).is_err_and(|error| !trusted::is_absence(&error));
        if !is_known || is_refused {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cancel::Cancel;
    use crate::context::Environment;
    use crate::report::Silent;

    #[test]
    fn only_what_a_castra_puts_before_its_mark_is_as_good_as_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = directory.path().join("home");
        let environment = Environment::of([("XDG_CACHE_HOME", &home), ("XDG_STATE_HOME", &home)]);
        let context =
            RuntimeContext::new(environment, Arc::new(Silent), Cancel::new()).expect("a home");
        let root = directory.path().join(STATE_DIRECTORY);
        fs::create_dir(&root).expect("made");
        for name in ["lock", ".gitignore", LINKED_FROM, ".castra-x1"] {
            fs::write(root.join(name), "").expect("written");
            assert!(is_as_good_as_empty(&root).expect("looked at"), "{name}");
        }
        let layout = ProjectLayout::unchecked(root.clone());
        // Entries that appeared since it was opened are not marked.
        for name in ["vms", "web-overlay.qcow2", ".hidden"] {
            fs::write(root.join(name), "").expect("written");
            assert!(!is_as_good_as_empty(&root).expect("looked at"), "{name}");
            let refused = make(&layout, &context);
            assert!(matches!(refused, Err(StateRootError::Foreign { .. })), "{name}: {refused:?}");
            fs::remove_file(root.join(name)).expect("removed");
        }
        fs::remove_file(root.join("lock")).expect("removed");
        std::os::unix::fs::symlink(directory.path().join("elsewhere"), root.join("lock"))
            .expect("linked");
        assert!(!is_as_good_as_empty(&root).expect("looked at"), "a link");
        fs::remove_file(root.join("lock")).expect("removed");
        make(&layout, &context).expect("made");
        assert!(layout.mark().is_file() && layout.git_ignore().is_file());
    }
}
