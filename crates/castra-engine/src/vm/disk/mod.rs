//! A VM's own disk: an overlay on its base image, or on a warm template's layer above that.

mod base;
pub(super) mod data;
mod digests;
pub(super) mod layer;
mod remove;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use tempfile::TempPath;

use crate::config::{DiskPath, defaults};
use crate::context::RuntimeContext;
use crate::failpoint::{self, Point};
use crate::files::{self, OVERLAY_BYTES, Peak, create_private_directory, normalise, require_space};
use crate::layout::{ProjectLayout, VmLayout, is_frozen_layer};
use crate::qemu::{Qcow2Header, QemuError, create_overlay, resize_disk};
use crate::report::Event;
use crate::size::ByteSize;
use crate::trusted;

use super::error::{FileAction, VmDiskError, VmError, VmIoError};
use super::plan::VmPlan;
use super::project::ProjectRef;
use super::record::{DiskStamp, LayerRecord, ProvisionRecord, Record, place};

pub use base::ensure_vm_image;
pub(super) use base::{Base, Image, check_boot_code, confirm, ensure_base, look_at_own_disk};
pub use data::FoundDisk;
pub(super) use remove::{
    check_removable, check_unfinished, refuse_in_use, remove_disk, remove_unfinished_clone,
    remove_unfinished_disk,
};

/// Files of a start, each present and checked.
pub(super) struct ResolvedVmArtifacts {
    /// Managed image that the disk is based on, unless that is the user's own file.
    pub(super) image: Option<Image>,
    /// True if the disk was just created: only then it fits a template's memory.
    pub(super) is_new: bool,
}

/// Ensures that the VM has its disk, and writes the record of a new one. An existing disk is never
/// replaced; a new one is based on `new_layer` if there is one, otherwise on the layers of its
/// steps or on the base image itself, which the caller has checked.
///
/// # Errors
/// Returns errors of qemu-img, [`VmDiskError::BaseMissing`], [`VmDiskError::BaseChanged`],
/// [`VmDiskError::ForeignOverlay`] or [`VmIoError::File`].
pub(super) fn ensure_vm_assets(
    plan: &VmPlan,
    mut recorded: Option<Record>,
    base: Base,
    provisioned: Option<ProvisionRecord>,
    new_layer: Option<LayerRecord>,
    project: ProjectRef<'_>,
) -> Result<(ResolvedVmArtifacts, Record), VmError> {
    let (vm, overlay) = (&plan.definition.name, &plan.definition.overlay);
    confirm_place(vm, overlay)?;
    let is_new = !overlay.exists();
    let mut record = if !is_new {
        check_overlay(plan, &base, recorded.as_mut(), project)?;
        grow(plan, project.context)?;
        let mut record = recorded
            .unwrap_or_else(|| Record::new(project.layout, vm, overlay, base.record.clone()));
        record.place_disk(overlay, project.layout);
        record
    } else {
        announce(plan, &base, project.context);
        let layer = new_layer.as_ref().or(provisioned.as_ref().and_then(ProvisionRecord::top));
        let foundation = layer.map(|layer| project.layout.layer(&layer.sha256));
        create(plan, foundation.as_ref().unwrap_or(&base.disk), project)?;
        forget_system(&project.files(vm));
        let mut record = Record::new(project.layout, vm, overlay, base.record.clone());
        record.layer = new_layer;
        record.provisioned = provisioned;
        // Like its keys, which still exist.
        record.ssh_port = recorded.and_then(|recorded| recorded.ssh_port);
        record
    };
    record.base = base.record;
    record.data_disks.clone_from(&plan.definition.data_disks);
    record.save(project.layout)?;
    failpoint::reach(Point::OverlayRecorded);
    Ok((ResolvedVmArtifacts { image: base.image, is_new }, record))
}

/// Removes what is known of the system on an earlier disk of the VM.
fn forget_system(files: &VmLayout) {
    for path in [files.uefi_variables(), files.server_key(), files.seed()] {
        let _ = fs::remove_file(path);
    }
}

/// Checks that the configuration may have a VM's disk there, as things are at this moment.
///
/// # Errors
/// Returns [`VmDiskError::OutOfBounds`].
pub(super) fn confirm_place(vm: &str, overlay: &DiskPath) -> Result<(), VmError> {
    let refused =
        |problem| VmDiskError::OutOfBounds { vm: vm.to_owned(), problem: Box::new(problem) };
    Ok(overlay.confirm().map(drop).map_err(refused)?)
}

/// Reports the files outside the project that the guest will read.
fn announce(plan: &VmPlan, base: &Base, context: &RuntimeContext) {
    let bounds = plan.definition.overlay.bounds();
    let paths: Vec<PathBuf> =
        base.sources.iter().filter(|path| bounds.is_outside(path)).cloned().collect();
    if !paths.is_empty() {
        context.reporter.report(&Event::ReadsOutside { vm: plan.definition.name.clone(), paths });
    }
}

/// Checks that the disk is based on this very base, directly or through a template's disk, and that
/// each file is what it was when the disk was created. For a file that turns out to be a copy, the
/// record gets the new stamp, which the caller saves.
pub(super) fn check_overlay(
    plan: &VmPlan,
    base: &Base,
    mut recorded: Option<&mut Record>,
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    let (vm, overlay) = (&plan.definition.name, &plan.definition.overlay);
    let mut found = backing_of_own(vm, overlay)?;
    while is_frozen_layer(&found) {
        check_frozen(plan, &found, recorded.as_deref_mut(), project.context)?;
        found = backing_of(&found)?;
    }
    while let Some(sha256) = layer::sha256_in(&found, project.layout) {
        layer::check(plan, &sha256, recorded.as_deref_mut(), project)?;
        found = backing_of(&found)?;
    }
    let same_file = found == normalise(&base.disk)
        || matches!(
            (found.canonicalize(), base.disk.canonicalize()),
            (Ok(found), Ok(disk)) if found == disk
        );
    if !same_file {
        let (overlay, expected) = (overlay.to_path_buf(), base.disk.clone());
        return Err(VmDiskError::ForeignOverlay { vm: vm.clone(), overlay, found, expected }.into());
    }
    if recorded.is_some_and(|record| record.base.content != base.record.content) {
        let (base, overlay) = (base.disk.clone(), overlay.to_path_buf());
        return Err(VmDiskError::BaseChanged { vm: vm.clone(), base, overlay }.into());
    }
    Ok(())
}

/// Checks that a layer that clones share was never written to.
fn check_frozen(
    plan: &VmPlan,
    layer: &Path,
    recorded: Option<&mut Record>,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    let (vm, overlay) = (plan.definition.name.clone(), plan.definition.overlay.to_path_buf());
    let base = layer.to_owned();
    if DiskStamp::of(layer).is_err() {
        return Err(VmDiskError::BaseMissing { vm, base, overlay: Some(overlay) }.into());
    }
    let known = recorded.and_then(|record| {
        record.frozen.iter_mut().find(|known| Some(known.name.as_os_str()) == layer.file_name())
    });
    let Some(known) = known else { return Ok(()) };
    if known.stamp.recognises(layer, known.sha256.as_deref(), &context.cancel)? {
        if known.sha256.is_none() {
            known.sha256 = Some(files::sha256(layer, &context.cancel)?);
        }
        return Ok(());
    }
    Err(match known.sha256 {
        Some(_) => VmDiskError::BaseChanged { vm, base, overlay }.into(),
        None => VmDiskError::LayerUnproven { vm, layer: base }.into(),
    })
}

/// Checks that the disk which a record names exists: one that is gone took its data with it, and a
/// new one would hide that. A file that is no qcow2 is what is left of the disk.
///
/// # Errors
/// Returns [`VmDiskError::Gone`], [`VmDiskError::Renamed`] or [`VmDiskError::Damaged`].
pub(super) fn check_recorded(
    plan: &VmPlan,
    record: &Record,
    layout: &ProjectLayout,
) -> Result<(), VmError> {
    let (vm, wanted) = (&plan.definition.name, plan.definition.overlay.to_path_buf());
    if !is_gone(&wanted) {
        return match backing_of_own(vm, &wanted) {
            Err(error @ VmError::Disk(VmDiskError::Damaged { .. })) => Err(error),
            // All else is found where the file is used, after the checks of its location.
            _ => Ok(()),
        };
    }
    let disk = record.overlay_path(layout);
    check_present(vm, &disk)?;
    Err(VmDiskError::Renamed { vm: vm.clone(), disk, wanted }.into())
}

/// Checks that the disk of a VM exists.
///
/// # Errors
/// Returns [`VmDiskError::Gone`].
pub(super) fn check_present(vm: &str, disk: &Path) -> Result<(), VmError> {
    match is_gone(disk) {
        true => Err(VmDiskError::Gone { vm: vm.to_owned(), disk: disk.to_owned() }.into()),
        false => Ok(()),
    }
}

/// Returns `true` if there is no such file, or no directory that could have it. One that cannot be
/// looked at is not gone.
fn is_gone(disk: &Path) -> bool {
    fs::symlink_metadata(disk).is_err_and(|error| trusted::is_absence(&error))
}

/// Returns the backing file of a VM's own disk, which has one.
fn backing_of_own(vm: &str, overlay: &Path) -> Result<PathBuf, VmError> {
    let damaged = |reason: String| {
        let (vm, disk) = (vm.to_owned(), overlay.to_owned());
        VmError::from(VmDiskError::Damaged { vm, disk, reason })
    };
    match backing_of(overlay) {
        Err(VmError::Qemu(QemuError::NotQcow2 { reason, .. })) => {
            Err(damaged(format!("is not a qcow2 image: {reason}")))
        }
        Ok(backing) if backing.as_os_str().is_empty() => {
            Err(damaged("has no backing file".to_owned()))
        }
        backing => backing,
    }
}

/// Returns the backing file of a disk; an empty path if it has none.
fn backing_of(disk: &Path) -> Result<PathBuf, VmError> {
    let header = Qcow2Header::read(disk)?;
    Ok(header.backing_path(disk).map_err(QemuError::from)?.unwrap_or_default())
}

/// Creates the disk under a temporary name and publishes it by renaming.
fn create(plan: &VmPlan, foundation: &Path, project: ProjectRef<'_>) -> Result<(), VmError> {
    let (vm, disk_path) = (&plan.definition.name, &plan.definition.overlay);
    let overlay = &disk_path.to_path_buf();
    let directory = overlay.parent().unwrap_or(Path::new("/"));
    let failed =
        |source| VmIoError::File { action: FileAction::Create, path: overlay.clone(), source };
    create_private_directory(directory).map_err(failed)?;
    // A file that moves with the project is named relative to the disk, any other by its own path.
    let backing_file = match place::stored(foundation, project.layout).is_absolute() {
        true => foundation.to_owned(),
        false => relative(directory, foundation),
    };
    let size_bytes = plan.definition.disk_bytes.max(Qcow2Header::read(foundation)?.virtual_bytes);
    require_space(directory, &Peak { overlay: OVERLAY_BYTES, ..Peak::default() })?;
    // Directories were created since the last check, perhaps through a link.
    confirm_place(vm, disk_path)?;
    remove_unfinished_disk(&temporary_name(overlay))?;
    let temporary = new_beside(overlay).map_err(failed)?;
    failpoint::reach(Point::OverlayBegun);
    create_overlay(&temporary, &backing_file, size_bytes)?;
    failpoint::reach(Point::OverlayMade);
    confirm_place(vm, disk_path)?;
    temporary.persist_noclobber(overlay).map_err(|error| failed(error.error))?;
    failpoint::reach(Point::OverlayPublished);
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    project.report(&Event::OverlayCreated { vm: vm.clone(), path: overlay.clone(), size_bytes });
    Ok(())
}

/// Returns the temporary name of a disk being created.
pub(super) fn temporary_name(overlay: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(overlay.file_name().unwrap_or_default());
    name.push(".new");
    overlay.with_file_name(name)
}

/// Creates an empty file beside the disk, which is removed unless it gets the disk's name: the
/// relative backing file is resolved against that directory. The name is always the same, so that
/// the remains of a killed castra are found; the VM's lock is held.
fn new_beside(overlay: &Path) -> io::Result<TempPath> {
    let path = temporary_name(overlay);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    TempPath::try_from_path(path)
}

/// Grows the disk to the configured size; never shrinks it, since that would cut off data.
fn grow(plan: &VmPlan, context: &RuntimeContext) -> Result<(), VmError> {
    let (overlay, wanted) = (&plan.definition.overlay, plan.definition.disk_bytes);
    let has = Qcow2Header::read(overlay)?.virtual_bytes;
    if has < wanted {
        resize_disk(overlay, wanted, &context.environment, &context.cancel)?;
    } else if has > wanted && plan.definition.disk_bytes != defaults::DISK_BYTES {
        let (vm, size) = (&plan.definition.name, ByteSize(has));
        let message = format!("the disk of VM `{vm}` stays at {size}: a disk can only grow");
        context.reporter.report(&Event::Warning { message });
    }
    Ok(())
}

/// Returns the path of the user's own disk as seen from a layer's directory in the project. A disk
/// in the project is named relative to that, so that both may move.
pub(super) fn base_from_layer(base: &Path, layout: &ProjectLayout) -> PathBuf {
    let layer = layout.layer("any");
    match place::stored(base, layout).is_absolute() {
        true => base.to_owned(),
        false => relative(layer.parent().unwrap_or(Path::new("/")), base),
    }
}

/// Returns `target` relative to `directory`, if both share more than the root; otherwise as it is.
pub(super) fn relative(directory: &Path, target: &Path) -> PathBuf {
    let (directory, target) = (normalise(directory), normalise(target));
    let shared =
        directory.components().zip(target.components()).take_while(|(a, b)| a == b).count();
    if shared <= 1 {
        return target;
    }
    let up = directory.components().skip(shared).map(|_| Component::ParentDir);
    // QEMU takes a colon before the first slash for the end of a protocol's name: `nbd:`, `json:`.
    let here = (directory.components().count() == shared).then_some(Component::CurDir);
    let name: PathBuf = up.chain(target.components().skip(shared)).collect();
    match name.components().next() {
        Some(Component::Normal(first)) if first.as_encoded_bytes().contains(&b':') => {
            here.into_iter().chain(name.components()).collect()
        }
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_files_are_relative_inside_a_project() {
        let directory = Path::new("/home/me/project/.castra");
        let base = Path::new("/home/me/project/.castra/images/alpine-minimal/v1/rootfs.qcow2");
        assert_eq!(relative(directory, base), Path::new("images/alpine-minimal/v1/rootfs.qcow2"));
        assert_eq!(
            relative(directory, Path::new("/home/me/project/my.qcow2")),
            Path::new("../my.qcow2")
        );
        assert_eq!(relative(directory, Path::new("/srv/base.qcow2")), Path::new("/srv/base.qcow2"));
        // `Path` compares components, and would not see the difference.
        let protocol = relative(directory, &directory.join("nbd:unix:x"));
        assert_eq!(protocol.to_str(), Some("./nbd:unix:x"));
    }
}
