//! Data disks of VMs: created, grown, checked, copied and found again.
//!
//! A data disk has no backing file, and stays when its VM is removed. What a VM's record says of
//! its data disks is true of its last start, and, while it is suspended, of its memory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use castra_wire::DiskOrder;

use crate::cancel::Cancel;
use crate::config::{DataDisk, is_vm_name};
use crate::context::RuntimeContext;
use crate::failpoint::{self, Point};
use crate::files::{
    self, At as _, Digest, OVERLAY_BYTES, Peak, create_private_directory, require_space,
};
use crate::layout::{ProjectLayout, VmLayout};
use crate::qemu::{self, DiskName, Qcow2Header, create_blank_disk, resize_disk};
use crate::report::Event;
use crate::size::ByteSize;
use crate::trusted;
use crate::vm::error::{FileAction, SuspendError, VmDiskError, VmError, VmIoError};
use crate::vm::project::ProjectRef;
use crate::vm::record::{DiskStamp, Record, SavedDisk, SuspendRecord};

use super::remove::{refuse_in_use, remove_made_disk, remove_unfinished_disk};
use super::{new_beside, temporary_name};

/// A data disk that is there, whether its VM has it or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundDisk {
    /// Name of the disk.
    pub name: DiskName,
    /// The file.
    pub path: PathBuf,
    /// Virtual size, in bytes; `None` if it cannot be read.
    pub size_bytes: Option<u64>,
    /// Bytes that it takes on this machine.
    pub used_bytes: u64,
}

/// Returns the data disks as QEMU has them.
pub(in crate::vm) fn of_machine(disks: &[DataDisk], files: &VmLayout) -> Vec<qemu::DataDisk> {
    disks.iter().map(|disk| of_qemu(&disk.name, files)).collect()
}

/// Returns the agent's orders for data disks.
pub(in crate::vm) fn orders(disks: &[DataDisk], files: &VmLayout) -> Vec<DiskOrder> {
    // What cannot be read counts as written.
    let is_unwritten =
        |disk: &DataDisk| of_qemu(&disk.name, files).check().is_ok_and(|facts| facts.is_unwritten);
    let order = |disk: &DataDisk| disk.order(is_unwritten(disk));
    disks.iter().map(order).collect()
}

fn of_qemu(name: &DiskName, files: &VmLayout) -> qemu::DataDisk {
    qemu::DataDisk { name: name.clone(), path: files.data_disk(name.as_str()) }
}

/// Returns the data disks of this VM that are there, by name.
pub(in crate::vm) fn found(files: &VmLayout) -> Vec<FoundDisk> {
    let directory = files.data_disks();
    // A link would lead to files that are not the VM's.
    let is_own = |directory: &Path| trusted::directory(directory).is_ok_and(|is_there| is_there);
    if !directory.ancestors().take(2).all(is_own) {
        return Vec::new();
    }
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let disk = |entry: fs::DirEntry| {
        let file = entry.file_name().into_string().ok()?;
        let name = VmLayout::name_of_data_disk(&file)?.to_owned().try_into().ok()?;
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        let path = entry.path();
        let size_bytes = Qcow2Header::read(&path).ok().map(|header| header.virtual_bytes);
        Some(FoundDisk { name, path, size_bytes, used_bytes: files::allocated_bytes(&metadata) })
    };
    let mut disks: Vec<FoundDisk> = entries.filter_map(disk).collect();
    disks.sort_by(|one, other| one.name.cmp(&other.name));
    disks
}

/// Returns what has the name of a data disk of this VM and is no file: a link, a FIFO, a directory.
pub(in crate::vm) fn impostors(files: &VmLayout) -> Vec<(DiskName, PathBuf)> {
    let entries = fs::read_dir(files.data_disks()).into_iter().flatten().flatten();
    let impostor = |entry: fs::DirEntry| {
        let file = entry.file_name().into_string().ok()?;
        let name = VmLayout::name_of_data_disk(&file)?.to_owned().try_into().ok()?;
        let is_file = entry.metadata().is_ok_and(|metadata| metadata.is_file());
        (!is_file).then(|| (name, entry.path()))
    };
    entries.filter_map(impostor).collect()
}

/// Returns the names of VMs that have data disks, or had some.
pub(in crate::vm) fn owners(layout: &ProjectLayout) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(layout.data_disks()).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_vm_name(name))
}

/// Checks, before anything is created, that a VM can have its data disks: those that are there are
/// sound, no larger than declared, and none has disappeared.
///
/// # Errors
/// Returns [`VmDiskError::DataGone`], [`VmDiskError::DataShrinking`], [`VmDiskError::DataDamaged`],
/// [`VmIoError::File`] or [`VmError::Qemu`].
pub(in crate::vm) fn check(
    vm: &str,
    disks: &[DataDisk],
    recorded: Option<&Record>,
    layout: &ProjectLayout,
) -> Result<(), VmError> {
    let files = layout.vm(vm);
    for disk in disks {
        let had = recorded.is_some_and(|record| has(&record.data_disks, &disk.name));
        match size_of(vm, &disk.name, &files)? {
            None if had => return Err(gone(vm, &disk.name, &files)),
            Some(bytes) if bytes > disk.size_bytes => {
                let (vm, name) = (vm.to_owned(), disk.name.to_string());
                let (has, wanted) = (ByteSize(bytes), ByteSize(disk.size_bytes));
                return Err(VmDiskError::DataShrinking { vm, name, has, wanted }.into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks that all data disks of a VM are there and sound, so that QEMU may open them.
///
/// # Errors
/// Returns errors as [`check`] does.
pub(in crate::vm) fn check_present(
    vm: &str,
    disks: &[DataDisk],
    files: &VmLayout,
) -> Result<(), VmError> {
    for disk in disks {
        if size_of(vm, &disk.name, files)?.is_none() {
            return Err(gone(vm, &disk.name, files));
        }
    }
    Ok(())
}

fn gone(vm: &str, name: &DiskName, files: &VmLayout) -> VmError {
    let (vm, disk) = (vm.to_owned(), files.data_disk(name.as_str()));
    VmDiskError::DataGone { vm, name: name.to_string(), disk }.into()
}

fn has(disks: &[DataDisk], name: &DiskName) -> bool {
    disks.iter().any(|disk| disk.name == *name)
}

/// Returns the virtual size of a data disk; `None` if it is not there.
fn size_of(vm: &str, name: &DiskName, files: &VmLayout) -> Result<Option<u64>, VmError> {
    let path = files.data_disk(name.as_str());
    let refused = |path: &Path| {
        let path = path.to_owned();
        move |source| VmIoError::File { action: FileAction::Read, path, source }
    };
    let directory = files.data_disks();
    for directory in directory.parent().into_iter().chain([directory.as_path()]) {
        if !trusted::directory(directory).map_err(refused(directory))? {
            return Ok(None);
        }
    }
    match trusted::open(&path) {
        Err(error) if trusted::is_absence(&error) => return Ok(None),
        opened => drop(opened.map_err(refused(&path))?),
    }
    match of_qemu(name, files).check() {
        Ok(facts) => Ok(Some(facts.virtual_bytes)),
        Err(source @ qemu::QemuError::NotQcow2 { .. }) => {
            let (vm, name) = (vm.to_owned(), name.to_string());
            Err(VmDiskError::DataDamaged { vm, name, disk: path, source: Box::new(source) }.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Ensures that a VM has its data disks, each with its declared size, and reports those that it
/// does not have any more. If a VM that is not `declared` has a disk with the name of a new one, it
/// says so: the VM may have been renamed.
///
/// # Errors
/// Returns errors as [`check`] does, and those of creating and growing a disk.
pub(in crate::vm) fn ensure(
    vm: &str,
    disks: &[DataDisk],
    recorded: Option<&Record>,
    declared: &[String],
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    let files = project.files(vm);
    for disk in disks {
        match size_of(vm, &disk.name, &files)? {
            None => {
                create(vm, disk, &files, project)?;
                report_namesakes(vm, &disk.name, declared, &files, project);
            }
            Some(bytes) if bytes < disk.size_bytes => {
                let (path, context) = (files.data_disk(disk.name.as_str()), project.context);
                refuse_in_use(&path)?;
                resize_disk(&path, disk.size_bytes, &context.environment, &context.cancel)?;
            }
            Some(_) => {}
        }
    }
    for detached in recorded.iter().flat_map(|record| &record.data_disks) {
        if !has(disks, &detached.name) {
            report_detached(vm, &detached.name, project.context, &files);
        }
    }
    Ok(())
}

/// Reports the disks with the name of a new one of `vm` that belong to VMs which are neither
/// declared nor clones.
fn report_namesakes(
    vm: &str,
    name: &DiskName,
    declared: &[String],
    files: &VmLayout,
    project: ProjectRef<'_>,
) {
    for owner in owners(project.layout).filter(|owner| owner != vm && !declared.contains(owner)) {
        let record = Record::load(project.layout, &owner).ok().flatten();
        if record.as_ref().is_some_and(|record| record.cloned.is_some()) {
            continue;
        }
        let disks = found(&project.files(&owner));
        let Some(old) = disks.iter().find(|disk| disk.name == *name) else { continue };
        let stopped = if record.is_some() { format!("{owner} {vm}") } else { vm.to_owned() };
        let message = format!(
            "disk `{name}` of VM `{vm}` is new and blank; that of VM `{owner}`, which is not in \
            castra.toml any more, is kept: {old}. If `{vm}` is to have its data: castra down \
            {stopped} && mv -i {old} {new} && castra up {vm}",
            old = old.path.display(),
            new = files.data_disk(name.as_str()).display(),
        );
        project.report(&Event::Warning { message });
    }
}

fn report_detached(vm: &str, name: &DiskName, context: &RuntimeContext, files: &VmLayout) {
    if !files.data_disk(name.as_str()).exists() {
        return;
    }
    let message = format!(
        "disk `{name}` of VM `{vm}` is not in castra.toml any more: it is detached, and kept until \
        `castra clean {vm} --data-disk {name}`"
    );
    context.reporter.report(&Event::Warning { message });
}

/// Creates a blank disk under a temporary name and publishes it by renaming.
fn create(
    vm: &str,
    disk: &DataDisk,
    files: &VmLayout,
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    let path = files.data_disk(disk.name.as_str());
    let failed =
        |source| VmIoError::File { action: FileAction::Create, path: path.clone(), source };
    create_private_directory(&files.data_disks()).map_err(failed)?;
    require_space(&files.data_disks(), &Peak { overlay: OVERLAY_BYTES, ..Peak::default() })?;
    remove_unfinished_disk(&temporary_name(&path))?;
    let temporary = new_beside(&path).map_err(failed)?;
    create_blank_disk(&temporary, disk.size_bytes)?;
    failpoint::reach(Point::OverlayMade);
    temporary.persist_noclobber(&path).map_err(|error| failed(error.error))?;
    sync_directories(files).map_err(failed)?;
    let (vm, size_bytes) = (vm.to_owned(), disk.size_bytes);
    project.report(&Event::OverlayCreated { vm, path, size_bytes });
    Ok(())
}

/// Syncs the directory of a VM's data disks and those above it, which may be new.
fn sync_directories(files: &VmLayout) -> io::Result<()> {
    for directory in files.data_disks().ancestors().take(3) {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Returns the data disks of a suspended VM with their stamps.
///
/// # Errors
/// Returns [`VmIoError::File`].
pub(in crate::vm) fn saved(
    disks: &[DataDisk],
    files: &VmLayout,
) -> Result<Vec<SavedDisk>, VmIoError> {
    let one = |disk: &DataDisk| {
        let path = files.data_disk(disk.name.as_str());
        let stamp = DiskStamp::of(&path).map_err(|source| VmIoError::File {
            action: FileAction::LookAt,
            path,
            source,
        })?;
        Ok(SavedDisk { name: disk.name.clone(), stamp, sha256: None })
    };
    disks.iter().map(one).collect()
}

/// Adds the digests of a suspended VM's data disks, as far as they can be computed.
pub(in crate::vm) fn hash(saved: &mut [SavedDisk], files: &VmLayout, cancel: &Cancel) {
    for disk in saved {
        disk.sha256 = files::sha256(&files.data_disk(disk.name.as_str()), cancel).ok();
    }
}

/// Checks that a suspended VM's data disks are those of its suspend. The stamp of one that turns
/// out to be a copy is updated.
///
/// # Errors
/// Returns [`SuspendError::NotResumable`], and errors as [`check`] does.
pub(in crate::vm) fn recognise(
    saved: &mut SuspendRecord,
    record: &Record,
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    let files = project.files(&record.name);
    check_present(&record.name, &record.data_disks, &files)?;
    for disk in &record.data_disks {
        let known = saved.data_disks.iter_mut().find(|known| known.name == disk.name);
        let path = files.data_disk(disk.name.as_str());
        let is_same = match known {
            Some(SavedDisk { stamp, sha256, .. }) => {
                stamp.recognises(&path, sha256.as_deref(), project.cancel())?
            }
            None => false,
        };
        if !is_same {
            let reason = format!("its disk `{}` has changed since", disk.name);
            let vm = record.name.clone();
            return Err(SuspendError::NotResumable { vm, reason }.into());
        }
    }
    Ok(())
}

/// Checks that the VM `new` has no data disks of these names.
///
/// # Errors
/// Returns [`VmDiskError::DataThere`].
pub(in crate::vm) fn check_free(
    new: &str,
    disks: &[DataDisk],
    layout: &ProjectLayout,
) -> Result<(), VmDiskError> {
    let files = layout.vm(new);
    for disk in disks {
        let path = files.data_disk(disk.name.as_str());
        if path.symlink_metadata().is_ok() {
            let (vm, name) = (new.to_owned(), disk.name.to_string());
            return Err(VmDiskError::DataThere { vm, name, disk: path });
        }
    }
    Ok(())
}

/// Copies the data disks of a suspended VM to its clone, sharing their blocks where the filesystem
/// can, and returns them as the clone's saved ones. `note` records each before it has its name.
///
/// # Errors
/// Returns [`VmIoError::File`], errors of a full filesystem, those of [`check_free`], and those of
/// `note`.
pub(in crate::vm) fn copy(
    disks: &[SavedDisk],
    from: &VmLayout,
    to: &VmLayout,
    note: &mut dyn FnMut(SavedDisk) -> Result<(), VmError>,
    cancel: &Cancel,
) -> Result<Vec<SavedDisk>, VmError> {
    disks.iter().map(|disk| copy_one(disk, from, to, note, cancel)).collect()
}

fn copy_one(
    disk: &SavedDisk,
    from: &VmLayout,
    to: &VmLayout,
    note: &mut dyn FnMut(SavedDisk) -> Result<(), VmError>,
    cancel: &Cancel,
) -> Result<SavedDisk, VmError> {
    let [from, path] = [from, to].map(|files| files.data_disk(disk.name.as_str()));
    let failed =
        |source| VmIoError::File { action: FileAction::Create, path: path.clone(), source };
    create_private_directory(&to.data_disks()).map_err(failed)?;
    remove_unfinished_disk(&temporary_name(&path))?;
    let temporary = new_beside(&path).map_err(failed)?;
    let source = trusted::open(&from).map_err(|source| {
        let (action, path) = (FileAction::Read, from.clone());
        VmIoError::File { action, path, source }
    })?;
    let copy = OpenOptions::new().read(true).write(true).open(&temporary).map_err(failed)?;
    let sha256 = Digest::Sha256(String::new());
    let (digest, _) = files::copy(source, &copy, &sha256, cancel).at("copy", &from)?;
    copy.sync_all().map_err(failed)?;
    let stamp = DiskStamp::of(&temporary).map_err(failed)?;
    let sha256 = Some(digest.hex().to_owned());
    let made = SavedDisk { name: disk.name.clone(), stamp, sha256 };
    note(made.clone())?;
    failpoint::reach(Point::CloneDataCopied);
    temporary.persist_noclobber(&path).map_err(|error| failed(error.error))?;
    sync_directories(to).map_err(failed)?;
    Ok(made)
}

/// Removes the data disks that were made for an unfinished clone. Anything else under their names
/// stays.
///
/// # Errors
/// Returns errors as [`remove_disk`] does.
pub(in crate::vm) fn remove_of_clone(record: &Record, files: &VmLayout) -> Result<(), VmError> {
    for disk in &record.data_disks {
        let path = files.data_disk(disk.name.as_str());
        remove_unfinished_disk(&temporary_name(&path))?;
        let made = record.cloned.as_ref().and_then(|cloned| cloned.made_data_disk(&disk.name));
        remove_made_disk(&path, made)?;
    }
    let _ = fs::remove_dir(files.data_disks());
    Ok(())
}
