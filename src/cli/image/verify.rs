//! `castra image verify`: hashes every file of images, and rebuilds the damaged ones.

use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::files::Digest;
use castra_engine::managed::{CheckedFile, CheckedImage, Finding, ImageError, Location};
use castra_engine::report::ImageLabel;
use castra_engine::vm;
use schemars::JsonSchema;
use serde::Serialize;

use super::Project;
use crate::cli::context::CommandContext;
use crate::cli::exit;

#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct ImagesVerified {
    images: Vec<Image>,
}

#[derive(Serialize, JsonSchema)]
struct Image {
    image: ImageLabel,
    /// `intact`, `repaired` or `damaged`.
    outcome: &'static str,
    files: Vec<File>,
    /// Reason why the image could not be repaired.
    error: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct File {
    /// `project`, `cache` or `download`.
    location: &'static str,
    path: PathBuf,
    expected: Option<Digest>,
    /// `intact`, `changed`, `unusable` or `missing`.
    finding: &'static str,
    found: Option<Digest>,
    set_aside: Option<PathBuf>,
}

/// Hashes images and repairs them. An image that cannot be repaired does not stop the others from
/// being checked.
pub(super) fn run(names: &[String], context: &CommandContext) -> Result<ExitCode> {
    let project = Project::find(context)?;
    let manager = project.manager();
    let mut images = Vec::new();
    let mut failed = Vec::new();
    for spec in project.images_of(names)? {
        match manager.repair(spec, &project.runtime) {
            // Without names, only the images that are present are meant.
            Err(ImageError::NotPresent { .. }) if names.is_empty() => {}
            Err(ImageError::NotRepaired { image, checked, source }) => {
                warn_of_running(&checked, &project, context);
                images.push(output(
                    &checked,
                    "damaged",
                    Some(castra_engine::error::one_line(&*source)),
                ));
                failed.push(ImageError::NotRepaired { image, checked, source });
            }
            Err(error) => return Err(error.into()),
            Ok(checked) => {
                report(&checked, context);
                warn_of_running(&checked, &project, context);
                let outcome = if checked.is_intact() { "intact" } else { "repaired" };
                images.push(output(&checked, outcome, None));
            }
        }
    }
    if images.is_empty() {
        context.printer.tip("There are no images here yet.");
    }
    let done = context.show(&ImagesVerified { images }, "")?;
    let errors: Vec<castra_engine::error::Error> =
        failed.into_iter().map(castra_engine::error::Error::from).collect();
    errors.iter().for_each(|error| context.printer.error(error));
    Ok(errors.first().map_or(done, |error| exit::of_kind(error.kind())))
}

fn report(checked: &CheckedImage, context: &CommandContext) {
    let count = checked.files.len();
    let files = if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
    context.printer.success(&match checked.is_intact() {
        true => format!("{} is intact ({files})", checked.image),
        false => format!("{} was damaged and has been repaired ({files} checked)", checked.image),
    });
}

/// Warns about VMs that run on damaged files: QEMU keeps the file open that it was started with,
/// even after a repair has replaced it.
fn warn_of_running(checked: &CheckedImage, project: &Project, context: &CommandContext) {
    if !checked.project_was_damaged() {
        return;
    }
    let statuses = vm::status(project.layout).into_iter().filter_map(|(_, status)| status.ok());
    let image = checked.image.to_string();
    for vm in statuses.filter(|status| status.state.is_alive() && status.image == image) {
        let name = vm.name;
        context.printer.warning(&format!(
            "VM `{name}` is running on the damaged files and may have read wrong data. Restart \
             it: castra down {name} && castra up {name}"
        ));
    }
}

fn output(checked: &CheckedImage, outcome: &'static str, error: Option<String>) -> Image {
    let files = checked.files.iter().map(file).collect();
    Image { image: checked.image.clone(), outcome, files, error }
}

fn file(file: &CheckedFile) -> File {
    let (finding, found) = match &file.finding {
        Finding::Intact => ("intact", file.expected.clone()),
        Finding::Changed(found) => ("changed", Some(found.clone())),
        Finding::Unusable(_) => ("unusable", None),
        Finding::Missing => ("missing", None),
    };
    let location = match file.location {
        Location::Project => "project",
        Location::Cache => "cache",
        Location::Download => "download",
    };
    let (path, expected, set_aside) =
        (file.path.clone(), file.expected.clone(), file.quarantined.clone());
    File { location, path, expected, finding, found, set_aside }
}
