//! Context of a command: options, surroundings and printer, and the project, each of whose parts is
//! found once.

use std::cell::{Cell, OnceCell};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use castra_engine::config::{
    Bounds, ConfigError, ConfigOptions, ProjectConfig, UnpinnedArtifact, allowed_outside, discover,
};
use castra_engine::context::{RuntimeContext, working_directory};
use castra_engine::error::Result;
use castra_engine::layout::ProjectLayout;
use castra_engine::report::Event;
use castra_engine::vm::{self, Record};
use serde::Serialize;

use super::args::Args;
use super::printer::Printer;
use super::project;

/// Everything that a command works with. `castra.toml` is parsed once and the state directory found
/// once, at the first use of either; warnings about them are printed once, too.
pub(super) struct CommandContext<'a> {
    /// The options that every command has.
    pub(super) args: &'a Args,
    /// The runtime context, without the project's mirrors.
    pub(super) runtime: RuntimeContext,
    /// Prints results, tips and failures.
    pub(super) printer: &'a Printer,
    config: OnceCell<Result<ProjectConfig, ConfigError>>,
    state: OnceCell<State>,
    is_announced: Cell<bool>,
    has_warned_of_config: Cell<bool>,
    has_warned_of_default: Cell<bool>,
}

/// The project's state directory, opened.
struct State {
    layout: ProjectLayout,
    bounds: Arc<Bounds>,
    /// Reason why the default location replaces the configuration's.
    broken: Option<String>,
}

impl<'a> CommandContext<'a> {
    /// Creates the context of one command, without looking for its project yet.
    pub(super) fn new(args: &'a Args, runtime: RuntimeContext, printer: &'a Printer) -> Self {
        Self {
            args,
            runtime,
            printer,
            config: OnceCell::new(),
            state: OnceCell::new(),
            is_announced: Cell::new(false),
            has_warned_of_config: Cell::new(false),
            has_warned_of_default: Cell::new(false),
        }
    }

    /// Returns how the command line names the configuration.
    pub(super) fn config_options(&self) -> ConfigOptions {
        project::options(self.args)
    }

    /// Returns the configuration, and shows its warnings.
    ///
    /// # Errors
    /// Fails for a configuration that cannot be used, or state that cannot be read.
    pub(super) fn config(&self) -> Result<&ProjectConfig> {
        let config = self.unchecked_config()?;
        self.announce(&config.root)?;
        if !self.has_warned_of_config.replace(true) {
            self.printer.diagnostics(&config.warnings);
        }
        vm::check_readable(config.state_root.names())?;
        Ok(config)
    }

    /// Returns the configuration without showing anything, for what it only adds to.
    ///
    /// # Errors
    /// Returns errors as [`Self::config`] does.
    pub(super) fn silent_config(&self) -> Result<&ProjectConfig> {
        let config = self.unchecked_config()?;
        vm::check_readable(config.state_root.names())?;
        Ok(config)
    }

    /// Returns the configuration without showing anything or looking at the state that it names.
    ///
    /// # Errors
    /// Fails for a configuration that cannot be used.
    pub(super) fn unchecked_config(&self) -> Result<&ProjectConfig> {
        Ok(self.parsed()?.as_ref().map_err(Clone::clone)?)
    }

    /// Returns the configuration, or, if nothing else is wrong with it, the files of its images
    /// that have no digest yet.
    ///
    /// # Errors
    /// Returns errors as [`Self::config`] does.
    pub(super) fn config_or_unpinned(
        &self,
    ) -> Result<Result<&ProjectConfig, Vec<UnpinnedArtifact>>> {
        if let Err(ConfigError::Invalid(diagnostics)) = self.parsed()?
            && let Some(unpinned) = diagnostics.only_unpinned()
        {
            return Ok(Err(unpinned.to_vec()));
        }
        self.config().map(Ok)
    }

    /// Returns the runtime context with the mirrors of this configuration.
    pub(super) fn with_mirrors_of(&self, config: &ProjectConfig) -> RuntimeContext {
        let mut runtime = self.runtime.clone();
        runtime.mirrors.extend(config.mirrors.iter().cloned());
        runtime
    }

    /// Finds the project's state. A broken configuration must not keep a VM from being stopped: in
    /// that case the default location is used, with a warning, if it has any VM.
    ///
    /// # Errors
    /// Fails for state that must not be used or cannot be read, or with the fault of a broken
    /// configuration.
    pub(super) fn layout(&self) -> Result<&ProjectLayout> {
        Ok(self.layout_and_bounds()?.0)
    }

    /// Returns the project's state as [`Self::layout`] does, for operations on its VMs.
    ///
    /// # Errors
    /// Returns errors as [`Self::layout`] does.
    pub(super) fn project(&self) -> Result<vm::ProjectRef<'_>> {
        Ok(vm::ProjectRef::new(self.layout()?, &self.runtime))
    }

    /// Returns the project's state as [`Self::layout`] does, with the bounds of its configuration.
    ///
    /// # Errors
    /// Returns errors as [`Self::layout`] does.
    pub(super) fn layout_and_bounds(&self) -> Result<(&ProjectLayout, &Arc<Bounds>)> {
        if let Ok(config) = self.parsed()? {
            self.announce(&config.root)?;
        }
        let State { layout, bounds, broken } = self.state()?;
        if let Some(broken) = broken
            && !self.has_warned_of_default.replace(true)
        {
            let place = layout.state_root().display();
            self.printer.warning(&format!("{broken}\nUsing the records in {place} instead."));
        }
        Ok((layout, bounds))
    }

    /// Returns where the project's state is, without showing anything.
    ///
    /// # Errors
    /// Returns errors as [`Self::layout`] does.
    pub(super) fn silent_layout(&self) -> Result<&ProjectLayout> {
        Ok(&self.state()?.layout)
    }

    /// Prints the command's result, as JSON or as text, and returns success.
    ///
    /// # Errors
    /// Returns errors of stdout.
    pub(super) fn show(&self, json: &impl Serialize, text: &str) -> Result<ExitCode> {
        self.printer.show(json, text)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Parses the configuration on first use. The outer error concerns the working directory.
    fn parsed(&self) -> Result<&Result<ProjectConfig, ConfigError>> {
        if let Some(parsed) = self.config.get() {
            return Ok(parsed);
        }
        let image = project::chosen_image(self.args)?;
        let options = ConfigOptions { image, ..self.config_options() };
        let parsed = project::try_load(&options, &self.runtime)?;
        Ok(self.config.get_or_init(|| parsed))
    }

    /// Opens the state directory, the first time.
    fn state(&self) -> Result<&State> {
        if let Some(state) = self.state.get() {
            return Ok(state);
        }
        let found = self.find_state()?;
        Ok(self.state.get_or_init(|| found))
    }

    fn find_state(&self) -> Result<State> {
        let broken = match self.parsed()? {
            Ok(config) => {
                vm::check_readable(config.state_root.names())?;
                let layout = config.state_root.open(&self.runtime)?;
                return Ok(State { layout, bounds: Arc::clone(&config.bounds), broken: None });
            }
            Err(error) => error,
        };
        let directory = working_directory()?;
        let found = discover(&self.config_options(), &directory)?;
        let bounds =
            Bounds::new(found.root(&directory), &allowed_outside(&directory, &self.runtime));
        bounds.check_state_root().map_err(ConfigError::State)?;
        let state_root = bounds.state_root();
        vm::check_readable(state_root.names())?;
        let layout = state_root.open(&self.runtime)?;
        if Record::names(&layout).is_empty() {
            return Err(broken.clone().into());
        }
        Ok(State { layout, bounds: Arc::new(bounds), broken: Some(broken.to_string()) })
    }

    /// Reports a project that was found above the working directory.
    fn announce(&self, root: &Path) -> Result<()> {
        let is_elsewhere = self.args.config.is_none() && working_directory()? != root;
        if is_elsewhere && !self.is_announced.replace(true) {
            self.runtime.reporter.report(&Event::ProjectFound { root: root.to_owned() });
        }
        Ok(())
    }
}
