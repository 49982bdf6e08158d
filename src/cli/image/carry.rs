//! `import` and `export`: images carried by hand.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::files::Digest;
use castra_engine::managed::ImportedFile;
use castra_engine::report::ImageLabel;
use castra_engine::size::ByteSize;
use schemars::JsonSchema;
use serde::Serialize;

use super::Project;
use crate::cli::context::CommandContext;

#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct ImageImported {
    files: Vec<File>,
}

#[derive(Serialize, JsonSchema)]
struct File {
    digest: Digest,
    size_bytes: u64,
    /// Images of the catalog and of this project that are made from the file.
    images: Vec<ImageLabel>,
}

#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct ImageExported {
    image: ImageLabel,
    path: PathBuf,
    size_bytes: u64,
}

/// Puts a file or an archive into the cache.
pub(super) fn import(path: &Path, context: &CommandContext) -> Result<ExitCode> {
    let project = Project::find(context)?;
    let imported = project.manager().import(path, &project.images(), &project.runtime)?;
    for file in &imported.files {
        context.printer.success(&describe(file));
    }
    let is_here = |label: &&ImageLabel| {
        let spec = project.images().into_iter().find(|spec| spec.label() == **label);
        spec.is_some_and(|spec| project.manager().is_cached(spec, &project.runtime))
    };
    let mut here: Vec<_> =
        imported.files.iter().flat_map(|file| &file.images).filter(is_here).collect();
    here.dedup();
    for image in here {
        context.printer.tip(&format!("  {image} no longer needs the network"));
    }
    let file = |file: ImportedFile| File {
        digest: file.digest,
        size_bytes: file.size_bytes,
        images: file.images,
    };
    let files = imported.files.into_iter().map(file).collect();
    context.show(&ImageImported { files }, "")
}

fn describe(file: &ImportedFile) -> String {
    let (digest, size) = (&file.digest, ByteSize(file.size_bytes));
    let images: Vec<String> = file.images.iter().map(ToString::to_string).collect();
    match images.is_empty() {
        false => format!("imported {size} for {}", images.join(", ")),
        true => format!(
            "imported {size}, {digest}: no image of the catalog or of this project's castra.toml \
            uses it"
        ),
    }
}

/// Writes an image into a file.
pub(super) fn export(image: &str, path: &Path, context: &CommandContext) -> Result<ExitCode> {
    let project = Project::find(context)?;
    let spec = project.image(image)?;
    let size_bytes = project.manager().export(spec, path, &project.runtime)?;
    let (label, size) = (spec.label(), ByteSize(size_bytes));
    context.printer.success(&format!("exported {label} to {} ({size})", path.display()));
    context
        .printer
        .tip(&format!("  castra image import {}    on the other machine", path.display()));
    context.show(&ImageExported { image: label, path: path.to_owned(), size_bytes }, "")
}
