//! All projects of this user: `up` notes where each is, and the kernel knows which QEMUs run.
//!
//! A note is one small file in the cache, written when a project is first brought up and never
//! forced to the disk: the next `up` writes a lost one again, and a VM that runs is found without
//! any. Neither a cache that was removed nor a project that was moved or removed hides a VM that
//! runs.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use crate::context::RuntimeContext;
use crate::files;
use crate::layout::ProjectLayout;
use crate::qemu::find_qemus;
use crate::state_root::{StateRoot, StateRootError, noted_root};
use crate::trusted;
use crate::vm::parallel::PerVm;

use super::status::{VmStatus, status};

/// Unit of `st_blocks`, whatever the filesystem's own is: `stat(2)`.
const BLOCK_BYTES: u64 = 512;
/// A project, and the VMs in it.
#[derive(Debug)]
pub struct ProjectStatus {
    /// Where it is.
    pub layout: ProjectLayout,
    /// Its VMs, or why nothing in it is looked at. A record that cannot be read is an error of its own.
    pub vms: Result<PerVm<ListedVm>, StateRootError>,
}

/// A VM of some project.
#[derive(Debug)]
pub struct ListedVm {
    /// What is known of it.
    pub status: VmStatus,
    /// What its own disk takes on this machine's disk.
    pub disk_bytes: Option<u64>,
}

/// Notes where a project is. One look at a small file if that is known; a cache that cannot be written to learns nothing.
pub(in crate::vm) fn note(layout: &ProjectLayout, context: &RuntimeContext) {
    let (path, root) = (context.cache.known_project(layout), layout.state_root());
    if noted_root(&path).is_some_and(|known| known == root) {
        return;
    }
    files::tag_as_cache(&context.cache.tag());
    // What a crash leaves of it is written anew by the next `up`.
    let _ = files::create_private_directory(&context.cache.known_projects()).and_then(|()| {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let mut file = trusted::open_with(&mut options, &path)?;
        file.set_len(0)?;
        file.write_all(root.as_os_str().as_bytes())
    });
}

/// All projects that there still are and that have a VM, by directory. Asks nobody, so it never waits. Notes of projects that
/// are gone are removed.
pub fn list_projects(context: &RuntimeContext) -> Vec<ProjectStatus> {
    let mut roots: BTreeSet<PathBuf> = find_qemus()
        .into_iter()
        .filter(|found| !found.is_orphan)
        .map(|found| found.project.state_root().to_owned())
        .collect();
    for entry in fs::read_dir(context.cache.known_projects()).into_iter().flatten().flatten() {
        match noted_root(&entry.path()).filter(|root| root.is_dir()) {
            Some(root) => drop(roots.insert(root)),
            // A project that is only out of reach is noted again by its next `up`.
            None => drop(fs::remove_file(entry.path())),
        }
    }
    let projects = roots.into_iter().map(|root| {
        let root = StateRoot::new(root);
        let vms = root.open(context).map(|layout| {
            status(&layout).into_iter().map(|(vm, status)| (vm, status.map(listed))).collect::<PerVm<_>>()
        });
        ProjectStatus { layout: root.names().clone(), vms }
    });
    projects.filter(|project| !project.vms.as_ref().is_ok_and(Vec::is_empty)).collect()
}

fn listed(status: VmStatus) -> ListedVm {
    let metadata = fs::metadata(&status.overlay).ok();
    ListedVm { disk_bytes: metadata.map(|metadata| metadata.blocks() * BLOCK_BYTES), status }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::Cancel;
    use crate::context::Environment;
    use crate::report::Silent;
    use crate::state_root;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;
    use std::path::Path;
    use std::sync::Arc;

    fn context(cache: &Path) -> RuntimeContext {
        let environment = Environment::of([("XDG_CACHE_HOME", cache), ("XDG_STATE_HOME", cache)]);
        RuntimeContext::new(environment, Arc::new(Silent), Cancel::new()).expect("a home")
    }

    #[test]
    fn projects_are_known_as_long_as_they_are_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let context = context(&directory.path().join("cache"));
        // Not UTF-8, as a directory's name may be.
        let name = OsString::from_vec(b"caf\xe9".to_vec());
        let layout = ProjectLayout::unchecked(directory.path().join(name).join(".castra"));
        state_root::make(&layout, &context).expect("made");
        fs::create_dir_all(layout.vm("web").directory()).expect("made");
        fs::write(layout.vm("web").record(), "{}").expect("written");
        note(&layout, &context);
        let listed = list_projects(&context);
        let ours = |project: &&ProjectStatus| project.layout == layout;
        let project = listed.iter().find(ours).expect("known");
        // Unreadable, and told all the same.
        assert!(matches!(project.vms.as_deref(), Ok([(name, Err(_))]) if name == "web"));
        fs::remove_dir_all(layout.state_root()).expect("removed");
        assert!(list_projects(&context).iter().find(ours).is_none());
        assert!(!context.cache.known_project(&layout).exists());
    }

    #[test]
    fn a_cache_that_cannot_be_written_to_is_no_failure_and_junk_no_project() {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = ProjectLayout::unchecked("/nowhere/.castra".into());
        fs::write(directory.path().join("castra"), "in the way").expect("written");
        note(&layout, &context(directory.path()));
        let junk = directory.path().join("junk");
        fs::write(&junk, "relative/path").expect("written");
        assert_eq!(noted_root(&junk), None);
    }
}
