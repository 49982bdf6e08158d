//! The project that a command applies to.

use castra_engine::config::{ChosenImage, ConfigError, ConfigOptions, ProjectConfig, load};
use castra_engine::context::{RuntimeContext, working_directory};
use castra_engine::error::Result;
use castra_engine::managed::Catalog;

use super::args::{Args, Command, ConfigCommand, UpArgs};

/// Returns the project of this directory as it is without a castra.toml.
pub(super) fn default_config(context: &RuntimeContext) -> Result<ProjectConfig> {
    let options = ConfigOptions { skip_discovery: true, ..ConfigOptions::default() };
    Ok(load(&options, &working_directory()?, context)?)
}

/// Loads the configuration. The outer error concerns the working directory, the inner one the
/// configuration.
pub(super) fn try_load(
    options: &ConfigOptions,
    context: &RuntimeContext,
) -> Result<Result<ProjectConfig, ConfigError>> {
    Ok(load(options, &working_directory()?, context))
}

/// Returns how the command line names the configuration. A path that `castra config` is given wins
/// over `--config`.
pub(super) fn options(args: &Args) -> ConfigOptions {
    let own = match &args.command {
        Command::Config(config) => match &config.command {
            ConfigCommand::Check { path } | ConfigCommand::Show { path } => path.as_ref(),
            ConfigCommand::Schema => None,
        },
        _ => None,
    };
    ConfigOptions {
        explicit: own.or(args.config.as_ref()).cloned(),
        skip_discovery: args.skip_discovery,
        image: None,
    }
}

/// Returns the image that the command line chooses for a directory without a castra.toml.
pub(super) fn chosen_image(args: &Args) -> Result<Option<ChosenImage>> {
    let Command::Up(UpArgs { image: Some(text), .. }) = &args.command else { return Ok(None) };
    let catalog = Catalog::builtin();
    Ok(Some(ChosenImage::parse(text, &working_directory()?, catalog.images())?))
}
