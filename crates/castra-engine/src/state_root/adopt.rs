//! Adopts a state root that this user's castra did not make.

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

/// Maximum number of entries that are examined, more than any state root has.
const MAX_ENTRIES: usize = 1_000_000;

/// A state root that can be adopted: it was examined, and nothing was changed yet.
#[derive(Debug)]
pub struct Adoption {
    layout: ProjectLayout,
    /// VMs that would be used from then on, by name.
    pub vms: Vec<VmFound>,
    /// Total size of all files, in bytes.
    pub size_bytes: u64,
}

/// A VM in a state root that is not this user's yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFound {
    /// Name of the VM.
    pub name: String,
    /// True if SSH keys came with it, which their maker knows.
    pub has_keys: bool,
    /// True if it is running now.
    pub is_running: bool,
    /// True if it has saved memory, from which it would resume.
    pub is_suspended: bool,
}

impl StateRoot {
    /// Examines a state root that this user's castra did not make. Returns `None` if there is
    /// nothing to adopt: it is this user's already, or it is empty.
    ///
    /// # Errors
    /// [`StateRootError`]: the fault has to be fixed first.
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
        let vms = names(&self.layout)
            .into_iter()
            .map(|name| found(&self.layout.vm(&name), name))
            .collect();
        Ok(Some(Adoption { layout: self.layout.clone(), vms, size_bytes: walk.size_bytes }))
    }
}

impl Adoption {
    /// Adopts the state root: moves its SSH keys to the quarantine, so that new ones are made, and
    /// writes the mark.
    ///
    /// # Errors
    /// [`StateRootError`]. The state root stays unused then.
    pub fn adopt(self, context: &RuntimeContext) -> Result<(), StateRootError> {
        let key = Key::load_or_create(context)?;
        let layout = &self.layout;
        for vm in self.vms.iter().filter(|vm| vm.has_keys) {
            let files = layout.vm(&vm.name);
            for key in keys(&files) {
                let target = free_name(&layout.quarantine(), &vm.name, &key);
                let moved = create_private_directory(&layout.quarantine())
                    .and_then(|()| fs::rename(&key, target));
                moved.or_else(absent).map_err(io_error("move", &key))?;
            }
        }
        write_git_ignore(layout);
        let mark = layout.mark();
        mark::write(&mark, &key).map_err(io_error("create", &mark))
    }
}

/// Returns an unused name in the quarantine.
fn free_name(quarantine: &Path, vm: &str, key: &Path) -> PathBuf {
    let name = key.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let numbered = (1..u32::MAX).map(|number| quarantine.join(format!("{vm}-{name}.{number}")));
    let free = |path: &PathBuf| fs::symlink_metadata(path).is_err();
    numbered.into_iter().find(free).unwrap_or_else(|| quarantine.join(name))
}

fn keys(files: &VmLayout) -> [PathBuf; 4] {
    [files.host_key(), files.client_key(), files.known_hosts(), files.server_key()]
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
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
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

/// Findings of a walk over a tree.
#[derive(Default)]
struct Walk {
    entries: usize,
    size_bytes: u64,
    /// Files with several names, by device and inode: a path, the number of names, and the number
    /// of names seen.
    linked: HashMap<(u64, u64), (PathBuf, u64, u64)>,
}

impl Walk {
    /// Checks that everything below is a directory or a regular file of this user's, and that no
    /// other user may write to it.
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
                    trusted::check_directory(&metadata)
                        .map_err(|distrust| refused(&path, distrust))?;
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

    /// Checks that files have no names outside. Clones share files by links, and so do images and
    /// templates with the cache, which are checked by their digests. Any other name would be a way
    /// to change files that are relied on.
    fn check_links(&self, layout: &ProjectLayout) -> Result<(), StateRootError> {
        let (images, templates, cache) = (layout.images(), layout.templates(), layout.own_cache());
        let may_be_shared = |path: &Path| {
            [images.root(), templates.root(), cache.root()]
                .iter()
                .any(|root| path.starts_with(root))
        };
        let outside =
            self.linked.values().find(|(path, all, seen)| seen < all && !may_be_shared(path));
        outside.map_or(Ok(()), |(path, ..)| Err(StateRootError::HardLink { path: path.clone() }))
    }
}
