//! The project that a command applies to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{ALLOW_OUTSIDE, Bounds, discover, load_or_default_project};
use crate::config::{ConfigError, ConfigOptions, ProjectConfig, Surroundings, UnpinnedArtifact};
use crate::context::RuntimeContext;
use crate::error::Result;
use crate::files::normalise;
use crate::layout::ProjectLayout;
use crate::managed::Catalog;
use crate::plan::Plan;
use crate::report::Event;
use crate::vm::{self, Record, VmError};

use super::args::Args;
use super::error::CliError;
use super::printer::Printer;

/// Returns the configuration after printing its warnings.
pub(super) fn config(args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ProjectConfig> {
    let config = load(&options(args), context)??;
    present(&config, args, context, printer)?;
    Ok(config)
}

/// Returns the configuration after printing its warnings; or, if that is its only fault, the files
/// of its images that have no digest yet.
pub(super) fn config_or_unpinned(
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<Result<ProjectConfig, Vec<UnpinnedArtifact>>> {
    match load(&options(args), context)? {
        Ok(config) => {
            present(&config, args, context, printer)?;
            Ok(Ok(config))
        }
        Err(ConfigError::Invalid(diagnostics)) if diagnostics.only_unpinned().is_some() => {
            Ok(Err(diagnostics.only_unpinned().unwrap_or_default().to_vec()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the project of this directory as it is without a castra.toml.
pub(super) fn default_config(context: &RuntimeContext) -> Result<ProjectConfig> {
    Ok(load(&ConfigOptions { explicit: None, skip_discovery: true }, context)??)
}

/// Finds the project's state. A broken configuration must not keep a VM from being stopped: in that
/// case the default location is used, if it has any VM.
pub(super) fn layout(args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ProjectLayout> {
    Ok(layout_and_bounds(args, context, printer)?.0)
}

/// Finds the project's state as [`layout`] does, with the bounds of its configuration.
pub(super) fn layout_and_bounds(
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<(ProjectLayout, Arc<Bounds>)> {
    let broken = match load(&options(args), context)? {
        Ok(config) => {
            announce(&config.root, args, context, printer)?;
            vm::check_readable(config.state_root.names())?;
            return Ok((config.state_root.open(context)?, config.bounds));
        }
        Err(error) => error,
    };
    let directory = working_directory()?;
    let found = discover(&options(args), &directory)?;
    let bounds = Bounds::new(found.root(&directory), &allowed_outside(context)?);
    bounds.check_state_root().map_err(ConfigError::State)?;
    let state_root = bounds.state_root();
    vm::check_readable(state_root.names())?;
    let layout = state_root.open(context)?;
    if Record::names(&layout).is_empty() {
        return Err(broken.into());
    }
    printer.warning(&format!("{broken}\nGoing by what is in {}.", layout.state_root().display()));
    Ok((layout, Arc::new(bounds)))
}

/// Prints what a user must know before a configuration is used: the project, unless it is in the
/// working directory, and warnings. State that cannot be read is an error, not a project without
/// VMs.
fn present(config: &ProjectConfig, args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<()> {
    announce(&config.root, args, context, printer)?;
    printer.diagnostics(&config.warnings);
    Ok(vm::check_readable(config.state_root.names())?)
}

/// Reports a project that was found above the working directory.
fn announce(root: &Path, args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<()> {
    if args.config.is_none() && working_directory()? != root && printer.is_first_look() {
        context.reporter.report(&Event::ProjectFound { root: root.to_owned() });
    }
    Ok(())
}

/// Returns the directories outside the project in which the user lets configurations place disks
/// and state. Relative ones are resolved against the working directory, as everywhere on a command
/// line.
fn allowed_outside(context: &RuntimeContext) -> Result<Vec<PathBuf>> {
    let Some(value) = context.environment.get(ALLOW_OUTSIDE) else { return Ok(Vec::new()) };
    let here = working_directory()?;
    let paths = std::env::split_paths(value).filter(|path| !path.as_os_str().is_empty());
    Ok(paths.map(|path| normalise(&here.join(path))).collect())
}

/// Reads all readable records; for a clone without a readable record, the one that it was made
/// with. Operations that need an unreadable record report it.
pub(super) fn records(layout: &ProjectLayout) -> BTreeMap<String, Record> {
    let load = |name: String| {
        let record = Record::load(layout, &name).or_else(|_| Record::of_new_clone(layout, &name));
        Some((name, record.ok()??))
    };
    Record::names(layout).into_iter().filter_map(load).collect()
}

/// Plans the start of the named VMs, or of all. Fails for a VM that is only recorded, with the
/// fault of its record if there is one.
pub(super) fn plan(
    config: &ProjectConfig,
    names: &[String],
    layout: &ProjectLayout,
    records: &BTreeMap<String, Record>,
) -> Result<Plan> {
    Plan::new(config, names, &Catalog::builtin(), records).map_err(|error| {
        let VmError::Unknown { vm, .. } = &error else { return error.into() };
        match Record::load(layout, vm) {
            Err(unreadable) => unreadable.into(),
            Ok(Some(record)) if record.is_unfinished_clone() => {
                let of = record.cloned.map(|cloned| cloned.of).unwrap_or_default();
                VmError::CloneUnfinished { vm: record.name, of }.into()
            }
            Ok(_) => error.into(),
        }
    })
}

/// Loads the configuration. The outer error concerns the working directory, the inner one the
/// configuration.
pub(super) fn load(
    options: &ConfigOptions,
    context: &RuntimeContext,
) -> Result<Result<ProjectConfig, ConfigError>> {
    let directory = working_directory()?;
    with_surroundings(context, |surroundings| load_or_default_project(options, &directory, surroundings))
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
    Ok(work(&Surroundings { home: home.as_deref(), known_images: &known, allowed_outside: &allowed_outside }))
}

pub(super) fn options(args: &Args) -> ConfigOptions {
    ConfigOptions { explicit: args.config.clone(), skip_discovery: args.skip_discovery }
}

pub(super) fn working_directory() -> Result<PathBuf> {
    let failed = |source| CliError::File { action: "find", path: PathBuf::from("."), source };
    Ok(std::env::current_dir().map_err(failed)?)
}
