//! Root filesystem of an entry, and the command line for a kernel without an entry.

use std::fmt::Write as _;

use super::command_line::{CommandLine, CommandLineError};
use super::mounted::{Mounted, MountedTree};
use crate::disk::Place;
use crate::signature::Identity;

/// Root filesystem of a system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFilesystem {
    /// Kind, UUID and label.
    pub identity: Identity,
    /// Place on the disk.
    pub place: Place,
    /// Subvolume of btrfs; `None` for the default one.
    pub subvolume: Option<String>,
}

/// Returns the tree that is the root of a system: the one that the command line names, or else the
/// first.
pub(super) fn find(options: Option<&CommandLine>, mounted: &Mounted<'_>) -> Option<usize> {
    let named = options.and_then(|options| options.value("root")).unwrap_or_default();
    let flags = options.and_then(|options| options.value("rootflags")).unwrap_or_default();
    let subvolume = flags.split(',').find_map(|flag| flag.strip_prefix("subvol="));
    let subvolume = subvolume.map(|path| path.trim_start_matches('/'));
    let systems = mounted.trees.iter().enumerate().filter(|(_, tree)| tree.os.is_some());
    // Stable: among equals, the first one.
    let best = systems.min_by_key(|(_, tree)| {
        (!is_named(named, tree), subvolume.is_some() && tree.subvolume.as_deref() != subvolume)
    });
    best.map(|(index, _)| index)
}

/// Returns `true` if `root=` names the filesystem, its partition or its logical volume.
fn is_named(root: &str, tree: &MountedTree<'_>) -> bool {
    let is =
        |value: &str, own: Option<&str>| own.is_some_and(|own| own.eq_ignore_ascii_case(value));
    if let Some(uuid) = root.strip_prefix("UUID=") {
        return is(uuid, Some(&tree.identity.uuid));
    }
    if let Some(label) = root.strip_prefix("LABEL=") {
        return tree.identity.label.as_deref() == Some(label);
    }
    if let Some(uuid) = root.strip_prefix("PARTUUID=") {
        return is(uuid, tree.volume.partition_uuid.as_deref());
    }
    match &tree.volume.place {
        Place::WholeDisk => false,
        Place::Partition(number) => {
            let digits = root.trim_start_matches(|char: char| !char.is_ascii_digit());
            root.starts_with("/dev/") && digits == number.to_string()
        }
        Place::LogicalVolume { group, name } => {
            root == mapper(group, name) || root == format!("/dev/{group}/{name}")
        }
    }
}

/// Returns the device of a logical volume; hyphens in names are doubled there.
fn mapper(group: &str, name: &str) -> String {
    format!("/dev/mapper/{}-{}", group.replace('-', "--"), name.replace('-', "--"))
}

/// Returns a command line that mounts this root.
pub(super) fn command_line(tree: &MountedTree<'_>) -> Result<CommandLine, CommandLineError> {
    CommandLine::parse(&format!("{} ro", arguments(tree, true)))
}

/// Returns a command line that names its root filesystem: with an initramfs that is not for this
/// disk alone, a system would wait for one that never appears. A boot loader may leave it out where
/// firmware names the partition, or where a disk was made without mounting it.
pub(super) fn named(
    options: CommandLine,
    tree: &MountedTree<'_>,
) -> Result<CommandLine, CommandLineError> {
    if options.value("root").is_some_and(|root| !root.is_empty()) {
        return Ok(options);
    }
    let is_default = options.value("rootflags").is_none();
    let others = options.as_str().split(' ').filter(|argument| *argument != "root=");
    let others: Vec<&str> = others.collect();
    // First, since the last arguments may be those of init.
    CommandLine::parse(&format!("{} {}", arguments(tree, is_default), others.join(" ")))
}

/// Returns the arguments that name a root, with its subvolume or without.
fn arguments(tree: &MountedTree<'_>, with_subvolume: bool) -> String {
    let mut line = match &tree.volume.place {
        // dracut activates what it is asked for.
        Place::LogicalVolume { group, name } => {
            format!("root={} rd.lvm.lv={group}/{name}", mapper(group, name))
        }
        Place::WholeDisk | Place::Partition(_) => format!("root=UUID={}", tree.identity.uuid),
    };
    if let Some(subvolume) = tree.subvolume.as_ref().filter(|_| with_subvolume) {
        let _ = write!(line, " rootflags=subvol={subvolume}");
    }
    line
}
