//! The project that a command applies to: its configuration and its surroundings.

use std::path::PathBuf;

use castra_engine::config::{
    ALLOW_OUTSIDE, ConfigError, ConfigOptions, ProjectConfig, Surroundings, load_or_default_project,
};
use castra_engine::context::RuntimeContext;
use castra_engine::error::Result;
use castra_engine::files::normalise;
use castra_engine::managed::Catalog;

use super::args::{Args, Command, ConfigCommand};
use super::error::CliError;

/// Returns the project of this directory as it is without a castra.toml.
pub(super) fn default_config(context: &RuntimeContext) -> Result<ProjectConfig> {
    Ok(load(&ConfigOptions { explicit: None, skip_discovery: true }, context)??)
}

/// Returns the directories outside the project in which the user lets configurations place disks
/// and state. Relative ones are resolved against the working directory, as everywhere on a command
/// line.
pub(super) fn allowed_outside(context: &RuntimeContext) -> Result<Vec<PathBuf>> {
    let Some(value) = context.environment.get(ALLOW_OUTSIDE) else { return Ok(Vec::new()) };
    let here = working_directory()?;
    let paths = std::env::split_paths(value).filter(|path| !path.as_os_str().is_empty());
    Ok(paths.map(|path| normalise(&here.join(path))).collect())
}

/// Loads the configuration. The outer error concerns the working directory, the inner one the
/// configuration.
pub(super) fn load(
    options: &ConfigOptions,
    context: &RuntimeContext,
) -> Result<Result<ProjectConfig, ConfigError>> {
    let directory = working_directory()?;
    with_surroundings(context, |surroundings| {
        load_or_default_project(options, &directory, surroundings)
    })
}

/// Runs `work` with everything outside the file that the meaning of a configuration depends on.
///
/// # Errors
/// Fails if the working directory cannot be found.
pub(super) fn with_surroundings<T>(
    context: &RuntimeContext,
    work: impl FnOnce(&Surroundings<'_>) -> T,
) -> Result<T> {
    let home = context.environment.absolute_path("HOME");
    let catalog = Catalog::builtin();
    let known: Vec<(&str, &str)> =
        catalog.images().iter().map(|image| (image.id.as_str(), image.version.as_str())).collect();
    let allowed_outside = allowed_outside(context)?;
    Ok(work(&Surroundings {
        home: home.as_deref(),
        known_images: &known,
        allowed_outside: &allowed_outside,
    }))
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
    }
}

pub(super) fn working_directory() -> Result<PathBuf> {
    let failed = |source| CliError::File { action: "find", path: PathBuf::from("."), source };
    Ok(std::env::current_dir().map_err(failed)?)
}
