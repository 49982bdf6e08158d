//! State roots (`.castra/`): one is used only if this user's castra made it.
//!
//! A configuration names a [`StateRoot`]. What lies there may have come with a repository, an archive, or from another user, so
//! nothing in it is looked at before [`StateRoot::open`] has found
//!
//! - that it and the directories in it belong to this user and no other user can write to them,
//! - that git tracks nothing of it, since what git tracks changes with every pull,
//! - and its mark: a random id, signed by a key of the user's that is kept outside of all projects (`key`, `mark`).
//!
//! Only then there is a [`ProjectLayout`], which all that reads and writes state takes. The mark says nothing of where the
//! state root is: it may be moved and copied on this machine. One from elsewhere is taken over by `castra adopt` when the user says
//! so.

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

/// Place of a project's state, as a configuration names it; its content is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRoot {
    layout: ProjectLayout,
}

impl StateRoot {
    /// The state root of a project (absolute).
    pub fn new(path: PathBuf) -> Self {
        Self { layout: ProjectLayout::unchecked(path) }
    }

    /// That of a project in this directory which says nothing else.
    pub fn of_project(directory: &Path) -> Self {
        Self::new(directory.join(STATE_DIRECTORY))
    }

    /// That of VMs that are thrown away, in the user's own cache or in a directory that was just made: no repository puts
    /// anything there, so owner and mode are enough.
    pub fn of_runs(cache: &CacheLayout) -> Self {
        Self { layout: cache.runs() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.layout.state_root()
    }

    /// Where things would be in it: for names, not for use.
    pub fn names(&self) -> &ProjectLayout {
        &self.layout
    }

    /// Checks the state root and returns the way to what is in it. Changes nothing, but that a state root which an earlier castra
    /// of this user's made gets its mark, and that the logs in it are bounded, as long as the context lasts. There may be none yet;
    /// the first operation that changes a VM makes it.
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
            // Another castra may just have made it.
            found = look()?;
        }
        match found {
            Found::Own => {}
            Found::None if evidence::is_of_earlier_castra(layout, context) => {
                // Where it cannot be written to, it is looked at again.
                if Key::load_or_create(context).is_ok_and(|key| mark::write(&layout.mark(), &key).is_ok()) {
                    write_git_ignore(layout);
                }
            }
            Found::None | Found::Foreign => return Err(StateRootError::Foreign { root: root.to_owned() }),
        }
        self.check_links()
    }

    /// Checks that no link stands in the place of a directory: what castra writes and removes below it would be elsewhere. One in
    /// the place of a file is replaced, or refused where it is opened.
    fn check_links(&self) -> Result<(), StateRootError> {
        let layout = &self.layout;
        let (images, templates, cache) = (layout.images(), layout.templates(), layout.own_cache());
        let mut open = vec![self.path().to_owned()];
        let own = [layout.vms(), images.root().into(), templates.root().into(), cache.root().into()];
        while let Some(directory) = open.pop() {
            for entry in files::readable_entries(&directory) {
                let path = entry.path();
                // Beside them, a user may have what castra does not write to.
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

    /// Checks owner, mode and kind of the state root and of the directories that everything else is in. Returns `false` where there
    /// is no state root.
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
        for path in [&layout.vms(), &layout.logs(), &layout.quarantine(), images.root(), templates.root()] {
            check(path)?;
        }
        Ok(true)
    }

    fn check_untracked(&self) -> Result<(), StateRootError> {
        // Git knows paths without links, and links by themselves.
        let real = |path: &Path| {
            fs::canonicalize(path).map_err(|source| StateRootError::Io {
                action: "find",
                path: path.to_owned(),
                source,
            })
        };
        let target = real(self.path())?;
        let (above, name) = (self.path().parent(), self.path().file_name());
        let link =
            above.zip(name).map(|(above, name)| real(above).map(|above| above.join(name))).transpose()?;
        let link = link.filter(|link| *link != target);
        let tracked = git_index::tracked_below(&target);
        let tracked = tracked.or_else(|| git_index::tracked_below(&link?));
        tracked.map_or(Ok(()), |tracked| {
            let (tree, file) = (tracked.tree, tracked.file);
            Err(StateRootError::Tracked { root: self.path().to_owned(), tree, file })
        })
    }
}

/// Checks the state root itself, which may be a link of this user's: `config` knows where that may lead.
fn check_root(root: &Path) -> Result<bool, StateRootError> {
    let refused = |source| StateRootError::Refused { path: root.to_owned(), source };
    match fs::symlink_metadata(root) {
        Ok(link) if link.is_symlink() && trusted::is_own(&link) => {
            let target = fs::metadata(root).map_err(refused)?;
            trusted::check_directory(&target).map(|()| true).map_err(|distrust| refused(distrust.into()))
        }
        _ => trusted::directory(root).map_err(refused),
    }
}

/// Makes a state root and marks it, if there is none or nothing in it yet. For operations that are about to put something
/// there, and have it open.
///
/// # Errors
/// [`StateRootError`].
pub(crate) fn make(layout: &ProjectLayout, context: &RuntimeContext) -> Result<(), StateRootError> {
    let (root, mark) = (layout.state_root(), layout.mark());
    if !layout.needs_mark() {
        files::tag_as_cache(&context.cache.tag());
        return create(root);
    }
    // It was verified when the state root was opened.
    if fs::symlink_metadata(&mark).is_err() {
        let key = Key::load_or_create(context)?;
        create(root)?;
        if !is_as_good_as_empty(root)? && fs::symlink_metadata(&mark).is_err() {
            return Err(StateRootError::Foreign { root: root.to_owned() });
        }
        write_git_ignore(layout);
        // Of several castras that make it at once, one is the last, and all its marks are good.
        if let Err(source) = mark::write(&mark, &key)
            && fs::symlink_metadata(&mark).is_err()
        {
            return Err(StateRootError::Io { action: "create", path: mark, source });
        }
    }
    // Nothing but marks is written under such names here, and there is one.
    let _ = files::remove_leftovers(root);
    if fs::symlink_metadata(layout.git_ignore()).is_err() {
        write_git_ignore(layout);
    }
    Ok(())
}

/// Makes the directory, in which there is nothing yet.
pub(crate) fn create(root: &Path) -> Result<(), StateRootError> {
    create_private_directory(root).map_err(|source| StateRootError::Io {
        action: "create",
        path: root.to_owned(),
        source,
    })
}

/// Keeps `git add -A` from publishing disks and private keys. Without it everything works all the same.
fn write_git_ignore(layout: &ProjectLayout) {
    let _ = files::write_atomically(
        &layout.git_ignore(),
        b"# Made by castra: disks and private keys.\n*\n",
        0o600,
    );
}

/// Returns `true` where nothing is in a state root but what a castra puts there before the mark, or leaves when it removes the
/// last: none of it is believed.
fn is_as_good_as_empty(root: &Path) -> Result<bool, StateRootError> {
    let failed = |source: io::Error| StateRootError::Io { action: "read", path: root.to_owned(), source };
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
        let context = RuntimeContext::new(environment, Arc::new(Silent), Cancel::new()).expect("a home");
        let root = directory.path().join(STATE_DIRECTORY);
        fs::create_dir(&root).expect("made");
        for name in ["lock", ".gitignore", LINKED_FROM, ".castra-x1"] {
            fs::write(root.join(name), "").expect("written");
            assert!(is_as_good_as_empty(&root).expect("looked at"), "{name}");
        }
        let layout = ProjectLayout::unchecked(root.clone());
        // What appeared since it was opened is not marked.
        for name in ["vms", "web-overlay.qcow2", ".hidden"] {
            fs::write(root.join(name), "").expect("written");
            assert!(!is_as_good_as_empty(&root).expect("looked at"), "{name}");
            let refused = make(&layout, &context);
            assert!(matches!(refused, Err(StateRootError::Foreign { .. })), "{name}: {refused:?}");
            fs::remove_file(root.join(name)).expect("removed");
        }
        fs::remove_file(root.join("lock")).expect("removed");
        std::os::unix::fs::symlink(directory.path().join("elsewhere"), root.join("lock")).expect("linked");
        assert!(!is_as_good_as_empty(&root).expect("looked at"), "a link");
        fs::remove_file(root.join("lock")).expect("removed");
        make(&layout, &context).expect("made");
        assert!(layout.mark().is_file() && layout.git_ignore().is_file());
    }
}
