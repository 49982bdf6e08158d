//! Cloning a suspended VM. Both share the disk's content so far, and the saved memory.
//!
//! ```text
//!   before:  overlay ─► base          after:  overlay ─► layer ─► base
//!                                             NEW's overlay ─┘
//! ```
//!
//! The layer is the overlay's own file under another name, never written to again. A clone's record
//! says that it is incomplete until all of it is there; the next operation removes what a killed
//! castra leaves of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::config::{BootProfile, DiskPath, is_vm_name};
use crate::failpoint::{self, Point};
use crate::files::{self, create_private_directory};
use crate::hex::hex;
use crate::host::random_bytes;
use crate::layout::{OVERLAY_TEMPORARY, ProjectLayout, VmLayout, frozen_layer};
use crate::qemu::{Qcow2Header, create_overlay};
use crate::report::Event;
use crate::trusted;
use crate::vm::disk::{check_present, confirm_place, data, relative, remove_unfinished_clone};
use crate::vm::error::{CloneError, FileAction, SuspendError, VmError, VmIoError};
use crate::vm::journal;
use crate::vm::kernel::share_kernel;
use crate::vm::lock::lock;
use crate::vm::project::ProjectRef;
use crate::vm::record::{
    CloneRecord, DiskStamp, FrozenLayer, Progress, Record, SuspendRecord, VmState, observe,
    recorded_vm,
};
use crate::vm::start::cancel_resume;

/// Largest file of a natively booted guest, in bytes: flash memory of 8 MiB.
const MAX_NATIVE_BYTES: u64 = 8 << 20;

/// Clones the suspended VM `vm` as `new`, also suspended, with its disk at `overlay`.
///
/// # Errors
/// Returns [`CloneError::NotSuspended`], [`CloneError::Exists`], [`CloneError::BadName`],
/// [`crate::vm::RecordError::Unknown`], [`VmIoError::File`] or [`VmError::Qemu`].
pub fn clone(
    vm: &str,
    new: &str,
    overlay: &DiskPath,
    project: ProjectRef<'_>,
) -> Result<Record, VmError> {
    let _span = tracing::debug_span!("clone", %vm, new).entered();
    journal::record_one("clone", new, project, |project| clone_one(vm, new, overlay, project))
}

fn clone_one(
    vm: &str,
    new: &str,
    overlay: &DiskPath,
    project: ProjectRef<'_>,
) -> Result<Record, VmError> {
    check_clone(vm, new, overlay, project.layout)?;
    // Always in the same order, so that two castras that clone crosswise do not wait for each
    // other.
    let (first, second) = if vm < new { (vm, new) } else { (new, vm) };
    let _locks = [lock(first, project)?, lock(second, project)?];
    let mut source = recorded_vm(Some(vm), project.layout)?;
    match observe(&source, &project.files(vm)).0 {
        VmState::Suspended => {}
        VmState::Resuming => source = cancel_resume(source, project)?,
        state => return Err(CloneError::NotSuspended { vm: vm.to_owned(), state }.into()),
    }
    if let Some(unfinished) = Record::load(project.layout, new)?.filter(Record::is_unfinished_clone)
    {
        remove_unfinished_clone(&unfinished, overlay, project.layout)?;
    }
    // Another process may have been faster.
    check_clone(vm, new, overlay, project.layout)?;
    let saved = source.suspended.clone();
    let saved = saved
        .ok_or_else(|| CloneError::NotSuspended { vm: vm.to_owned(), state: VmState::Stopped })?;
    Cloning { new, overlay, saved, project }.run(source)
}

/// Checks that there is a VM `vm` and none `new`, before anything is done for a clone.
///
/// # Errors
/// Returns [`CloneError::Exists`], [`CloneError::BadName`] or
/// [`crate::vm::RecordError::Unknown`].
pub fn check_clone(
    vm: &str,
    new: &str,
    overlay: &DiskPath,
    layout: &ProjectLayout,
) -> Result<(), VmError> {
    let source = recorded_vm(Some(vm), layout)?;
    if !is_vm_name(new) {
        return Err(CloneError::BadName { name: new.to_owned() }.into());
    }
    confirm_place(new, overlay)?;
    let unfinished = Record::load(layout, new)?.is_some_and(|record| record.is_unfinished_clone());
    let is_there = Record::is_there(layout, new) || overlay.exists();
    if vm == new || (is_there && !unfinished) {
        return Err(CloneError::Exists { vm: new.to_owned() }.into());
    }
    if !unfinished {
        data::check_free(new, &source.data_disks, layout)?;
    }
    Ok(())
}

struct Cloning<'a> {
    new: &'a str,
    overlay: &'a DiskPath,
    saved: SuspendRecord,
    project: ProjectRef<'a>,
}

impl Cloning<'_> {
    fn run(mut self, source: Record) -> Result<Record, VmError> {
        let disk = source.overlay_path(self.project.layout);
        // The layer is created beside the disk.
        confirm_place(&source.name, &self.overlay.at(disk.clone()))?;
        check_present(&source.name, &disk)?;
        if !self.saved.recognises(&disk, self.project.cancel())? {
            let reason = "its disk has changed since".into();
            return Err(SuspendError::NotResumable { vm: source.name, reason }.into());
        }
        data::recognise(&mut self.saved, &source, self.project)?;
        let mut made =
            Record::new(self.project.layout, self.new, self.overlay, source.base.clone());
        made.layer.clone_from(&source.layer);
        made.provisioned.clone_from(&source.provisioned);
        made.data_disks.clone_from(&source.data_disks);
        made.progress = Progress::Cloning;
        made.cloned = Some(CloneRecord {
            of: source.name.clone(),
            cpus: self.saved.boot.cpus,
            cpu: self.saved.boot.emulated_cpu().cloned(),
            memory_mib: self.saved.boot.memory_mib,
            disk_bytes: Qcow2Header::read(&disk)?.virtual_bytes,
            proxy: self.saved.boot.proxy,
            boot_profile: match self.saved.boot.has_agent() {
                true => BootProfile::Managed,
                false => BootProfile::Native,
            },
            firmware: self.saved.boot.native.as_ref().map(|native| native.firmware),
            made_disk: None,
            made_data_disks: Vec::new(),
        });
        made.save(self.project.layout)?;
        failpoint::reach(Point::CloneBegun);
        let mut before = source;
        before.suspended = Some(self.saved.clone());
        let made = self.freeze(&before, &disk).and_then(|source| {
            failpoint::reach(Point::CloneFrozen);
            self.fill(made, &source)
        });
        if made.is_err()
            && let Err(error) = self.undo(&before, &disk)
        {
            tracing::debug!(%error, "the rest of a failed clone stays");
        }
        made
    }

    /// Removes what there is of the clone, and puts the source's disk back into its place. What
    /// cannot be undone stays as a killed castra leaves it.
    fn undo(&self, before: &Record, disk: &Path) -> Result<(), VmError> {
        let layout = self.project.layout;
        if let Some(made) = Record::load(layout, self.new)? {
            if !made.is_unfinished_clone() {
                // It failed after the last record was written: the layer is in use.
                return Ok(());
            }
            remove_unfinished_clone(&made, self.overlay, layout)?;
        }
        self.thaw(before, disk)
    }

    /// Reverses [`Self::freeze`], in the opposite order, once no other disk is based on the layer.
    fn thaw(&self, before: &Record, disk: &Path) -> Result<(), VmError> {
        let Some(mut frozen) = Record::load(self.project.layout, &before.name)? else {
            return Ok(());
        };
        let Some(layer) = frozen.frozen.get(before.frozen.len()) else { return Ok(()) };
        let layer = disk.with_file_name(&layer.name);
        let failed =
            |source| VmIoError::File { action: FileAction::Create, path: layer.clone(), source };
        let overlay = DiskStamp::of(disk).map_err(failed)?;
        if overlay != self.saved.disk {
            frozen.suspended =
                Some(SuspendRecord { next_disk: Some(overlay), ..self.saved.clone() });
            frozen.save(self.project.layout)?;
            let directory = disk.parent().unwrap_or(Path::new("/"));
            let id: [u8; 8] = random_bytes().map_err(VmIoError::Random)?;
            let link = directory.join(format!("{OVERLAY_TEMPORARY}{}", hex(&id)));
            fs::set_permissions(&layer, fs::Permissions::from_mode(0o600)).map_err(failed)?;
            fs::hard_link(&layer, &link).map_err(failed)?;
            fs::rename(&link, disk).map_err(failed)?;
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        }
        before.save(self.project.layout)?;
        fs::remove_file(&layer).map_err(failed)?;
        Ok(())
    }

    /// Puts the source on a new overlay, and leaves its disk as a layer below that. At every
    /// moment, the source's disk is under its name.
    fn freeze(&self, before: &Record, disk: &Path) -> Result<Record, VmError> {
        let id: [u8; 8] = random_bytes().map_err(VmIoError::Random)?;
        let layer = frozen_layer(disk, &hex(&id));
        let failed =
            |source| VmIoError::File { action: FileAction::Create, path: layer.clone(), source };
        let name = PathBuf::from(layer.file_name().unwrap_or_default());
        let directory = disk.parent().unwrap_or(Path::new("/"));

        // 1. The new overlay, based on a layer that is not there yet.
        let overlay = self.new_overlay(directory, &name, disk)?;
        let stamp = DiskStamp::of(overlay.path()).map_err(failed)?;
        let overlay_sha256 = files::sha256(overlay.path(), self.project.cancel())?;
        // Hashed when the VM was suspended.
        let sha256 = match &self.saved.disk_sha256 {
            Some(sha256) => sha256.clone(),
            None => files::sha256(disk, self.project.cancel())?,
        };

        // 2. The layer: a second name of the disk.
        fs::hard_link(disk, &layer).map_err(failed)?;
        let layer_stamp = DiskStamp::of(&layer).map_err(failed)?;

        // 3. Recorded: whichever disk has the name, before the renaming or after it, is the right
        //    one.
        let mut frozen = before.clone();
        frozen.frozen.push(FrozenLayer { name, stamp: layer_stamp, sha256: Some(sha256) });
        frozen.suspended = Some(SuspendRecord { next_disk: Some(stamp), ..self.saved.clone() });
        if let Err(error) = frozen.save(self.project.layout) {
            before.save(self.project.layout)?;
            let _ = fs::remove_file(&layer);
            return Err(error.into());
        }

        // 4. The overlay takes the disk's name, or everything is as before.
        if let Err(error) = overlay.persist(disk) {
            before.save(self.project.layout)?;
            let _ = fs::remove_file(&layer);
            return Err(failed(error.error).into());
        }
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        fs::set_permissions(&layer, fs::Permissions::from_mode(0o400)).map_err(failed)?;

        // 5. Recorded: only the overlay is the disk.
        let disk_sha256 = Some(overlay_sha256);
        frozen.suspended =
            Some(SuspendRecord { disk: stamp, disk_sha256, next_disk: None, ..self.saved.clone() });
        frozen.save(self.project.layout)?;
        Ok(frozen)
    }

    /// Makes the clone's own disk and memory, and its record last.
    fn fill(&self, mut made: Record, source: &Record) -> Result<Record, VmError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| VmIoError::File { action: FileAction::Create, path, source }
        };
        let source_disk = source.overlay_path(self.project.layout);
        let layer = source.frozen.last().map(|layer| source_disk.with_file_name(&layer.name));
        let layer = layer.unwrap_or_default();
        let directory = self.overlay.parent().unwrap_or(Path::new("/"));
        create_private_directory(directory).map_err(failed(self.overlay))?;
        confirm_place(self.new, self.overlay)?;
        let temporary = self.new_overlay(directory, &relative(directory, &layer), &layer)?;
        confirm_place(self.new, self.overlay)?;
        let stamp = DiskStamp::of(temporary.path()).map_err(failed(self.overlay))?;
        self.note(&mut made, |cloned| cloned.made_disk = Some(stamp))?;
        temporary
            .persist_noclobber(self.overlay)
            .map_err(|error| failed(self.overlay)(error.error))?;
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed(self.overlay))?;
        let (from, to) = (
            self.project.files(&source.name).machine_state(),
            self.project.files(self.new).machine_state(),
        );
        share(&from, &to).map_err(failed(&to))?;
        if !self.saved.boot.has_agent() {
            self.copy_native(&source.name)?;
        }
        for kernel in source.kept_kernel.iter().chain(&self.saved.boot.kernel) {
            share_kernel(kernel, &self.project.files(&source.name), &self.project.files(self.new));
        }
        made.kept_kernel.clone_from(&source.kept_kernel);
        let data_disks = data::copy(
            &self.saved.data_disks,
            &self.project.files(&source.name),
            &self.project.files(self.new),
            &mut |disk| self.note(&mut made, |cloned| cloned.made_data_disks.push(disk)),
            self.project.cancel(),
        )?;
        let disk = DiskStamp::of(self.overlay).map_err(failed(self.overlay))?;
        made.frozen.clone_from(&source.frozen);
        let disk_sha256 = Some(files::sha256(self.overlay, self.project.cancel())?);
        let mut saved =
            SuspendRecord { disk, disk_sha256, data_disks, next_disk: None, ..self.saved.clone() };
        // A port of this machine leads to one VM, and these were given to the other one.
        saved.boot.added_forwards.clear();
        if let Some(auto) = &mut saved.boot.auto_forwards {
            auto.last.clear();
        }
        made.suspended = Some(saved);
        made.progress = Progress::Suspended;
        if let Some(cloned) = &mut made.cloned {
            (cloned.made_disk, cloned.made_data_disks) = (None, Vec::new());
        }
        // This one first: while the other says that the clone is incomplete, both are removed
        // together.
        made.save_as_new_clone(self.project.layout)?;
        made.save(self.project.layout)?;
        let (vm, of) = (self.new.to_owned(), source.name.clone());
        self.project.report(&Event::VmCloned { vm, of });
        Ok(made)
    }

    /// Records what is made for the clone, before it has its name.
    fn note(&self, made: &mut Record, note: impl FnOnce(&mut CloneRecord)) -> Result<(), VmError> {
        if let Some(cloned) = &mut made.cloned {
            note(cloned);
        }
        Ok(made.save(self.project.layout)?)
    }

    /// Copies what belongs to a natively booted guest: the key that it lets in, its server's key,
    /// the variables of its firmware, and the data of its cloud-init.
    fn copy_native(&self, source: &str) -> Result<(), VmError> {
        let pair = [source, self.new].map(|vm| self.project.files(vm));
        let paths: [fn(&VmLayout) -> PathBuf; 4] =
            [VmLayout::client_key, VmLayout::server_key, VmLayout::uefi_variables, VmLayout::seed];
        for path in paths {
            let [from, to] = [path(&pair[0]), path(&pair[1])];
            let failed =
                |source| VmIoError::File { action: FileAction::Create, path: to.clone(), source };
            match trusted::read(&from, MAX_NATIVE_BYTES) {
                Ok(bytes) => files::write_atomically(&to, &bytes, 0o600).map_err(failed)?,
                Err(error) if trusted::is_absence(&error) => {}
                Err(source) => {
                    let (action, path) = (FileAction::Read, from);
                    return Err(VmIoError::File { action, path, source }.into());
                }
            }
        }
        Ok(())
    }

    fn new_overlay(
        &self,
        directory: &Path,
        backing: &Path,
        like: &Path,
    ) -> Result<tempfile::NamedTempFile, VmError> {
        let failed = |source| VmIoError::File {
            action: FileAction::Create,
            path: directory.to_owned(),
            source,
        };
        let size_bytes = Qcow2Header::read(like)?.virtual_bytes;
        let temporary = tempfile::Builder::new()
            .prefix(OVERLAY_TEMPORARY)
            .tempfile_in(directory)
            .map_err(failed)?;
        // The layer may not have its name yet.
        create_overlay(temporary.path(), backing, size_bytes)?;
        Ok(temporary)
    }
}

/// Links saved memory, which never changes, or copies it where it cannot be linked.
fn share(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to).or_else(|_| {
        fs::copy(from, to)?;
        File::open(to)?.sync_all()
    })
}
