//! Which project a command is about.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::{ConfigError, ConfigOptions, ProjectConfig, Surroundings, UnpinnedArtifact};
use crate::config::{load_or_default_project, resolve_config_path};
use crate::context::RuntimeContext;
use crate::error::Result;
use crate::layout::{ProjectLayout, STATE_DIRECTORY};
use crate::managed::Catalog;
use crate::vm::Record;

use super::args::Args;
use super::error::CliError;
use super::printer::Printer;

/// The configuration, its warnings shown.
pub(super) fn config(args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ProjectConfig> {
    let config = load(&options(args), context)??;
    printer.diagnostics(&config.warnings);
    Ok(config)
}

/// The configuration, its warnings shown; or, if nothing else is wrong with it, the files of its images that have no
/// digest yet.
pub(super) fn config_or_unpinned(
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<Result<ProjectConfig, Vec<UnpinnedArtifact>>> {
    match load(&options(args), context)? {
        Ok(config) => {
            printer.diagnostics(&config.warnings);
            Ok(Ok(config))
        }
        Err(ConfigError::Invalid(diagnostics)) if diagnostics.only_unpinned().is_some() => {
            Ok(Err(diagnostics.only_unpinned().unwrap_or_default().to_vec()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The project that this directory is without any file.
pub(super) fn default_config(context: &RuntimeContext) -> Result<ProjectConfig> {
    Ok(load(&ConfigOptions { explicit: None, skip_discovery: true }, context)??)
}

/// Where the project's state is. A configuration that was broken since must not keep a VM from being stopped: then the
/// default place is taken, if there is anything.
pub(super) fn layout(args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ProjectLayout> {
    let broken = match load(&options(args), context)? {
        Ok(config) => return Ok(config.layout),
        Err(error) => error,
    };
    let directory = working_directory()?;
    let root =
        resolve_config_path(&options(args), &directory)?.and_then(|file| file.parent().map(PathBuf::from));
    let layout = ProjectLayout::new(root.unwrap_or(directory).join(STATE_DIRECTORY));
    if Record::names(&layout).is_empty() {
        return Err(broken.into());
    }
    printer.warning(&format!("{broken}\nGoing by what is in {}.", layout.state_root().display()));
    Ok(layout)
}

/// All records that can be read. One that cannot is told by whoever needs it.
pub(super) fn records(layout: &ProjectLayout) -> BTreeMap<String, Record> {
    let load = |name: String| Some((name.clone(), Record::load(layout, &name).ok()??));
    Record::names(layout).into_iter().filter_map(load).collect()
}

/// The outer error is of the working directory, the inner one of the configuration.
pub(super) fn load(
    options: &ConfigOptions,
    context: &RuntimeContext,
) -> Result<Result<ProjectConfig, ConfigError>> {
    let directory = working_directory()?;
    Ok(with_surroundings(context, |surroundings| load_or_default_project(options, &directory, surroundings)))
}

/// Does something with what the meaning of a configuration depends on.
pub(super) fn with_surroundings<T>(context: &RuntimeContext, work: impl FnOnce(&Surroundings<'_>) -> T) -> T {
    let home = context.environment.absolute_path("HOME");
    let catalog = Catalog::builtin();
    let known: Vec<(&str, &str)> =
        catalog.images().iter().map(|image| (image.id.as_str(), image.version.as_str())).collect();
    work(&Surroundings { home: home.as_deref(), known_images: &known })
}

pub(super) fn options(args: &Args) -> ConfigOptions {
    ConfigOptions { explicit: args.config.clone(), skip_discovery: args.skip_discovery }
}

pub(super) fn working_directory() -> Result<PathBuf> {
    let failed = |source| CliError::File { action: "find", path: PathBuf::from("."), source };
    Ok(std::env::current_dir().map_err(failed)?)
}
