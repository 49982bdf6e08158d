//! `castra image update`: pins the newest builds of distributions' images in `castra.lock`.

use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::config::{BaseImageSource, ImageVersion, ManagedImageSelection};
use castra_engine::error::Result;
use castra_engine::files::Digest;
use castra_engine::managed::{Change, ImageError, PinRequest, UpdateError, Updated, is_updatable};
use castra_engine::report::ImageLabel;
use castra_engine::vm::{BaseKind, Record};
use schemars::JsonSchema;
use serde::Serialize;

use super::Project;
use crate::cli::context::CommandContext;

#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct ImagesUpdated {
    /// The file that pins them.
    lock_file: PathBuf,
    images: Vec<Image>,
}

#[derive(Serialize, JsonSchema)]
struct Image {
    image: ImageLabel,
    /// `none`, `pinned` (the same build, which was built in before), `signed` (the same build,
    /// whose signature is verified now) or `newer`.
    change: &'static str,
    /// Version that new VMs got before.
    before: Option<String>,
    urls: Vec<String>,
    digest: Digest,
    size_bytes: Option<u64>,
    /// Fingerprint of the key by which the publisher signed the digest; `null` if no key is
    /// configured.
    signed_by: Option<String>,
}

/// Updates the named images, or all that the project uses.
pub(super) fn run(names: &[String], context: &CommandContext) -> Result<ExitCode> {
    let project = Project::find(context)?;
    let lock_file = project.config.lock_file();
    let lock_file = lock_file.ok_or(ImageError::from(UpdateError::NoConfiguration))?;
    let names = match names {
        [] => of_project(&project),
        names => names.iter().map(|name| named(name, &project)).collect::<Result<_, _>>()?,
    };
    let in_use = in_use(&project);
    let request = PinRequest {
        lock_file: &lock_file,
        names: &names,
        in_use: &in_use,
        keys: &project.config.keys,
    };
    let updated = project.manager().update(&request, &project.runtime)?;
    if updated.is_empty() {
        context.printer.tip("No VM here uses the newest image of a distribution.");
    }
    updated.iter().for_each(|one| context.printer.success(&describe(one)));
    if updated.iter().any(|one| one.change != Change::None) {
        context.printer.tip(&format!("  commit {}, and new VMs use it", lock_file.display()));
    }
    let images = updated.into_iter().map(image).collect();
    context.show(&ImagesUpdated { lock_file, images }, "")
}

/// Returns the name of an image that is known here.
fn named(name: &str, project: &Project) -> Result<String, ImageError> {
    match name.contains('@') {
        true => Err(UpdateError::Versioned { image: name.to_owned() }.into()),
        false => Ok(project.image(name)?.id.clone()),
    }
}

/// Returns the names of the images whose newest build a VM of the project gets, and of those that
/// are pinned, each once.
fn of_project(project: &Project) -> Vec<String> {
    let newest = |base: &BaseImageSource| match base {
        BaseImageSource::Managed(ManagedImageSelection::Exact {
            name,
            version: ImageVersion::Newest(_),
            ..
        }) => Some(name.clone()).filter(|name| is_updatable(name)),
        _ => None,
    };
    let pinned = project.config.pinned.iter().map(|image| image.id.clone());
    let used = project.config.vms.iter().filter_map(|vm| newest(&vm.base_image));
    let mut names: Vec<String> = used.chain(pinned).collect();
    names.sort();
    names.dedup();
    names
}

/// Returns the images on which disks of this project's VMs are based.
fn in_use(project: &Project) -> Vec<ImageLabel> {
    let records = Record::all(project.layout).into_values();
    let label = |record: Record| match record.base.kind {
        BaseKind::Managed(label) => Some(label),
        BaseKind::Path(_) => None,
    };
    records.filter_map(label).collect()
}

fn describe(updated: &Updated) -> String {
    let Updated { before, pin, change } = updated;
    let before = before.as_deref().unwrap_or("none");
    let change = match change {
        Change::None => format!("{} {} is the newest", pin.name, pin.version),
        Change::Pinned => format!("{} {} is the newest, and pinned now", pin.name, pin.version),
        Change::Signed => format!("{} {} is the newest, and now signed", pin.name, pin.version),
        Change::Newer => format!("{} {before} → {}", pin.name, pin.version),
    };
    match &pin.signed_by {
        Some(key) => format!("{change} (signed by {key})"),
        None => change,
    }
}

fn image(updated: Updated) -> Image {
    let Updated { before, pin, change } = updated;
    let change = match change {
        Change::None => "none",
        Change::Pinned => "pinned",
        Change::Signed => "signed",
        Change::Newer => "newer",
    };
    let image = ImageLabel { id: pin.name, version: pin.version };
    let (urls, digest, size_bytes) = (pin.urls, pin.digest, pin.size_bytes);
    Image { image, change, before, urls, digest, size_bytes, signed_by: pin.signed_by }
}
