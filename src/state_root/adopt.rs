//! Taking over a state root that this user's castra did not make.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::StateRootError;
use super::key::Key;
use super::mark::{self, Found};
use super::{StateRoot, is_as_good_as_empty, write_git_ignore};
use crate::context::RuntimeContext;
use crate::files::{self, create_private_directory};
use crate::layout::{ProjectLayout, VmLayout};
use crate::qemu::{running_qemu, runs_elsewhere};
use crate::trusted;

/// More entries than a state root has; one with more is not looked at for ever.
const MAX_ENTRIES: usize = 1_000_000;

/// A state root that can be taken over: it was looked at, and nothing was changed yet.
#[derive(Debug)]
pub struct Adoption {
    layout: ProjectLayout,
    /// The VMs that would be used from then on, by name.
    pub vms: Vec<VmFound>,
    /// What all files take, in bytes.
    pub size_bytes: u64,
}

/// A VM in a state root that is not this user's yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFound {
    /// Its name.
    pub name: String,
    /// SSH keys came with it, which their maker knows.
    pub has_keys: bool,
    /// It runs now.
    pub is_running: bool,
    /// It has saved memory, from which it would resume.
    pub is_suspended: bool,
}

impl StateRoot {
    /// Looks at everything in a state root that this user's castra did not make. Nothing if there is none to take over: it is
    /// this user's already, or there is nothing in it.
    ///
    /// # Errors
    /// [`StateRootError`]: what is wrong with it has to be mended first.
    pub fn examine(&self, context: &RuntimeContext) -> Result<Option<Adoption>, StateRootError> {
        if !self.check_kind()? || !self.layout.needs_mark() {
            return Ok(None);
        }
        self.check_untracked()?;
        let is_own = mark::read(&self.layout.mark(), || Key::load(context))? == Found::Own;
        if is_own || is_as_good_as_empty(self.path())? {
            return Ok(None);
        }
        let mut walk = Walk::default();
        walk.directory(self.path())?;
        walk.check_links(&self.layout)?;
        let vms = names(&self.layout).into_iter().map(|name| found(&self.layout.vm(&name), name)).collect();
        Ok(Some(Adoption { layout: self.layout.clone(), vms, size_bytes: walk.size_bytes }))
    }
}

impl Adoption {
    /// Takes the state root over: moves the SSH keys in it to the quarantine, so that new ones are made, and writes the mark.
    ///
    /// # Errors
    /// [`StateRootError`]. Nothing in it is used then.
    pub fn adopt(self, context: &RuntimeContext) -> Result<(), StateRootError> {
        let key = Key::load_or_create(context)?;
        let layout = &self.layout;
        for vm in self.vms.iter().filter(|vm| vm.has_keys) {
            let files = layout.vm(&vm.name);
            for key in keys(&files) {
                let target = free_name(&layout.quarantine(), &vm.name, &key);
                let moved =
                    create_private_directory(&layout.quarantine()).and_then(|()| fs::rename(&key, target));
                moved.or_else(absent).map_err(io_error("move", &key))?;
            }
        }
        write_git_ignore(layout);
        let mark = layout.mark();
        mark::write(&mark, &key).map_err(io_error("create", &mark))
    }
}

/// A name in the quarantine that nothing has yet.
fn free_name(quarantine: &Path, vm: &str, key: &Path) -> PathBuf {
    let name = key.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let numbered = (1..u32::MAX).map(|number| quarantine.join(format!("{vm}-{name}.{number}")));
    let free = |path: &PathBuf| fs::symlink_metadata(path).is_err();
    numbered.into_iter().find(free).unwrap_or_else(|| quarantine.join(name))
}

fn keys(files: &VmLayout) -> [PathBuf; 3] {
    [files.host_key(), files.client_key(), files.known_hosts()]
}

fn absent(error: io::Error) -> io::Result<()> {
    if trusted::is_absence(&error) { Ok(()) } else { Err(error) }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateRootError {
    let path = path.to_owned();
    move |source| StateRootError::Io { action, path, source }
}

fn names(layout: &ProjectLayout) -> Vec<String> {
    let entries = files::readable_entries(&layout.vms());
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn found(files: &VmLayout, name: String) -> VmFound {
    let is_there = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
    VmFound {
        has_keys: keys(files).iter().any(is_there),
        is_running: running_qemu(&files.pidfile()).is_some() || runs_elsewhere(&files.pidfile()),
        is_suspended: is_there(&files.machine_state()),
        name,
    }
}

/// Findings about a tree.
#[derive(Default)]
struct Walk {
    entries: usize,
    size_bytes: u64,
    /// By device and inode: a path, the names there are, and those that were seen.
    linked: HashMap<(u64, u64), (PathBuf, u64, u64)>,
}

impl Walk {
    /// Checks that everything below is a directory or a regular file of this user's, and that no other user may write to it.
    fn directory(&mut self, path: &Path) -> Result<(), StateRootError> {
        let refused = |path: &Path, distrust: trusted::Distrust| StateRootError::Refused {
            path: path.to_owned(),
            source: distrust.into(),
        };
        let mut open = vec![path.to_owned()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).map_err(io_error("read", &directory))? {
                let path = entry.map_err(io_error("read", &directory))?.path();
                let metadata = fs::symlink_metadata(&path).map_err(io_error("look at", &path))?;
                self.entries += 1;
                if self.entries > MAX_ENTRIES {
                    let source = io::Error::other("there are too many files in it");
                    return Err(StateRootError::Refused { path: directory, source });
                }
                if metadata.is_dir() {
                    trusted::check_directory(&metadata).map_err(|distrust| refused(&path, distrust))?;
                    open.push(path);
                } else {
                    trusted::check_file(&metadata).map_err(|distrust| refused(&path, distrust))?;
                    self.file(path, &metadata);
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, metadata: &Metadata) {
        self.size_bytes += metadata.len();
        if metadata.nlink() > 1 {
            let id = (metadata.dev(), metadata.ino());
            self.linked.entry(id).or_insert((path, metadata.nlink(), 0)).2 += 1;
        }
    }

    /// Clones share files by links, and so do images and templates with the cache, which are checked by their digests. Any other
    /// name would be a way to change what is relied on.
    fn check_links(&self, layout: &ProjectLayout) -> Result<(), StateRootError> {
        let (images, templates, cache) = (layout.images(), layout.templates(), layout.own_cache());
        let may_be_shared = |path: &Path| {
            [images.root(), templates.root(), cache.root()].iter().any(|root| path.starts_with(root))
        };
        let outside = self.linked.values().find(|(path, all, seen)| seen < all && !may_be_shared(path));
        outside.map_or(Ok(()), |(path, ..)| Err(StateRootError::HardLink { path: path.clone() }))
    }
}
