//! `castra image show`: sources, digests and local copies of one image.

use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::files::Digest;
use castra_engine::managed::{
    ArtifactRole, ArtifactSource, FoundImage, ManagedArtifactSpec, ManagedImagePaths,
    ManagedImageSpec, QemuProfile, TransformStep,
};
use castra_engine::report::ImageLabel;
use castra_engine::size::ByteSize;
use schemars::JsonSchema;
use serde::Serialize;

use super::Project;
use super::list::{files_of, size_of};
use crate::cli::context::CommandContext;

#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct ImageShown {
    image: ImageLabel,
    description: String,
    artifacts: Vec<Artifact>,
    profile: QemuProfile,
    /// Location in the project; `null` unless the project has the complete image.
    project: Option<Place>,
    /// Location in the cache; `null` unless the cache has the complete image.
    cache: Option<Place>,
    downloaded: bool,
    size_bytes: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
struct Artifact {
    role: ArtifactRole,
    source: ArtifactSource,
    digest: Digest,
    size_bytes: Option<u64>,
    pipeline: Vec<TransformStep>,
}

#[derive(Serialize, JsonSchema)]
struct Place {
    directory: PathBuf,
    files: Vec<PathBuf>,
    disk_sha256: String,
}

/// Shows one image: its artifacts, and its locations.
pub(super) fn run(image: &str, context: &CommandContext) -> Result<ExitCode> {
    let project = Project::find(context)?;
    let spec = project.image(image)?;
    let found = project.manager().find(spec, &project.runtime);
    let output = ImageShown {
        image: spec.label(),
        description: spec.description.clone(),
        artifacts: spec.artifacts.iter().map(artifact).collect(),
        profile: spec.profile.clone(),
        project: found.in_project.as_ref().map(place),
        cache: found.in_cache.as_ref().map(place),
        downloaded: found.is_downloaded,
        size_bytes: size_of(&found),
    };
    context.show(&output, &text(spec, &found))
}

fn artifact(spec: &ManagedArtifactSpec) -> Artifact {
    Artifact {
        role: spec.role,
        source: spec.source.clone(),
        digest: spec.digest.clone(),
        size_bytes: spec.size_bytes,
        pipeline: spec.pipeline.clone(),
    }
}

fn place(paths: &ManagedImagePaths) -> Place {
    Place {
        directory: paths.directory.clone(),
        files: files_of(paths).into_iter().map(PathBuf::from).collect(),
        disk_sha256: paths.disk_sha256.clone(),
    }
}

fn text(spec: &ManagedImageSpec, found: &FoundImage) -> String {
    let mut text = format!("{}\n", spec.label());
    if !spec.description.is_empty() {
        text.push_str(&format!("  {}\n", spec.description));
    }
    let mut listed: Vec<&Digest> = Vec::new();
    for artifact in &spec.artifacts {
        if listed.contains(&&artifact.digest) {
            text.push_str(&format!("\n  {}\n    from the same download\n", artifact.role));
            continue;
        }
        listed.push(&artifact.digest);
        text.push_str(&format!("\n  {}\n", artifact.role));
        let sources = match &artifact.source {
            ArtifactSource::Url(urls) => urls.clone(),
            other => vec![other.to_string()],
        };
        let sources = sources.iter().map(|source| format!("    from    {source}\n"));
        text.extend(sources);
        text.push_str(&format!("    {}  {}\n", artifact.digest.algorithm(), artifact.digest.hex()));
        text.extend(
            artifact
                .size_bytes
                .map(|size| format!("    size    {} ({size} bytes)\n", ByteSize(size))),
        );
    }
    if let Some(line) = &spec.profile.command_line {
        text.push_str(&format!("\n  command line  {line}\n"));
    }
    text.push_str(&format!("\n  project       {}\n", whether(found.in_project.as_ref())));
    text.push_str(&format!("  cache         {}\n", whether(found.in_cache.as_ref())));
    text.extend(size_of(found).map(|size| format!("  size          {}\n", ByteSize(size))));
    text
}

fn whether(paths: Option<&ManagedImagePaths>) -> String {
    paths.map_or_else(|| "no".to_owned(), |paths| paths.directory.display().to_string())
}
