//! Base image of a VM: present, whole, and identified by its content.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::config::VmDefinition;
use crate::context::RuntimeContext;
use crate::files::{normalise, sha256_watched};
use crate::hex::hex;
use crate::layout::{ProjectLayout, ROOTFS};
use crate::managed::{
    ArtifactSource, ImageManager, ManagedArtifactSpec, ManagedImagePaths, ManagedImageSpec,
};
use crate::qemu::options::UserArguments;
use crate::qemu::{Disk, DiskError, Qcow2Header, QemuError, Unbootable};
use crate::report::Event;
use crate::vm::error::{FileAction, VmDiskError, VmError, VmIoError};
use crate::vm::plan::{BasePlan, VmPlan, content_of};
use crate::vm::project::ProjectRef;
use crate::vm::record::{BaseKind, BaseRecord, Record};

use super::digests::Identity;

/// Time after which hashing is reported; shorter hashing is not.
const FIRST_NEWS: Duration = Duration::from_millis(500);
/// Least time between two reports: ten per second, as for downloads.
const BETWEEN_NEWS: Duration = Duration::from_millis(100);

/// A managed image with the paths of its files.
pub(in crate::vm) type Image = (ManagedImageSpec, ManagedImagePaths);

/// Ensures that the VM's managed image is in the project, the same one that `up` would use, and
/// returns it. Returns `None` for a VM on the user's own file.
///
/// # Errors
/// Returns errors of the image manager.
pub fn ensure_vm_image(
    plan: &VmPlan,
    project: ProjectRef<'_>,
) -> Result<Option<(ManagedImageSpec, ManagedImagePaths)>, VmError> {
    if matches!(plan.base, BasePlan::Path(_)) {
        return Ok(None);
    }
    Ok(ensure_base(plan, None, project)?.image)
}

/// Checks that the BIOS of a VM that boots by itself finds boot code on this disk. Arguments of the
/// user's own may bring another firmware or boot disk, so with those nothing is checked.
///
/// # Errors
/// Returns [`VmDiskError::Unbootable`], or [`VmError::Qemu`] when interrupted.
pub(in crate::vm) fn check_boot_code(
    vm: &str,
    disk: &Path,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    if UserArguments::of(&context.environment).identity().is_some() {
        return Ok(());
    }
    match Unbootable::of_disk(disk, &context.environment, &context.cancel)? {
        Some(reason) => {
            let (vm, disk) = (vm.to_owned(), disk.to_owned());
            Err(VmDiskError::Unbootable { vm, disk, reason, found: None }.into())
        }
        None => Ok(()),
    }
}

/// Checks that the user's own disk exists and can be used. Returns it with its backing chain.
///
/// # Errors
/// Returns [`VmDiskError::BaseMissing`], [`VmDiskError::BaseNotAFile`], [`VmIoError::File`] or
/// [`VmError::Qemu`].
pub(in crate::vm) fn look_at_own_disk(
    definition: &VmDefinition,
    path: &Path,
) -> Result<Vec<PathBuf>, VmError> {
    let overlay = Some(&definition.overlay).filter(|overlay| overlay.exists());
    let overlay = overlay.map(|overlay| overlay.to_path_buf());
    let missing =
        || VmDiskError::BaseMissing { vm: definition.name.clone(), base: path.to_owned(), overlay };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing().into()),
        Err(source) => {
            return Err(VmIoError::File {
                action: FileAction::Read,
                path: path.to_owned(),
                source,
            }
            .into());
        }
        Ok(metadata) if !metadata.is_file() => {
            return Err(VmDiskError::BaseNotAFile {
                vm: definition.name.clone(),
                base: path.to_owned(),
            }
            .into());
        }
        Ok(_) => {}
    }
    Ok(files_of(path, definition.allow_backing_file)?)
}

/// A base image that is present.
#[derive(Clone)]
pub(in crate::vm) struct Base {
    /// Path of its disk.
    pub(in crate::vm) disk: PathBuf,
    /// Base for the VM's record.
    pub(in crate::vm) record: BaseRecord,
    /// The managed image, unless the base is the user's own file.
    pub(in crate::vm) image: Option<(ManagedImageSpec, ManagedImagePaths)>,
    /// Files on this machine that its content comes from: the user's own disk and its backing
    /// chain, or local sources of the image.
    pub(in crate::vm) sources: Vec<PathBuf>,
}

/// Ensures that the VM's base image is present, fetching it if needed.
///
/// # Errors
/// Returns errors of the image manager, [`VmDiskError::BaseMissing`] or [`VmIoError::File`].
pub(in crate::vm) fn ensure_base(
    plan: &VmPlan,
    recorded: Option<&Record>,
    project: ProjectRef<'_>,
) -> Result<Base, VmError> {
    let manager = ImageManager::new(project.layout);
    let spec = match &plan.base {
        BasePlan::Path(path) => return user_base(plan, path, recorded, project.context),
        BasePlan::Image(spec) => spec.clone(),
        BasePlan::FirstOf(candidates) => {
            // A disk whose record was lost still names its backing file, and nothing else will do.
            if let Some(spec) =
                candidates.iter().find(|spec| is_based_on(plan, spec, project.layout))
            {
                return Ok(managed_base(
                    spec.clone(),
                    manager.ensure_image(spec, project.context)?,
                ));
            }
            let chosen = manager.choose_default(candidates, project.context)?;
            return Ok(managed_base(chosen.spec, chosen.paths));
        }
    };
    let paths = manager.ensure_image(&spec, project.context)?;
    Ok(managed_base(spec, paths))
}

fn managed_base(spec: ManagedImageSpec, paths: ManagedImagePaths) -> Base {
    let record = BaseRecord {
        kind: BaseKind::Managed(spec.label()),
        content: content_of(&spec),
        stamp: None,
        allow_backing_file: false,
    };
    let local = |artifact: &ManagedArtifactSpec| match &artifact.source {
        ArtifactSource::Path(path) => Some(path.clone()),
        ArtifactSource::Url(_) | ArtifactSource::PythonPackage { .. } => None,
    };
    let mut sources: Vec<PathBuf> = spec.artifacts.iter().filter_map(local).collect();
    sources.dedup();
    Base { disk: paths.disk.clone(), record, image: Some((spec, paths)), sources }
}

/// Hashes a managed image's disk whatever its stamp says: this one time, since disks will be based
/// on it from then on. The user's own file has just been hashed.
///
/// # Errors
/// Returns errors of the image manager if the disk is damaged and cannot be repaired.
pub(in crate::vm) fn confirm(base: Base, project: ProjectRef<'_>) -> Result<Base, VmError> {
    let Some((spec, paths)) = base.image else { return Ok(base) };
    let paths = ImageManager::new(project.layout).confirm_disk(&spec, paths, project.context)?;
    Ok(managed_base(spec, paths))
}

/// Returns the user's own file as base, identified by its digest, which is computed once and again
/// only if size or time changed.
fn user_base(
    plan: &VmPlan,
    path: &Path,
    recorded: Option<&Record>,
    context: &RuntimeContext,
) -> Result<Base, VmError> {
    let unreadable =
        |source| VmIoError::File { action: FileAction::Read, path: path.to_owned(), source };
    let files = look_at_own_disk(&plan.definition, path)?;
    let stamps = files.iter().map(|file| stamp_of(file)).collect::<io::Result<Vec<_>>>();
    let stamp = stamps.map_err(unreadable)?.join("; ");
    let known =
        recorded.map(|record| &record.base).filter(|base| base.stamp.as_ref() == Some(&stamp));
    let content = match known {
        Some(base) => base.content.clone(),
        None => {
            let identity = || Identity::now(&files).map_err(unreadable);
            let before = identity()?;
            match before.recall(&context.cache) {
                Some(content) => content,
                None => {
                    let content = content_of_files(&plan.definition.name, &files, context)?;
                    if identity()? == before {
                        before.remember(&content, &context.cache);
                    }
                    content
                }
            }
        }
    };
    let record = BaseRecord {
        kind: BaseKind::Path(path.to_owned()),
        content,
        stamp: Some(stamp),
        allow_backing_file: plan.definition.allow_backing_file,
    };
    Ok(Base { disk: path.to_owned(), record, image: None, sources: files })
}

/// Returns the user's disk and its backing chain, if it may have one.
fn files_of(path: &Path, may_have_backing_file: bool) -> Result<Vec<PathBuf>, QemuError> {
    if !may_have_backing_file && let Some(backing) = Qcow2Header::read(path)?.backing_file {
        return Err(DiskError::HasBackingFile { disk: path.to_owned(), backing }.into());
    }
    let disk = Disk::open(path)?;
    Ok(std::iter::once(disk.path).chain(disk.below.into_iter().map(|layer| layer.path)).collect())
}

/// Progress of hashing one file; short hashing is not reported.
struct Hashing<'a> {
    vm: &'a str,
    path: &'a Path,
    done_bytes: u64,
    total_bytes: u64,
    /// Time of the next report, since the beginning.
    next: Duration,
    context: &'a RuntimeContext,
}

impl Hashing<'_> {
    fn read(&mut self, bytes: usize, elapsed: Duration) {
        self.done_bytes += bytes as u64;
        if elapsed >= self.next && self.done_bytes < self.total_bytes {
            self.next = elapsed + BETWEEN_NEWS;
            self.report();
        }
    }

    /// Reports the end, if there was a report before.
    fn end(&mut self) {
        if self.next > FIRST_NEWS {
            self.done_bytes = self.total_bytes;
            self.report();
        }
    }

    fn report(&self) {
        self.context.reporter.report(&Event::Hashing {
            vm: self.vm.to_owned(),
            path: self.path.to_owned(),
            done_bytes: self.done_bytes,
            total_bytes: self.total_bytes,
        });
    }
}

fn stamp_of(file: &Path) -> io::Result<String> {
    let metadata = fs::metadata(file)?;
    Ok(format!("{} bytes, {}.{:09}", metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Returns one file's digest, or for several files a digest over all of theirs.
fn content_of_files(
    vm: &str,
    files: &[PathBuf],
    context: &RuntimeContext,
) -> Result<String, VmError> {
    let mut digests = Vec::new();
    for file in files {
        let failed =
            |source| VmIoError::File { action: FileAction::Read, path: file.clone(), source };
        // The user may have put a link there; Castra's own files are never read through one.
        let real = file.canonicalize().map_err(failed)?;
        let total_bytes = fs::metadata(&real).map_err(failed)?.size();
        let mut progress =
            Hashing { vm, path: file, done_bytes: 0, total_bytes, next: FIRST_NEWS, context };
        let started = Instant::now();
        digests.push(sha256_watched(&real, &context.cancel, |bytes| {
            progress.read(bytes, started.elapsed())
        })?);
        progress.end();
    }
    Ok(match digests.as_slice() {
        [digest] => digest.clone(),
        digests => hex(&Sha256::digest(digests.join(" "))),
    })
}

/// Returns `true` if the VM has a disk already, whose backing file is this image's.
fn is_based_on(plan: &VmPlan, spec: &ManagedImageSpec, layout: &ProjectLayout) -> bool {
    let image = layout.images().image(&spec.id, &spec.version).join(ROOTFS);
    let overlay = &plan.definition.overlay;
    let backing_file =
        Qcow2Header::read(overlay).ok().and_then(|header| header.backing_path(overlay).ok()?);
    backing_file == Some(normalise(&image))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::cancel::Cancel;
    use crate::context::Environment;
    use crate::report::Reporter;

    #[derive(Default)]
    struct Heard(Mutex<Vec<u64>>);

    impl Reporter for Heard {
        fn report(&self, event: &Event) {
            let Event::Hashing { done_bytes, .. } = event else { panic!("{event:?}") };
            self.0.lock().expect("a list").push(*done_bytes);
        }
    }

    /// Returns the reports for a file of ten bytes, of which one is read every `each_ms`
    /// milliseconds.
    fn progress_of(each_ms: u64) -> Vec<u64> {
        let heard = Arc::new(Heard::default());
        let environment = Environment::of_process().with("HOME", "/nowhere");
        let context =
            RuntimeContext::new(environment, heard.clone(), Cancel::new()).expect("a home");
        let path = Path::new("/disk");
        let mut progress = Hashing {
            vm: "vm",
            path,
            done_bytes: 0,
            total_bytes: 10,
            next: FIRST_NEWS,
            context: &context,
        };
        for read in 1..=10 {
            progress.read(1, Duration::from_millis(read * each_ms));
        }
        progress.end();
        heard.0.lock().expect("a list").clone()
    }

    #[test]
    fn hashing_reports_its_progress_where_it_takes_time() {
        assert_eq!(progress_of(10), [0; 0]);
        assert_eq!(progress_of(50), [0; 0]);
        assert_eq!(progress_of(60), [9, 10]);
        assert_eq!(progress_of(250), [2, 3, 4, 5, 6, 7, 8, 9, 10]);
    }
}
