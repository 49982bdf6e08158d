//! Removal of what the survey has found, and the count of freed space.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Cleaned;
use super::foundations::{FileId, id_of};
use crate::files;
use crate::layout::{LINKED_FROM, ProjectLayout, VmLayout, is_image_lock};
use crate::vm::error::{FileAction, VmError, VmIoError};
use crate::vm::project::ProjectRef;
use crate::vm::record::Record;

/// Number of names of a file: at first, and gone by now.
#[derive(Clone, Copy)]
struct Names {
    all: u64,
    gone: u64,
}

/// Removed names of each file.
#[derive(Default)]
pub(super) struct Usage {
    taken: HashMap<FileId, Names>,
    /// Paths counted already, since a directory may be removed after some of its files, which count
    /// once.
    paths: std::collections::HashSet<PathBuf>,
}

impl Usage {
    /// Returns the space that removing this file or directory frees, after all removals before:
    /// only a file's last name frees space.
    pub(super) fn take(&mut self, path: &Path) -> u64 {
        let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
        if metadata.is_dir() {
            let inside = fs::read_dir(path).into_iter().flatten().flatten();
            return inside.map(|entry| self.take(&entry.path())).sum();
        }
        if !self.paths.insert(path.to_owned()) {
            return 0;
        }
        let id = id_of(&metadata);
        // As of the first look: a file that is removed between two looks has fewer names then.
        let names = self.taken.entry(id).or_insert(Names { all: metadata.nlink(), gone: 0 });
        names.gone += 1;
        if names.gone == names.all { files::allocated_bytes(&metadata) } else { 0 }
    }
}

/// Removes a file, a link or a directory with its contents. A missing one is fine.
pub(super) fn remove(path: &Path) -> Result<(), VmError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(VmIoError::File { action: FileAction::Remove, path: path.to_owned(), source }
                .into())
        }
        _ => Ok(()),
    }
}

/// Lets a VM's record say that it has no such data disk any more: the next start makes a new one.
pub(super) fn forget_data_disk(disk: &Cleaned, layout: &ProjectLayout) -> Result<(), VmError> {
    let Some(vm) = &disk.vm else { return Ok(()) };
    let file = disk.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = VmLayout::name_of_data_disk(file).unwrap_or_default();
    let Ok(Some(mut record)) = Record::load(layout, vm) else { return Ok(()) };
    let before = record.data_disks.len();
    record.data_disks.retain(|known| known.name.as_str() != name);
    if record.data_disks.len() < before {
        record.save(layout)?;
    }
    Ok(())
}

/// Quarantines an unreadable record, and returns its new path.
pub(super) fn quarantine_record(
    record: &Cleaned,
    layout: &ProjectLayout,
) -> Result<PathBuf, VmError> {
    let quarantine = layout.quarantine();
    let failed = |source| VmIoError::File {
        action: FileAction::Quarantine,
        path: record.path.clone(),
        source,
    };
    files::create_private_directory(&quarantine).map_err(failed)?;
    let vm = record.vm.as_deref().unwrap_or_default();
    let numbered = (1..).map(|number| quarantine.join(format!("{vm}-record.{number}.json")));
    let free = |target: &PathBuf| fs::symlink_metadata(target).is_err();
    // The numbers do not run out.
    let target = numbered.into_iter().find(free).unwrap_or_else(|| quarantine.clone());
    fs::rename(&record.path, &target).map_err(failed)?;
    Ok(target)
}

fn entries(directory: &Path) -> impl Iterator<Item = fs::DirEntry> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}

/// Removes empty directories. Each removal fails as long as something is in the directory.
pub(super) fn remove_empty_directories(project: ProjectRef<'_>, may_all_go: bool) {
    let images = project.layout.images();
    for id in entries(images.root()) {
        let is_lock = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(is_image_lock);
        // A waiter on one of these locks finds that it is gone, and creates another.
        if entries(&id.path()).all(|entry| is_lock(&entry)) {
            let _ = fs::remove_dir_all(id.path());
        }
    }
    let templates = project.layout.templates();
    for directory in [
        images.root(),
        templates.root(),
        &project.layout.quarantine(),
        &project.layout.logs(),
        &project.layout.vms(),
    ] {
        let _ = fs::remove_dir(directory);
    }
    for of_vm in entries(&project.layout.data_disks()) {
        let _ = fs::remove_dir(of_vm.path());
    }
    let _ = fs::remove_dir(project.layout.data_disks());
    let _ = project.sockets("any").own_project().map(fs::remove_dir);
    // A state root without anything else counts as empty, whichever of these a killed castra has
    // left.
    let last = [
        project.layout.git_ignore(),
        project.layout.mark(),
        project.layout.chosen_image(),
        project.layout.state_root().join(LINKED_FROM),
    ];
    let is_last = |path: &PathBuf| *path == project.layout.project_lock() || last.contains(path);
    let is_left =
        entries(project.layout.state_root()).map(|entry| entry.path()).any(|path| !is_last(&path));
    if may_all_go && !is_left {
        for file in &last {
            let _ = fs::remove_file(file);
        }
        // A waiter on the lock finds that its file is gone, and creates everything again.
        let _ = fs::remove_file(project.layout.project_lock());
        let _ = fs::remove_dir(project.layout.state_root());
        let _ = fs::remove_file(project.context.cache.known_project(project.layout));
    }
}
