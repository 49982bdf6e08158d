//! Loads the project of a directory, with what its meaning depends on outside the file.

use std::path::{Path, PathBuf};

use crate::context::RuntimeContext;
use crate::files::normalise;
use crate::managed::Catalog;

use super::discovery::load_or_default_project;
use super::{ALLOW_OUTSIDE, ConfigError, ConfigOptions, ProjectConfig, Surroundings};

/// Loads the configuration that `options` select in a directory, or the default project if there is
/// no file.
///
/// # Errors
/// [`ConfigError`].
pub fn load(
    options: &ConfigOptions,
    working_directory: &Path,
    context: &RuntimeContext,
) -> Result<ProjectConfig, ConfigError> {
    with_surroundings(working_directory, context, |surroundings| {
        load_or_default_project(options, working_directory, surroundings)
    })
}

/// Returns the directories outside the project in which the user lets configurations place disks
/// and state. Relative ones are resolved against the working directory, as everywhere on a command
/// line.
pub fn allowed_outside(working_directory: &Path, context: &RuntimeContext) -> Vec<PathBuf> {
    let Some(value) = context.environment.get(ALLOW_OUTSIDE) else { return Vec::new() };
    let paths = std::env::split_paths(value).filter(|path| !path.as_os_str().is_empty());
    paths.map(|path| normalise(&working_directory.join(path))).collect()
}

/// Runs `work` with everything outside the file that the meaning of a configuration depends on.
pub fn with_surroundings<T>(
    working_directory: &Path,
    context: &RuntimeContext,
    work: impl FnOnce(&Surroundings<'_>) -> T,
) -> T {
    let home = context.environment.absolute_path("HOME");
    let catalog = Catalog::builtin();
    let known: Vec<(&str, &str)> =
        catalog.images().iter().map(|image| (image.id.as_str(), image.version.as_str())).collect();
    work(&Surroundings {
        home: home.as_deref(),
        known_images: &known,
        allowed_outside: &allowed_outside(working_directory, context),
    })
}
