//! A VM's disk and what it stands on.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::TempPath;

use crate::config::defaults;
use crate::context::RuntimeContext;
use crate::failpoint::{self, Point};
use crate::layout::{ProjectLayout, ROOTFS};
use crate::managed::{ImageManager, ManagedImagePaths, ManagedImageSpec, OVERLAY_BYTES, Peak, require_space};
use crate::plan::{BasePlan, VmPlan, content_of};
use crate::qemu::{Qcow2Header, create_overlay, resize_disk};
use crate::report::Event;

use super::error::VmError;
use super::record::{BaseKind, BaseRecord, Record};

/// All files a boot needs, each there and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedVmArtifacts {
    /// The VM's own disk. Absolute.
    pub overlay: PathBuf,
    /// The managed image it stands on, unless that is the user's own file.
    pub image: Option<(ManagedImageSpec, ManagedImagePaths)>,
}

/// Sees to it that the VM has its base image and its disk, and writes the record of a new one. Whatever is missing on
/// this machine is an error before any disk is made; a disk that is there is never replaced.
///
/// # Errors
/// Those of the image manager and of qemu-img; [`VmError::BaseMissing`], [`VmError::BaseChanged`],
/// [`VmError::ForeignOverlay`], [`VmError::Disk`].
pub fn ensure_vm_assets(
    plan: &VmPlan,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<(ResolvedVmArtifacts, Record), VmError> {
    let recorded = Record::load(layout, &plan.definition.name)?;
    let mut base = ensure_base(plan, layout, recorded.as_ref(), context)?;
    let overlay = &plan.definition.overlay;
    let mut record = if overlay.exists() {
        check_overlay(plan, &base, recorded.as_ref())?;
        grow(plan, context)?;
        recorded.unwrap_or_else(|| Record::new(layout, &plan.definition.name, overlay, base.record.clone()))
    } else {
        base = confirm(base, layout, context)?;
        create(plan, &base, context)?;
        Record::new(layout, &plan.definition.name, overlay, base.record.clone())
    };
    record.base = base.record;
    record.save(layout)?;
    failpoint::reach(Point::OverlayRecorded);
    Ok((ResolvedVmArtifacts { overlay: overlay.clone(), image: base.image }, record))
}

/// Sees to it that the VM's managed image is in the project, the same one that [`ensure_vm_assets`] would take, and hands
/// it back; nothing for a VM on the user's own file.
///
/// # Errors
/// Those of the image manager.
pub fn ensure_vm_image(
    plan: &VmPlan,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<Option<(ManagedImageSpec, ManagedImagePaths)>, VmError> {
    if matches!(plan.base, BasePlan::Path(_)) {
        return Ok(None);
    }
    Ok(ensure_base(plan, layout, None, context)?.image)
}

/// A base image that is there.
struct Base {
    disk: PathBuf,
    record: BaseRecord,
    image: Option<(ManagedImageSpec, ManagedImagePaths)>,
}

fn ensure_base(
    plan: &VmPlan,
    layout: &ProjectLayout,
    recorded: Option<&Record>,
    context: &RuntimeContext,
) -> Result<Base, VmError> {
    let manager = ImageManager::new(layout);
    let spec = match &plan.base {
        BasePlan::Path(path) => return user_base(plan, path, recorded),
        BasePlan::Image(spec) => spec.clone(),
        BasePlan::FirstOf(candidates) => {
            // A disk whose record was lost still names what it stands on, and nothing else will do.
            if let Some(spec) = candidates.iter().find(|spec| stands_on(plan, spec, layout)) {
                return Ok(managed_base(spec.clone(), manager.ensure_image(spec, context)?));
            }
            let chosen = manager.choose_default(candidates, context)?;
            return Ok(managed_base(chosen.spec, chosen.paths));
        }
    };
    let paths = manager.ensure_image(&spec, context)?;
    Ok(managed_base(spec, paths))
}

fn managed_base(spec: ManagedImageSpec, paths: ManagedImagePaths) -> Base {
    let record =
        BaseRecord { kind: BaseKind::Managed(spec.label()), content: content_of(&spec), stamp: None };
    Base { disk: paths.disk.clone(), record, image: Some((spec, paths)) }
}

/// A disk is made once and stands on its base from then on: this one time a managed image's disk is hashed whatever its
/// stamp says. The user's own file has just been hashed.
fn confirm(base: Base, layout: &ProjectLayout, context: &RuntimeContext) -> Result<Base, VmError> {
    let Some((spec, paths)) = base.image else { return Ok(base) };
    let paths = ImageManager::new(layout).confirm_disk(&spec, paths, context)?;
    Ok(managed_base(spec, paths))
}

/// The user's own file: identified by its digest, which is computed once and again only when size or time changed.
fn user_base(plan: &VmPlan, path: &Path, recorded: Option<&Record>) -> Result<Base, VmError> {
    let overlay = Some(&plan.definition.overlay).filter(|overlay| overlay.exists()).cloned();
    let missing =
        || VmError::BaseMissing { vm: plan.definition.name.clone(), base: path.to_owned(), overlay };
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
        Err(source) => return Err(VmError::Disk { action: "read", path: path.to_owned(), source }),
        Ok(metadata) => metadata,
    };
    Qcow2Header::read(path)?;
    let stamp = format!("{} bytes, {}.{:09}", metadata.size(), metadata.mtime(), metadata.mtime_nsec());
    let known = recorded.map(|record| &record.base).filter(|base| base.stamp.as_ref() == Some(&stamp));
    let content = match known {
        Some(base) => base.content.clone(),
        None => {
            digest(path).map_err(|source| VmError::Disk { action: "read", path: path.to_owned(), source })?
        }
    };
    let record = BaseRecord { kind: BaseKind::Path(path.to_owned()), content, stamp: Some(stamp) };
    Ok(Base { disk: path.to_owned(), record, image: None })
}

fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Whether the VM has a disk already, and its backing file is this image's.
fn stands_on(plan: &VmPlan, spec: &ManagedImageSpec, layout: &ProjectLayout) -> bool {
    let image = layout.images().image(&spec.id, &spec.version).join(ROOTFS);
    let backing_file =
        Qcow2Header::read(&plan.definition.overlay).ok().and_then(|header| header.backing_file);
    backing_file.is_some_and(|name| backing_path(&plan.definition.overlay, &name) == normalise(&image))
}

/// Where a backing file's name leads.
fn backing_path(overlay: &Path, name: &Path) -> PathBuf {
    normalise(&overlay.parent().unwrap_or(Path::new("/")).join(name))
}

/// The disk stands on this very base, and the base is what it was when the disk was made.
fn check_overlay(plan: &VmPlan, base: &Base, recorded: Option<&Record>) -> Result<(), VmError> {
    let (vm, overlay) = (&plan.definition.name, &plan.definition.overlay);
    let header = Qcow2Header::read(overlay)?;
    let found = header.backing_file.map(|name| backing_path(overlay, &name)).unwrap_or_default();
    let same_file = found == normalise(&base.disk)
        || matches!((found.canonicalize(), base.disk.canonicalize()), (Ok(found), Ok(disk)) if found == disk);
    if !same_file {
        let (overlay, expected) = (overlay.clone(), base.disk.clone());
        return Err(VmError::ForeignOverlay { vm: vm.clone(), overlay, found, expected });
    }
    if recorded.is_some_and(|record| record.base.content != base.record.content) {
        let (base, overlay) = (base.disk.clone(), overlay.clone());
        return Err(VmError::BaseChanged { vm: vm.clone(), base, overlay });
    }
    Ok(())
}

/// Makes the disk under a temporary name and publishes it by renaming.
fn create(plan: &VmPlan, base: &Base, context: &RuntimeContext) -> Result<(), VmError> {
    let overlay = &plan.definition.overlay;
    let directory = overlay.parent().unwrap_or(Path::new("/"));
    let failed = |source| VmError::Disk { action: "create", path: overlay.clone(), source };
    fs::create_dir_all(directory).map_err(failed)?;
    let backing_file = relative(directory, &base.disk);
    let size_bytes = plan.definition.disk_bytes.max(Qcow2Header::read(&base.disk)?.virtual_bytes);
    require_space(directory, &Peak { overlay: OVERLAY_BYTES, ..Peak::default() })?;
    let temporary = new_beside(overlay).map_err(failed)?;
    failpoint::reach(Point::OverlayBegun);
    create_overlay(&temporary, &backing_file, size_bytes, &context.environment, &context.cancel)?;
    File::open(&temporary).and_then(|disk| disk.sync_all()).map_err(failed)?;
    failpoint::reach(Point::OverlayMade);
    temporary.persist_noclobber(overlay).map_err(|error| failed(error.error))?;
    failpoint::reach(Point::OverlayPublished);
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    context.reporter.report(&Event::OverlayCreated {
        vm: plan.definition.name.clone(),
        path: overlay.clone(),
        size_bytes,
    });
    Ok(())
}

/// An empty file beside the disk, which vanishes unless it gets the disk's name: the relative backing file counts from
/// that directory. Always of the same name, so that what a killed castra left is found; the VM's lock is held.
fn new_beside(overlay: &Path) -> io::Result<TempPath> {
    let mut name = OsString::from(".");
    name.push(overlay.file_name().unwrap_or_default());
    name.push(".new");
    let path = overlay.with_file_name(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    TempPath::try_from_path(path)
}

/// Makes the disk as large as the configuration asks for; never smaller, since that would cut data off.
fn grow(plan: &VmPlan, context: &RuntimeContext) -> Result<(), VmError> {
    let (overlay, wanted) = (&plan.definition.overlay, plan.definition.disk_bytes);
    let has = Qcow2Header::read(overlay)?.virtual_bytes;
    if has < wanted {
        resize_disk(overlay, wanted, &context.environment, &context.cancel)?;
    } else if has > wanted && plan.definition.disk_bytes != defaults::DISK_BYTES {
        let (vm, gib) = (&plan.definition.name, has as f64 / f64::from(1 << 30));
        let message = format!("the disk of VM `{vm}` stays {gib:.1} GiB large: a disk can only grow");
        context.reporter.report(&Event::Warning { message });
    }
    Ok(())
}

/// `target` as seen from `directory`, if both share more than the root; else as it is.
fn relative(directory: &Path, target: &Path) -> PathBuf {
    let (directory, target) = (normalise(directory), normalise(target));
    let shared = directory.components().zip(target.components()).take_while(|(a, b)| a == b).count();
    if shared <= 1 {
        return target;
    }
    let up = directory.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(target.components().skip(shared)).collect()
}

/// Without `.` and `..`; symbolic links are not looked at.
fn normalise(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backing_files_are_relative_inside_a_project() {
        let directory = Path::new("/home/me/project/.castra");
        let base = Path::new("/home/me/project/.castra/images/alpine-minimal/v1/rootfs.qcow2");
        assert_eq!(relative(directory, base), Path::new("images/alpine-minimal/v1/rootfs.qcow2"));
        assert_eq!(relative(directory, Path::new("/home/me/project/my.qcow2")), Path::new("../my.qcow2"));
        assert_eq!(relative(directory, Path::new("/srv/base.qcow2")), Path::new("/srv/base.qcow2"));
    }
}
