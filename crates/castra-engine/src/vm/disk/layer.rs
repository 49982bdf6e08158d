//! Layers between a VM's own disk and its image's: that of a warm template, and those of steps.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::files::{self, Stamp, create_private_directory, share};
use crate::layout::{ProjectLayout, ROOTFS};
use crate::template::{self, Template, TemplateError, TemplateFile};
use crate::vm::error::{VmDiskError, VmError};
use crate::vm::plan::VmPlan;
use crate::vm::project::ProjectRef;
use crate::vm::record::{LayerRecord, Record};

use super::{Base, base_from_layer};

/// Brings a template's disk into the project, as a link if possible.
pub(in crate::vm) fn bring(
    template: &Template,
    project: ProjectRef<'_>,
) -> Result<LayerRecord, TemplateError> {
    let (manifest, disk) = (&template.manifest, template.layout.disk());
    bring_file(&manifest.key, &manifest.disk, &disk, project)
}

/// Brings the disk of a template or of a step into the project, as a link if possible.
pub(in crate::vm) fn bring_file(
    key: &str,
    file: &TemplateFile,
    disk: &Path,
    project: ProjectRef<'_>,
) -> Result<LayerRecord, TemplateError> {
    let path = project.layout.layer(&file.sha256);
    let directory = path.parent().unwrap_or(Path::new("/"));
    let failed = |action| {
        let path = path.clone();
        move |source| TemplateError::File { action, path, source }
    };
    create_private_directory(directory).map_err(failed("create"))?;
    let stamp_of = || fs::symlink_metadata(&path).map(|metadata| Stamp::of(&metadata));
    // Other disks may be based on it, so an intact one stays.
    let stamp = match stamp_of() {
        Ok(stamp)
            if stamp == file.stamp || files::sha256(&path, project.cancel())? == file.sha256 =>
        {
            stamp
        }
        _ => {
            share(disk, &path, &file.sha256, project.cancel())?;
            stamp_of().map_err(failed("look at"))?
        }
    };
    Ok(LayerRecord { key: key.to_owned(), sha256: file.sha256.clone(), stamp })
}

/// Returns the path of a layer as seen from another one's directory in the project.
pub(in crate::vm) fn seen_from_layer(sha256: &str) -> PathBuf {
    // All layers are in the same place, whatever their names.
    let layout = ProjectLayout::unchecked("/".into());
    let layer = layout.layer(sha256);
    layer
        .strip_prefix(layout.templates().root())
        .map_or(layer.clone(), |below| Path::new("..").join(below))
}

/// Returns the path of the base image as seen from a layer's directory in the project.
pub(in crate::vm) fn base_seen_from_layer(base: &Base, layout: &ProjectLayout) -> PathBuf {
    match &base.image {
        Some((spec, _)) => {
            PathBuf::from("../../images").join(&spec.id).join(&spec.version).join(ROOTFS)
        }
        None => base_from_layer(&base.disk, layout),
    }
}

/// Returns the SHA-256 that a layer of this project should have, if this is the path of one.
pub(in crate::vm) fn sha256_in(disk: &Path, layout: &ProjectLayout) -> Option<String> {
    let sha256 = disk.parent().and_then(Path::file_name).and_then(OsStr::to_str)?;
    (layout.layer(sha256) == disk).then(|| sha256.to_owned())
}

/// Checks that the layer is present and unchanged: by its stamp if the record has one, else by its
/// digest. A removed one comes back from the cache, if possible.
pub(in crate::vm) fn check(
    plan: &VmPlan,
    sha256: &str,
    recorded: Option<&mut Record>,
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    let (vm, path) = (&plan.definition.name, project.layout.layer(sha256));
    let layer = recorded.and_then(|record| {
        let steps = record.provisioned.iter_mut().flat_map(|made| &mut made.layers);
        record.layer.iter_mut().chain(steps).find(|layer| layer.sha256 == sha256)
    });
    let metadata = match fs::symlink_metadata(&path) {
        Ok(metadata) => metadata,
        Err(_) if comes_back(layer.as_deref(), project) => return Ok(()),
        Err(_) => {
            let overlay = Some(plan.definition.overlay.to_path_buf());
            return Err(VmDiskError::BaseMissing { vm: vm.clone(), base: path, overlay }.into());
        }
    };
    let stamp = Stamp::of(&metadata);
    let is_known = layer.as_ref().is_some_and(|layer| layer.stamp == stamp);
    if is_known || files::sha256(&path, project.cancel())? == sha256 {
        if let Some(layer) = layer {
            layer.stamp = stamp;
        }
        return Ok(());
    }
    Err(VmDiskError::BaseChanged {
        vm: vm.clone(),
        base: path,
        overlay: plan.definition.overlay.to_path_buf(),
    }
    .into())
}

fn comes_back(layer: Option<&LayerRecord>, project: ProjectRef<'_>) -> bool {
    let Some(layer) = layer else { return false };
    let cache = &project.context.cache;
    let step = template::recognise_step(cache, &layer.key, project.cancel()).ok();
    let step = step.and_then(|opened| opened.ok().flatten());
    if let Some(step) = step.filter(|step| step.manifest.disk.sha256 == layer.sha256) {
        let disk = step.layout.disk();
        return bring_file(&layer.key, &step.manifest.disk, &disk, project).is_ok();
    }
    let template = template::recognise(&project.context.cache, &layer.key, project.cancel()).ok();
    let template = template.and_then(|opened| opened.ok().flatten());
    let same = template.filter(|template| template.manifest.disk.sha256 == layer.sha256);
    same.is_some_and(|template| bring(&template, project).is_ok())
}
