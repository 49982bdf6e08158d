//! All projects of this user: `up` records the location of each, and the kernel knows which QEMUs
//! run.
//!
//! A note is one small file in the cache, written when a project is first brought up and never
//! synced to disk: the next `up` writes a lost one again, and running VMs are found without any.
//! Neither removing the cache nor moving or removing a project hides a running VM.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use crate::context::RuntimeContext;
use crate::files;
use crate::layout::ProjectLayout;
use crate::qemu::find_qemus;
use crate::state_root::{StateRoot, StateRootError, noted_root};
use crate::trusted;
use crate::vm::parallel::PerVm;
use crate::vm::project::ProjectRef;

use super::status::{VmStatus, status};

/// A project, and the VMs in it.
#[derive(Debug)]
pub struct ProjectStatus {
    /// Location of the project.
    pub layout: ProjectLayout,
    /// VMs of the project, or the reason why it is not read. An unreadable record is an error of
    /// its own.
    pub vms: Result<PerVm<ListedVm>, StateRootError>,
}

/// A VM of one of the projects.
#[derive(Debug)]
pub struct ListedVm {
    /// Status of the VM.
    pub status: VmStatus,
    /// Bytes that its own disk occupies on the host.
    pub disk_bytes: Option<u64>,
}

/// Records the location of a project. Reads one small file if it is known already; ignores a cache
/// that cannot be written to.
pub(in crate::vm) fn note(project: ProjectRef<'_>) {
    let (path, root) =
        (project.context.cache.known_project(project.layout), project.layout.state_root());
    if noted_root(&path).is_some_and(|known| known == root) {
        return;
    }
    files::tag_as_cache(&project.context.cache.tag());
    // After a crash, the next `up` writes the note again.
    let _ =
        files::create_private_directory(&project.context.cache.known_projects()).and_then(|()| {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let mut file = trusted::open_with(&mut options, &path)?;
            file.set_len(0)?;
            file.write_all(root.as_os_str().as_bytes())
        });
}

/// Lists all existing projects that have a VM, by directory. Asks no guest, so it never waits.
/// Notes of projects that are gone are removed.
pub fn list_projects(context: &RuntimeContext) -> Vec<ProjectStatus> {
    let mut roots: BTreeSet<PathBuf> = find_qemus()
        .into_iter()
        .filter(|found| !found.is_orphan)
        .map(|found| found.project.state_root().to_owned())
        .collect();
    for entry in fs::read_dir(context.cache.known_projects()).into_iter().flatten().flatten() {
        match noted_root(&entry.path()).filter(|root| root.is_dir()) {
            Some(root) => drop(roots.insert(root)),
            // A project that is only out of reach is recorded again by its next `up`.
            None => drop(fs::remove_file(entry.path())),
        }
    }
    let projects = roots.into_iter().map(|root| {
        let root = StateRoot::new(root);
        let vms = root.open(context).map(|layout| {
            status(&layout)
                .into_iter()
                .map(|(vm, status)| (vm, status.map(listed)))
                .collect::<PerVm<_>>()
        });
        ProjectStatus { layout: root.names().clone(), vms }
    });
    projects.filter(|project| !project.vms.as_ref().is_ok_and(Vec::is_empty)).collect()
}

fn listed(status: VmStatus) -> ListedVm {
    let metadata = fs::metadata(&status.overlay).ok();
    ListedVm { disk_bytes: metadata.map(|metadata| files::allocated_bytes(&metadata)), status }
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
        // Directory names need not be UTF-8.
        let name = OsString::from_vec(b"caf\xe9".to_vec());
        let layout = ProjectLayout::unchecked(directory.path().join(name).join(".castra"));
        state_root::make(&layout, &context).expect("made");
        fs::create_dir_all(layout.vm("web").directory()).expect("made");
        fs::write(layout.vm("web").record(), "{}").expect("written");
        note(ProjectRef::new(&layout, &context));
        let listed = list_projects(&context);
        let ours = |project: &&ProjectStatus| project.layout == layout;
        let project = listed.iter().find(ours).expect("known");
        // An unreadable record is listed all the same.
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
        note(ProjectRef::new(&layout, &context(directory.path())));
        let junk = directory.path().join("junk");
        fs::write(&junk, "relative/path").expect("written");
        assert_eq!(noted_root(&junk), None);
    }
}
