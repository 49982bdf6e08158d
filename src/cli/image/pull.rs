//! `castra image pull`: downloads and builds images ahead of `castra up`.

use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::config::{
    BaseImageSource, ConfigError, ManagedImageSelection, UnpinnedArtifact,
};
use castra_engine::context::working_directory;
use castra_engine::error::Result;
use castra_engine::managed::{ImageError, ImageManager, ManagedImagePaths, ManagedImageSpec};
use castra_engine::report::ImageLabel;
use castra_engine::state_root::StateRoot;
use castra_engine::vm::{self, Plan, Record};
use schemars::JsonSchema;
use serde::Serialize;

use super::Project;
use super::list::files_of;
use crate::cli::context::CommandContext;

#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct ImagesPulled {
    images: Vec<Pulled>,
}

#[derive(Serialize, JsonSchema)]
struct Pulled {
    image: ImageLabel,
    /// True if the image is in the project; otherwise it is in the cache.
    in_project: bool,
    directory: PathBuf,
    size_bytes: u64,
}

/// Fetches images. Those already present are not fetched again.
pub(super) fn run(names: &[String], context: &CommandContext) -> Result<ExitCode> {
    let project = match context.config_or_unpinned()? {
        Ok(config) => Project::of(config, context)?,
        Err(unpinned) => return report_digests(&unpinned, context),
    };
    project.config.bounds.claim_state_root().map_err(ConfigError::State)?;
    let images = if names.is_empty() { what_vms_need(&project)? } else { named(names, &project)? };
    if images.is_empty() {
        context.printer.tip("No VM here needs a managed image.");
    }
    for pulled in &images {
        let place = if pulled.in_project { "in this project" } else { "in the cache" };
        context.printer.success(&format!("{} is {place}", pulled.image));
    }
    context.show(&ImagesPulled { images }, "")
}

/// Fetches the images that `up` would use into the project.
fn what_vms_need(project: &Project) -> Result<Vec<Pulled>> {
    let Project { config, layout, catalog, runtime } = project;
    let plan = Plan::new(config, &[], catalog, &Record::all(layout))?;
    let mut images: Vec<Pulled> = Vec::new();
    let mut done = Vec::new();
    for vm in &plan.vms {
        if done.contains(&&vm.base) {
            continue;
        }
        if let Some((spec, paths)) = vm::ensure_vm_image(vm, vm::ProjectRef::new(layout, runtime))?
        {
            images.push(pulled(&spec, &paths, true));
        }
        done.push(&vm.base);
    }
    Ok(images)
}

/// Fetches each image into the project if one of its VMs uses it, otherwise into the cache.
fn named(names: &[String], project: &Project) -> Result<Vec<Pulled>> {
    let manager = project.manager();
    let pull = |spec: &ManagedImageSpec| -> Result<Pulled, ImageError> {
        let is_used = is_used(project, spec);
        let paths = match is_used {
            true => manager.ensure_image(spec, &project.runtime)?,
            false => manager.ensure_cached(spec, &project.runtime)?,
        };
        Ok(pulled(spec, &paths, is_used))
    };
    let specs = project.images_of(names)?;
    Ok(specs.into_iter().map(pull).collect::<Result<_, _>>()?)
}

fn is_used(project: &Project, spec: &ManagedImageSpec) -> bool {
    project.config.vms.iter().any(|vm| match &vm.base_image {
        BaseImageSource::Managed(ManagedImageSelection::Exact { name, version, .. }) => {
            *name == spec.id && version.as_str() == spec.version
        }
        BaseImageSource::Managed(ManagedImageSelection::Default) | BaseImageSource::Path(_) => {
            false
        }
    })
}

fn pulled(spec: &ManagedImageSpec, paths: &ManagedImagePaths, in_project: bool) -> Pulled {
    let sizes = files_of(paths).into_iter().filter_map(|path| path.metadata().ok());
    let size_bytes = sizes.map(|metadata| metadata.len()).sum();
    Pulled { image: spec.label(), in_project, directory: paths.directory.clone(), size_bytes }
}

/// Fetches artifacts that have no digest, and returns an error that lists their digests.
fn report_digests(unpinned: &[UnpinnedArtifact], context: &CommandContext) -> Result<ExitCode> {
    // A file with mistakes describes no project, so only the log's directory is opened.
    let layout = StateRoot::of_project(&working_directory()?).open(&context.runtime)?;
    let manager = ImageManager::new(&layout);
    let found = unpinned
        .iter()
        .map(|one| manager.fetch_unpinned(&one.place, &one.source, &context.runtime));
    Err(ImageError::Unpinned { found: found.collect::<Result<_, _>>()? }.into())
}
