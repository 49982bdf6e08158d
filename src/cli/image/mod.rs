//! `castra image`: one file per subcommand. Results go to stdout, as a table or as JSON; progress
//! goes to stderr.

mod carry;
mod list;
mod prune;
mod pull;
mod show;
mod update;
mod verify;

use std::process::ExitCode;

use castra_engine::config::ProjectConfig;
use castra_engine::context::RuntimeContext;
use castra_engine::error::Result;
use castra_engine::layout::ProjectLayout;
use castra_engine::managed::{Catalog, ImageError, ImageManager, ManagedImageSpec, image_named};

use super::args::{ImageArgs, ImageCommand};
use super::context::CommandContext;
use super::table;

pub(super) use carry::{ImageExported, ImageImported};
pub(super) use list::ImageList;
pub(super) use prune::ImagesPruned;
pub(super) use pull::ImagesPulled;
pub(super) use show::ImageShown;
pub(super) use update::ImagesUpdated;
pub(super) use verify::ImagesVerified;

/// Runs one subcommand.
pub(super) fn run(image: &ImageArgs, context: &CommandContext) -> Result<ExitCode> {
    match &image.command {
        ImageCommand::List { available } => list::run(*available, context),
        ImageCommand::Show { image } => show::run(image, context),
        ImageCommand::Pull { images } => pull::run(images, context),
        ImageCommand::Update { images } => update::run(images, context),
        ImageCommand::Verify { images } => verify::run(images, context),
        ImageCommand::Import { path } => carry::import(path, context),
        ImageCommand::Export { image, path } => carry::export(image, path, context),
        ImageCommand::Prune { dry_run, downloads } => prune::run(*dry_run, *downloads, context),
    }
}

/// A project, and the images that can be named in it.
struct Project<'a> {
    config: &'a ProjectConfig,
    layout: &'a ProjectLayout,
    catalog: Catalog,
    /// The surroundings, with the project's mirrors.
    runtime: RuntimeContext,
}

impl<'a> Project<'a> {
    /// Finds the project that the command is about.
    fn find(context: &'a CommandContext) -> Result<Self> {
        Self::of(context.config()?, context)
    }

    fn of(config: &'a ProjectConfig, context: &'a CommandContext) -> Result<Self> {
        let layout = context.layout()?;
        let runtime = context.with_mirrors_of(config);
        Ok(Self { config, layout, catalog: config.catalog(), runtime })
    }

    fn manager(&self) -> ImageManager {
        ImageManager::new(self.layout)
    }

    /// Returns all images, the catalog's and the project's own.
    fn images(&self) -> Vec<&ManagedImageSpec> {
        self.catalog.images().iter().chain(self.config.images.values()).collect()
    }

    /// Returns the image that `NAME[@VERSION]` names. Without a version this is the newest, which
    /// is the first of its name.
    fn image(&self, text: &str) -> Result<&ManagedImageSpec, ImageError> {
        image_named(text, self.images())
    }

    /// Returns the images of these names, each once, or all if there is no name.
    fn images_of(&self, names: &[String]) -> Result<Vec<&ManagedImageSpec>, ImageError> {
        if names.is_empty() {
            return Ok(self.images());
        }
        let mut wanted: Vec<&ManagedImageSpec> = Vec::new();
        for name in names {
            let spec = self.image(name)?;
            if wanted.iter().all(|other| other.label() != spec.label()) {
                wanted.push(spec);
            }
        }
        Ok(wanted)
    }
}
