//! Backing chains of disks: every file that a disk is based on.

use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::files::open_regular;
use crate::layout::is_frozen_layer;
use crate::qemu::{QCOW2_MAGIC, Qcow2Header, QemuError};
use crate::vm::error::{FileAction, VmDiskError, VmError, VmIoError};

/// Most layers of a chain: more than QEMU would open, and enough to notice a cycle.
const MAX_LAYERS: usize = 200;

/// Identity of a file, whatever its names.
pub(super) type FileId = (u64, u64);

pub(super) fn id_of(metadata: &Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

/// Returns every disk in this directory that is not a layer of clones: VMs' disks, and any that the
/// user put beside them.
///
/// # Errors
/// Returns [`VmIoError::File`], since a file that cannot be read may be a disk.
pub(super) fn disks_in(directory: &Path) -> Result<Vec<PathBuf>, VmError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| VmIoError::File { action: FileAction::LookAt, path, source }
    };
    let mut disks = Vec::new();
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(disks),
        entries => entries.map_err(failed(directory))?,
    };
    for entry in entries {
        let path = entry.map_err(failed(directory))?.path();
        // A link counts as its target, and a dangling link is not a disk.
        let is_file = fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if is_file && !is_frozen_layer(&path) && is_disk(&path).map_err(failed(&path))? {
            disks.push(path);
        }
    }
    Ok(disks)
}

/// Returns `true` for a disk by its content, or by its name if the content is inconclusive: a
/// truncated disk once had a backing file.
fn is_disk(path: &Path) -> io::Result<bool> {
    let mut begin = Vec::new();
    open_regular(path)?.take(QCOW2_MAGIC.len() as u64).read_to_end(&mut begin)?;
    Ok(begin == QCOW2_MAGIC || path.extension().is_some_and(|extension| extension == "qcow2"))
}

/// Returns all files in the backing chains of these disks, without the disks themselves.
///
/// # Errors
/// Returns [`VmError::Qemu`] for a chain that cannot be read and [`VmDiskError::BaseMissing`] for a
/// broken one, whose needs are unknown.
pub(super) fn foundations(disks: &[PathBuf]) -> Result<HashSet<FileId>, VmError> {
    let mut found = HashSet::new();
    disks.iter().try_for_each(|disk| follow(disk, &mut found))?;
    Ok(found)
}

/// Returns the files in the backing chains, as far as the chains can be read.
pub(super) fn known_foundations(disks: &[PathBuf]) -> HashSet<FileId> {
    let mut found = HashSet::new();
    for disk in disks {
        // Files found before an error count.
        let _ = follow(disk, &mut found);
    }
    found
}

fn follow(disk: &Path, found: &mut HashSet<FileId>) -> Result<(), VmError> {
    let mut path = disk.to_owned();
    for _ in 0..MAX_LAYERS {
        let header = match Qcow2Header::read(&path) {
            // A raw image has no backing file; but a damaged layer had one.
            Err(QemuError::NotQcow2 { .. }) if path != disk && !is_disk(&path).unwrap_or(true) => {
                break;
            }
            header => header?,
        };
        let Some(backing) = header.backing_path(&path).map_err(QemuError::from)? else { break };
        path = backing;
        let missing = |_| VmDiskError::BaseMissing {
            vm: disk.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            base: path.clone(),
            overlay: Some(disk.to_owned()),
        };
        found.insert(id_of(&fs::metadata(&path).map_err(missing)?));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::create_overlay;

    fn overlay(path: &Path, backing: &str) {
        fs::File::create(path).expect("made");
        create_overlay(path, Path::new(backing), 1 << 20).expect("written");
    }

    #[test]
    fn whole_chains_are_found_and_a_broken_one_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let id = |name: &str| id_of(&fs::metadata(at(name)).expect("there"));
        fs::write(at("base.raw"), "raw").expect("written");
        overlay(&at("layer-0123456789abcdef.qcow2"), "base.raw");
        overlay(&at("web-overlay.qcow2"), "layer-0123456789abcdef.qcow2");
        // The user's own disk, whatever its name.
        overlay(&at("mine"), "base.raw");
        fs::write(at("notes.txt"), "no disk").expect("written");
        let mut disks = disks_in(directory.path()).expect("listed");
        disks.sort();
        assert_eq!(disks, [at("mine"), at("web-overlay.qcow2")]);
        let found = foundations(&disks).expect("readable");
        assert_eq!(found, HashSet::from([id("base.raw"), id("layer-0123456789abcdef.qcow2")]));
        fs::write(at("base.raw"), QCOW2_MAGIC).expect("a damaged qcow2");
        assert!(matches!(foundations(&disks), Err(VmError::Qemu(_))));
        fs::remove_file(at("base.raw")).expect("removed");
        assert!(matches!(foundations(&disks), Err(VmError::Disk(VmDiskError::BaseMissing { .. }))));
        fs::write(at("cut-off.qcow2"), "QF").expect("written");
        let disks = disks_in(directory.path()).expect("listed");
        assert!(disks.contains(&at("cut-off.qcow2")));
        assert!(matches!(foundations(&[at("cut-off.qcow2")]), Err(VmError::Qemu(_))));
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        overlay(&one, "two");
        overlay(&two, "one");
        assert_eq!(foundations(&[one]).expect("ends").len(), 2);
    }
}
