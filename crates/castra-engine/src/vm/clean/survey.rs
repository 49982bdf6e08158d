//! Survey of a project: the files to remove, and those that stay, with the reason. Changes nothing.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Bounds, OutOfBounds};
use crate::error::one_line;
use crate::files::{Lock, TEMPORARY};
use crate::layout::{
    OVERLAY_TEMPORARY, ProjectLayout, SocketsLayout, is_frozen_layer, is_image_lock,
};
use crate::qemu::{DiskName, running_qemu};
use crate::size::ByteSize;
use crate::trusted;
use crate::vm::disk::{FoundDisk, check_removable, check_unfinished, data, temporary_name};
use crate::vm::error::{FileAction, VmDiskError, VmError, VmIoError};
use crate::vm::monitor::is_in_use;
use crate::vm::project::ProjectRef;
use crate::vm::record::{Record, RecordError, VmState, observe, place};

use super::foundations::{FileId, disks_in, foundations, id_of, known_foundations};
use super::{CleanOptions, Cleaned, CleanedKind, DataDisks, Kept};

/// Scope and options of a survey.
pub(super) struct Survey<'a> {
    pub(super) names: &'a [String],
    pub(super) options: CleanOptions<'a>,
    pub(super) bounds: &'a Arc<Bounds>,
    pub(super) project: ProjectRef<'a>,
}

/// Result of a survey.
#[derive(Default)]
pub(super) struct Found {
    /// Things to remove, in this order.
    pub(super) planned: Vec<Cleaned>,
    /// Things that stay.
    pub(super) kept: Vec<Kept>,
    /// Locks of images to be removed, held until they are gone.
    pub(super) locks: Vec<Lock>,
}

/// A VM, or its remains.
struct Vm {
    name: String,
    record: Result<Option<Record>, RecordError>,
    standing: Standing,
}

enum Standing {
    /// Stopped, with nothing in memory.
    Free,
    /// In use, not to be touched.
    Busy(VmState),
}

impl Found {
    fn plan(&mut self, kind: CleanedKind, vm: Option<&str>, path: PathBuf) {
        let is_there = fs::symlink_metadata(&path).is_ok();
        if is_there && !self.planned.iter().any(|planned| planned.path == path) {
            self.planned.push(Cleaned { kind, vm: vm.map(str::to_owned), path, freed_bytes: 0 });
        }
    }

    /// Returns `true` if no castra works on the image of this lock, nor will until this is dropped.
    fn take_lock(&mut self, path: PathBuf) -> bool {
        if self.locks.iter().any(|lock| lock.is_on(&path)) {
            return true;
        }
        match trusted::open(&path).map(|file| Lock::try_hold(file, &path)) {
            // No castra has ever worked on it.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(Ok(Some(lock))) => {
                self.locks.push(lock);
                true
            }
            Ok(_) => false,
        }
    }

    fn keep(&mut self, vm: Option<&str>, why: String) {
        self.kept.push(Kept { vm: vm.map(str::to_owned), why });
    }
}

impl Survey<'_> {
    pub(super) fn run(self) -> Result<Found, VmError> {
        let vms: Vec<Vm> =
            vm_names(self.project.layout).into_iter().map(|name| self.look_at(name)).collect();
        let known: Vec<&str> = vms.iter().map(|vm| vm.name.as_str()).collect();
        if let Some(unknown) = self.names.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(RecordError::unknown(unknown, &known).into());
        }
        let mut found = Found::default();
        for vm in vms.iter().filter(|vm| self.names.is_empty() || self.names.contains(&vm.name)) {
            self.vm(vm, &mut found);
        }
        if let DataDisks::Named(wanted) = self.options.data_disks {
            self.check_named(wanted, &vms)?;
        }
        if self.options.disks {
            self.spare_foundations(&vms, &mut found);
        }
        if self.names.is_empty() {
            self.project(&vms, &mut found);
        }
        Ok(found)
    }

    /// Checks that each data disk that is to be removed is there, or was.
    fn check_named(&self, wanted: &[DiskName], vms: &[Vm]) -> Result<(), VmDiskError> {
        let vms = vms.iter().filter(|vm| self.names.is_empty() || self.names.contains(&vm.name));
        let of_vm = |vm: &Vm| {
            let files = self.project.files(&vm.name);
            let impostors = data::impostors(&files).into_iter().map(|(name, _)| name);
            let record = vm.record.as_ref().ok().and_then(Option::as_ref);
            let recorded = record.into_iter().flat_map(|record| record.data_disks.clone());
            let names = data::found(&files).into_iter().map(|disk| disk.name);
            names.chain(impostors).chain(recorded.map(|disk| disk.name)).collect::<Vec<_>>()
        };
        let known: BTreeSet<DiskName> = vms.flat_map(of_vm).collect();
        match wanted.iter().find(|name| !known.contains(*name)) {
            Some(name) => {
                let known = known.iter().map(DiskName::to_string).collect();
                Err(VmDiskError::NoDataDisk { name: name.to_string(), known })
            }
            None => Ok(()),
        }
    }

    fn look_at(&self, name: String) -> Vm {
        let files = self.project.files(&name);
        let record = Record::load(self.project.layout, &name);
        let standing = match &record {
            _ if running_qemu(&files.pidfile()).is_some() => Standing::Busy(VmState::Running),
            Ok(Some(record)) => match observe(record, &files).0 {
                state if state.is_alive() || state == VmState::Suspended => Standing::Busy(state),
                _ => Standing::Free,
            },
            // An unreadable record does not say if the saved state counts.
            Err(_) if files.machine_state().exists() && !self.options.records => {
                Standing::Busy(VmState::Suspended)
            }
            Ok(None) | Err(_) => Standing::Free,
        };
        Vm { name, record, standing }
    }

    fn vm(&self, vm: &Vm, found: &mut Found) {
        let (name, files) = (vm.name.as_str(), self.project.files(&vm.name));
        if let Err(error) = &vm.record {
            match (self.options.records, &vm.standing) {
                (true, Standing::Free) => {
                    found.plan(CleanedKind::Record, Some(name), files.record())
                }
                (true, Standing::Busy(_)) => {
                    found.keep(
                        Some(name),
                        format!("{}; stop it first: castra down {name}", one_line(error)),
                    );
                }
                (false, _) => {
                    found.keep(Some(name), format!("{}; --records quarantines it", one_line(error)))
                }
            }
        }
        if let Standing::Busy(state) = vm.standing {
            // That of a VM with an unreadable record is reported already.
            if vm.record.is_ok() {
                found
                    .keep(Some(name), format!("VM `{name}` is {}: leaving it alone", state.name()));
            }
            return;
        }
        self.data_disks(vm, found);
        let overlay = self.overlay(vm);
        let unfinished = temporary_name(&overlay);
        if self.confirm(&overlay).is_ok() && check_unfinished(&unfinished).is_ok() {
            found.plan(CleanedKind::Leftover, Some(name), unfinished);
        }
        // The logs of a VM with an unreadable record may say what happened to it.
        if vm.record.is_ok() {
            for log in files.logs() {
                found.plan(CleanedKind::Log, Some(name), log);
            }
        }
        let sockets = self.project.sockets(name);
        // The sockets of a VM that was started here, and whose project was moved or removed since,
        // are in use.
        if sockets.own_project().is_some() && !is_in_use(&sockets) {
            found.plan(CleanedKind::Leftover, Some(name), sockets.directory().to_owned());
        }
        if self.options.disks
            && let Some(why) = self.why_disk_stays(name, &overlay)
        {
            found.keep(Some(name), why);
            return;
        }
        if self.options.disks && vm.record.is_ok() {
            found.plan(CleanedKind::Disk, Some(name), overlay);
            found.plan(CleanedKind::Vm, Some(name), files.directory().to_owned());
            return;
        }
        for path in [files.initramfs(), files.unfinished_machine_state()] {
            found.plan(CleanedKind::Leftover, Some(name), path);
        }
        if vm.record.is_ok() {
            // The VM is not suspended, so its saved state counts no more.
            found.plan(CleanedKind::Leftover, Some(name), files.machine_state());
        }
        for entry in entries(files.directory()).filter(|entry| starts_with(entry, TEMPORARY)) {
            found.plan(CleanedKind::Leftover, Some(name), entry.path());
        }
    }

    /// Surveys the data disks of a VM that does not run, which stay unless they are named.
    fn data_disks(&self, vm: &Vm, found: &mut Found) {
        let (name, files) = (vm.name.as_str(), self.project.files(&vm.name));
        for entry in entries(&files.data_disks()) {
            let is_unfinished = entry.file_name().as_encoded_bytes().starts_with(b".");
            if is_unfinished && check_unfinished(&entry.path()).is_ok() {
                found.plan(CleanedKind::Leftover, Some(name), entry.path());
            }
        }
        let record = vm.record.as_ref().ok().and_then(Option::as_ref);
        for disk in data::found(&files) {
            match self.options.data_disks.include(&disk.name) {
                true => match check_removable(&disk.path) {
                    Ok(()) => found.plan(CleanedKind::DataDisk, Some(name), disk.path),
                    Err(error) => found.keep(Some(name), one_line(&error)),
                },
                // It is mentioned where its VM goes, or has gone.
                false if self.options.disks || record.is_none() => {
                    found.keep(Some(name), sentence_of_kept(name, &disk));
                }
                false => {}
            }
        }
        for (disk, path) in data::impostors(&files) {
            if self.options.data_disks.include(&disk)
                && let Err(error) = check_removable(&path)
            {
                found.keep(Some(name), one_line(&error));
            }
        }
        for gone in record.into_iter().flat_map(|record| &record.data_disks) {
            let path = files.data_disk(gone.name.as_str());
            let is_gone = fs::symlink_metadata(&path).is_err();
            if is_gone && self.options.data_disks.include(&gone.name) {
                let (kind, vm) = (CleanedKind::DataDisk, Some(name.to_owned()));
                found.planned.push(Cleaned { kind, vm, path, freed_bytes: 0 });
            }
        }
    }

    fn overlay(&self, vm: &Vm) -> PathBuf {
        match &vm.record {
            Ok(Some(record)) => record.overlay_path(self.project.layout),
            _ => self.project.layout.overlay(&vm.name),
        }
    }

    /// Returns the reason why a VM's disk must stay, if there is one.
    fn why_disk_stays(&self, vm: &str, overlay: &Path) -> Option<String> {
        if let Some(other) = place::other_project(overlay, vm, self.project.layout) {
            let (disk, other) = (overlay.display(), other.display());
            return Some(format!("{disk} is also the disk of VM `{vm}` of the project in {other}"));
        }
        let refused = check_removable(overlay).err().map(|error| one_line(&error));
        refused.or_else(|| self.confirm(overlay).err().map(|problem| one_line(&problem)))
    }

    /// Checks that a disk is where the project's configuration may have one.
    fn confirm(&self, disk: &Path) -> Result<(), OutOfBounds> {
        self.bounds.disk(disk.to_owned()).confirm().map(drop)
    }

    /// Returns the directories of disks: the project's own, and those that definitions name.
    fn disk_directories(&self, vms: &[Vm]) -> BTreeSet<PathBuf> {
        let own = std::iter::once(self.project.layout.state_root().to_owned());
        own.chain(vms.iter().filter_map(|vm| self.overlay(vm).parent().map(Path::to_owned)))
            .collect()
    }

    /// Returns all disks that stay, as far as that is decided by now.
    fn disks_that_stay(&self, vms: &[Vm], found: &Found) -> Result<Vec<PathBuf>, VmError> {
        let mut disks = Vec::new();
        for directory in self.disk_directories(vms) {
            if let Err(source) = fs::metadata(&directory) {
                // The directory may be on a filesystem that is not mounted now.
                return Err(VmIoError::File {
                    action: FileAction::LookAt,
                    path: directory,
                    source,
                }
                .into());
            }
            disks.append(&mut disks_in(&directory)?);
        }
        let goes = |disk: &PathBuf| found.planned.iter().any(|planned| planned.path == *disk);
        disks.retain(|disk| !goes(disk));
        Ok(disks)
    }

    /// Keeps each disk that is in another one's backing chain, and its VM with it.
    fn spare_foundations(&self, vms: &[Vm], found: &mut Found) {
        // A chain that cannot be read keeps no VM from being removed: that may be the repair.
        let directories = self.disk_directories(vms);
        let mut stay: Vec<PathBuf> = directories
            .iter()
            .flat_map(|directory| disks_in(directory).unwrap_or_default())
            .collect();
        stay.retain(|disk| !found.planned.iter().any(|planned| planned.path == *disk));
        let needed = known_foundations(&stay);
        let disks = found.planned.iter().filter(|planned| planned.kind == CleanedKind::Disk);
        let spared: Vec<Cleaned> =
            disks.filter(|disk| is_one_of(&disk.path, &needed)).cloned().collect();
        for disk in spared {
            let vm = disk.vm.as_deref();
            found.planned.retain(|planned| planned.vm.as_deref() != vm);
            found.keep(vm, format!("another disk is based on {}", disk.path.display()));
        }
    }

    /// Surveys what belongs to no VM.
    fn project(&self, vms: &[Vm], found: &mut Found) {
        let root = self.project.layout.state_root();
        for entry in entries(root) {
            if starts_with(&entry, TEMPORARY) || starts_with(&entry, OVERLAY_TEMPORARY) {
                found.plan(CleanedKind::Leftover, None, entry.path());
            }
        }
        for entry in entries(&self.project.layout.quarantine()) {
            found.plan(CleanedKind::Quarantine, None, entry.path());
        }
        let busy: Vec<&Vm> =
            vms.iter().filter(|vm| matches!(vm.standing, Standing::Busy(_))).collect();
        let is_needed = |vm: &&Vm| matches!(vm.standing, Standing::Busy(_)) || vm.record.is_err();
        let logs_of = |vm: &Vm| self.project.files(&vm.name).logs();
        let needed: Vec<PathBuf> = vms.iter().filter(is_needed).flat_map(logs_of).collect();
        for entry in
            entries(&self.project.layout.logs()).filter(|entry| !needed.contains(&entry.path()))
        {
            found.plan(CleanedKind::Log, None, entry.path());
        }
        self.sockets(&busy, found);
        if let Err(error) = self.layers(vms, found) {
            let why = format!(
                "keeping layers and images, since it is unknown which ones are needed: {}",
                one_line(&error)
            );
            found.keep(None, why);
        }
        if self.options.disks && busy.is_empty() {
            found.plan(CleanedKind::Cache, None, self.project.layout.own_cache().root().to_owned());
        }
    }

    /// Surveys the sockets of VMs that do not run, known or unknown.
    fn sockets(&self, busy: &[&Vm], found: &mut Found) {
        let of_vm = |vm: &str| self.project.sockets(vm);
        let any: SocketsLayout = of_vm("any");
        for entry in any.own_project().into_iter().flat_map(entries) {
            let is_busy = busy.iter().any(|vm| entry.file_name() == OsStr::new(&vm.name));
            if !is_busy && !is_in_use(&SocketsLayout::new(entry.path())) {
                found.plan(CleanedKind::Leftover, None, entry.path());
            }
        }
    }

    /// Surveys layers, templates' disks and images that are in no backing chain.
    fn layers(&self, vms: &[Vm], found: &mut Found) -> Result<(), VmError> {
        let needed = foundations(&self.disks_that_stay(vms, found)?)?;
        let is_confirmed = |vm: &&Vm| self.confirm(&self.overlay(vm)).is_ok();
        let known =
            vms.iter().filter(is_confirmed).filter_map(|vm| vm.record.as_ref().ok()?.as_ref());
        let known: HashSet<PathBuf> = known
            .flat_map(|record| {
                let disk = record.overlay_path(self.project.layout);
                record
                    .frozen
                    .iter()
                    .map(move |layer| disk.with_file_name(&layer.name))
                    .collect::<Vec<_>>()
            })
            .collect();
        for directory in self.disk_directories(vms) {
            for path in
                entries(&directory).map(|entry| entry.path()).filter(|path| is_frozen_layer(path))
            {
                // A directory of the user's own may hold anything.
                let is_ours =
                    directory == self.project.layout.state_root() || known.contains(&path);
                if is_ours && !is_one_of(&path, &needed) && check_removable(&path).is_ok() {
                    found.plan(CleanedKind::Layer, None, path);
                }
            }
        }
        let templates = self.project.layout.templates();
        for entry in entries(templates.root()) {
            let disk = templates.template(&entry.file_name().to_string_lossy()).disk();
            if !is_one_of(&disk, &needed) {
                found.plan(CleanedKind::Layer, None, entry.path());
            }
        }
        self.images(&needed, found);
        Ok(())
    }

    fn images(&self, needed: &HashSet<FileId>, found: &mut Found) {
        let images = self.project.layout.images();
        for id in entries(images.root()) {
            for version in entries(&id.path()) {
                let (id, name) = (id.file_name(), version.file_name());
                let (id, name) = (id.to_string_lossy(), name.to_string_lossy());
                let hidden =
                    name.strip_prefix('.').map(|name| name.split(['~']).next().unwrap_or(name));
                let version_name =
                    hidden.map_or(&*name, |name| name.strip_suffix(".lock").unwrap_or(name));
                let is_needed = entries(&images.image(&id, version_name)).any(|file| {
                    file.metadata().is_ok_and(|metadata| needed.contains(&id_of(&metadata)))
                });
                let is_whole = hidden.is_none();
                // Nothing needs the remains of an interrupted preparation. Locks are removed with
                // the last image.
                let goes = !is_image_lock(&name) && (!is_whole || !is_needed);
                if goes && found.take_lock(images.lock(&id, version_name)) {
                    let kind = if is_whole { CleanedKind::Image } else { CleanedKind::Leftover };
                    found.plan(kind, None, version.path());
                }
            }
        }
    }
}

fn sentence_of_kept(vm: &str, disk: &FoundDisk) -> String {
    let (name, used) = (&disk.name, ByteSize(disk.used_bytes));
    format!(
        "disk `{name}` of VM `{vm}` ({used} used), for its next VM of that name; `castra clean \
        {vm} --data-disk {name}` removes it"
    )
}

/// Returns the names of all VMs that have files, with a record or as remains: a directory of their
/// own, a disk at the default location, or data disks.
pub fn vm_names(layout: &ProjectLayout) -> BTreeSet<String> {
    let name = |entry: DirEntry| entry.file_name().into_string().ok();
    let directories = entries(&layout.vms()).filter_map(name);
    let disks = entries(layout.state_root()).filter_map(name);
    let of_disk = |file: String| {
        let vm =
            file.strip_suffix("-overlay.qcow2").filter(|vm| !vm.is_empty() && !vm.starts_with('.'));
        vm.map(str::to_owned)
    };
    directories.chain(disks.filter_map(of_disk)).chain(data::owners(layout)).collect()
}

fn is_one_of(path: &Path, files: &HashSet<FileId>) -> bool {
    fs::metadata(path).is_ok_and(|metadata| files.contains(&id_of(&metadata)))
}

fn starts_with(entry: &DirEntry, prefix: &str) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes())
}

fn entries(directory: &Path) -> impl Iterator<Item = DirEntry> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}
