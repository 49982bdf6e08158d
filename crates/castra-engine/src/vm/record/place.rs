//! Paths in a record. Files in the project are recorded relative to the state root, so that the
//! record of a moved or copied project names that project's files, and never the original's.

use std::path::{Component, Path, PathBuf};

use crate::files::normalise;
use crate::layout::{ProjectLayout, STATE_DIRECTORY};

/// Returns the recorded form of an absolute path.
pub(in crate::vm) fn stored(path: &Path, layout: &ProjectLayout) -> PathBuf {
    let root = layout.state_root();
    if let Ok(inside) = path.strip_prefix(root) {
        return inside.to_owned();
    }
    let Some(directory) = layout.project_directory() else { return path.to_owned() };
    match (path.strip_prefix(directory), root.strip_prefix(directory)) {
        (Ok(below), Ok(depth)) => {
            depth.components().map(|_| Component::ParentDir).chain(below.components()).collect()
        }
        _ => path.to_owned(),
    }
}

/// Returns the absolute path of a recorded one.
pub(in crate::vm) fn found(stored: &Path, layout: &ProjectLayout) -> PathBuf {
    normalise(&layout.state_root().join(stored))
}

/// Returns `true` for a relative path that stays within the project's directory.
pub(in crate::vm) fn is_in_project(stored: &Path, layout: &ProjectLayout) -> bool {
    let path = found(stored, layout);
    let is_below = |directory: &Path| path != directory && path.starts_with(directory);
    is_below(layout.state_root()) || layout.project_directory().is_some_and(is_below)
}

/// Returns the directory of another project that has a VM of this name with the disk at this path:
/// the record of an earlier castra names the original's disk even in a copy.
pub(in crate::vm) fn other_project<'a>(
    disk: &'a Path,
    vm: &str,
    layout: &ProjectLayout,
) -> Option<&'a Path> {
    if is_in_project(&stored(disk, layout), layout) {
        return None;
    }
    disk.ancestors().skip(1).find(|directory| {
        let root = directory.join(STATE_DIRECTORY);
        root != layout.state_root() && ProjectLayout::unchecked(root).vm(vm).record().is_file()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_names_its_own_files() {
        let (one, two) = ("/home/me/p/.castra", "/srv/backup/q/.castra");
        let [one, two] = [one, two].map(|root| ProjectLayout::unchecked(root.into()));
        for (path, copied) in [
            ("/home/me/p/.castra/web-overlay.qcow2", "/srv/backup/q/.castra/web-overlay.qcow2"),
            ("/home/me/p/disks/web.qcow2", "/srv/backup/q/disks/web.qcow2"),
            ("/home/me/shared/base.qcow2", "/home/me/shared/base.qcow2"),
        ] {
            let written = stored(Path::new(path), &one);
            assert_eq!(found(&written, &one), Path::new(path));
            assert_eq!(found(&written, &two), Path::new(copied));
        }
    }

    #[test]
    fn another_state_directory_belongs_to_the_project_with_the_configuration() {
        let directory = tempfile::tempdir().expect("a directory");
        let project = directory.path().join("p");
        std::fs::create_dir_all(project.join("var/state")).expect("made");
        let layout = ProjectLayout::unchecked(project.join("var/state"));
        let disk = project.join("disks/web.qcow2");
        assert_eq!(stored(&disk, &layout), disk, "no configuration, no project");
        assert!(!is_in_project(Path::new("../../disks/web.qcow2"), &layout));
        std::fs::write(project.join("castra.toml"), "").expect("written");
        assert_eq!(stored(&disk, &layout), Path::new("../../disks/web.qcow2"));
        assert!(is_in_project(Path::new("../../disks/web.qcow2"), &layout));
        assert!(!is_in_project(Path::new("../../../web.qcow2"), &layout));
    }
}
