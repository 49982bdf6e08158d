//! All trees of files of a disk, opened.

use std::sync::Arc;

use super::candidates::On;
use super::no_system::NoSystem;
use super::os_release::OsRelease;
use crate::budget::Metered;
use crate::disk::Volume;
use crate::filesystem;
use crate::signature::{Content, Identity};
use crate::tree::FileTree;

/// Largest `fstab`, in bytes.
const MAX_FSTAB_BYTES: u64 = 256 << 10;
/// Directories in which boot loaders keep files.
const BASES: [&str; 3] = ["/boot", "/", "/efi"];

/// Trees of all filesystems that can be read.
pub(super) struct Mounted<'a> {
    pub(super) trees: Vec<MountedTree<'a>>,
}

/// A tree, with its place and what it contains.
pub(super) struct MountedTree<'a> {
    pub(super) volume: &'a Volume,
    pub(super) identity: Identity,
    /// Name of the subvolume; `None` for the one that is mounted by default.
    pub(super) subvolume: Option<String>,
    /// Distribution, if this is the root of a system.
    pub(super) os: Option<OsRelease>,
    pub(super) files: FileTree,
}

/// A directory of a tree in which a boot loader may keep its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BootDirectory {
    pub(super) tree: usize,
    base: &'static str,
}

impl BootDirectory {
    /// Returns the path of a file in this directory.
    pub(super) fn path(self, relative: &str) -> String {
        format!("{}/{relative}", self.base.trim_end_matches('/'))
    }
}

impl<'a> Mounted<'a> {
    /// Opens all filesystems; those that cannot be are noted.
    pub(super) fn open(volumes: &'a [Volume], meter: &Arc<Metered>, failed: &mut NoSystem) -> Self {
        let mut trees = Vec::new();
        for volume in volumes {
            let Content::Filesystem(identity) = &volume.content else { continue };
            let opened = match filesystem::open(identity, &volume.source) {
                Ok(opened) => opened,
                Err(fault) => {
                    failed.refused(volume, fault);
                    continue;
                }
            };
            for tree in opened {
                let mut files = FileTree::new(tree.files, Arc::clone(meter));
                let os = OsRelease::read(&mut files).unwrap_or_else(|fault| {
                    failed.refused(volume, fault);
                    None
                });
                if let Some(os) = &os {
                    failed.installed(volume, os);
                }
                let (identity, subvolume) = (identity.clone(), tree.subvolume);
                trees.push(MountedTree { volume, identity, subvolume, os, files });
            }
        }
        Self { trees }
    }

    /// Returns the directories in which boot loaders keep their files. A `/boot` on which the
    /// system mounts another filesystem comes last: what it contains is out of sight.
    pub(super) fn boot_directories(&mut self) -> Vec<BootDirectory> {
        let (mut directories, mut hidden) = (Vec::new(), Vec::new());
        for (tree, mounted) in self.trees.iter_mut().enumerate() {
            let is_mounted_over = mounted.os.is_some() && mounts_boot(&mut mounted.files);
            for base in BASES {
                let directory = BootDirectory { tree, base };
                let list =
                    if is_mounted_over && base == "/boot" { &mut hidden } else { &mut directories };
                list.push(directory);
            }
        }
        directories.append(&mut hidden);
        directories
    }

    /// Returns the trees of a filesystem, in the order in which paths are looked up in them.
    pub(super) fn trees_of(&self, on: &On) -> Vec<usize> {
        let is_on = |tree: &MountedTree<'_>| match on {
            On::Tree(index) => self.is_same_volume(*index, tree),
            On::Uuid(uuid) => tree.identity.uuid.eq_ignore_ascii_case(uuid),
            On::Label(label) => tree.identity.label.as_ref() == Some(label),
        };
        let trees = self.trees.iter().enumerate().filter(|(_, tree)| is_on(tree));
        let mut trees: Vec<usize> = trees.map(|(index, _)| index).collect();
        // Stable: the tree of the configuration first, then the others of its filesystem.
        trees.sort_by_key(|index| *on != On::Tree(*index));
        trees
    }

    fn is_same_volume(&self, index: usize, tree: &MountedTree<'_>) -> bool {
        self.trees.get(index).is_some_and(|other| other.volume.place == tree.volume.place)
    }
}

/// Returns `true` if the system mounts a filesystem on `/boot`.
fn mounts_boot(files: &mut FileTree) -> bool {
    let Ok(fstab) = files.read_counted(b"/etc/fstab", MAX_FSTAB_BYTES) else { return false };
    let fstab = String::from_utf8_lossy(&fstab);
    let mut mounts = fstab.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    mounts.any(|line| line.split_whitespace().nth(1) == Some("/boot"))
}
