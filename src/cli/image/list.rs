//! `castra image list`: images of the catalog and of the project, and where copies of them are.

use std::path::Path;
use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::managed::{FoundImage, ManagedImagePaths, ManagedImageSpec, StoredImage};
use castra_engine::report::ImageLabel;
use castra_engine::size::ByteSize;
use schemars::JsonSchema;
use serde::Serialize;

use super::Project;
use super::table::table;
use crate::cli::context::CommandContext;

#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct ImageList {
    images: Vec<Row>,
}

#[derive(Serialize, JsonSchema)]
struct Row {
    image: ImageLabel,
    /// True if the catalog or this project's castra.toml describes the image.
    known: bool,
    description: String,
    in_project: bool,
    in_cache: bool,
    downloaded: bool,
    size_bytes: Option<u64>,
}

/// Lists the images of the project, those that are used by default and others on disk, with their
/// locations, and all others of the catalog if they are wanted.
pub(super) fn run(available: bool, context: &CommandContext) -> Result<ExitCode> {
    let project = Project::find(context)?;
    let manager = project.manager();
    let row = |spec: &&ManagedImageSpec| {
        let found = manager.find(spec, &project.runtime);
        Row {
            image: spec.label(),
            known: true,
            description: spec.description.clone(),
            in_project: found.in_project.is_some(),
            in_cache: found.in_cache.is_some(),
            downloaded: found.is_downloaded,
            size_bytes: size_of(&found),
        }
    };
    let is_default = |row: &Row| {
        project.catalog.default_candidates().iter().any(|spec| spec.label() == row.image)
    };
    let is_own = |row: &Row| project.config.images.values().any(|spec| spec.label() == row.image);
    let is_here = |row: &Row| row.in_project || row.in_cache || row.downloaded;
    let known = project.images();
    let known = known.iter().map(row);
    let mut images: Vec<Row> =
        known.filter(|row| available || is_here(row) || is_default(row) || is_own(row)).collect();
    let is_known =
        |stored: &StoredImage| project.images().iter().any(|spec| spec.label() == stored.image);
    let others = manager.list(&project.runtime).into_iter().filter(|stored| !is_known(stored));
    images.extend(others.map(|stored| Row {
        image: stored.image,
        known: false,
        description: String::new(),
        in_project: stored.in_project,
        in_cache: stored.in_cache,
        downloaded: false,
        size_bytes: Some(stored.size_bytes),
    }));
    let mut rows = vec![["IMAGE", "VERSION", "HERE", "SIZE", "WHAT IT IS"].map(String::from)];
    rows.extend(images.iter().map(|row| {
        let size = row.size_bytes.map_or("-".into(), |bytes| ByteSize(bytes).to_string());
        let words = if row.known { &row.description } else { "(described in another castra.toml)" };
        [row.image.id.clone(), row.image.version.clone(), here(row).into(), size, words.to_owned()]
    }));
    let shown = images.len();
    let exit = context.show(&ImageList { images }, &table(&rows))?;
    if !available && shown < project.images().len() {
        context.printer.tip("  castra image list --available    lists all images of the catalog");
    }
    Ok(exit)
}

fn here(row: &Row) -> &'static str {
    match (row.in_project, row.in_cache, row.downloaded) {
        (true, _, _) => "in this project",
        (false, true, _) => "in the cache",
        (false, false, true) => "downloaded",
        (false, false, false) => "no",
    }
}

/// Returns the total size of an image's files.
pub(super) fn size_of(found: &FoundImage) -> Option<u64> {
    let paths = found.in_project.as_ref().or(found.in_cache.as_ref())?;
    Some(
        files_of(paths)
            .iter()
            .filter_map(|path| path.metadata().ok())
            .map(|metadata| metadata.len())
            .sum(),
    )
}

/// Returns an image's files, without its manifest.
pub(super) fn files_of(paths: &ManagedImagePaths) -> Vec<&Path> {
    let boot = [&paths.kernel, &paths.initramfs];
    std::iter::once(&paths.disk)
        .chain(boot.into_iter().flatten())
        .map(|path| path.as_path())
        .collect()
}
