//! Checks a `castra.toml` more closely than starting VMs does: all of its problems, and those of
//! this machine with it.

use std::path::{Path, PathBuf};

use super::discovery::{pinned_beside, read};
use super::machine::Machine;
use super::validate;
use super::{ConfigError, ConfigOptions, Diagnostics, Surroundings, resolve_config_path};

/// Result of a check.
#[derive(Debug)]
pub struct Checked {
    /// The checked file; `None` if there is none, since the default project needs none.
    pub file: Option<PathBuf>,
    /// All problems and warnings, in the file's order.
    pub diagnostics: Diagnostics,
}

/// Checks the configuration file, and whether this machine has what its VMs need.
///
/// # Errors
/// [`ConfigError`] if the file cannot be read as a configuration at all; problems inside it are
/// part of the result.
pub fn check(
    options: &ConfigOptions,
    working_directory: &Path,
    surroundings: &Surroundings<'_>,
    machine: &dyn Machine,
) -> Result<Checked, ConfigError> {
    let Some(file) = resolve_config_path(options, working_directory)? else {
        return Ok(Checked { file: None, diagnostics: Diagnostics::default() });
    };
    let text = read(&file)?;
    let examined = surroundings.with_pinned(&pinned_beside(&file)?, |surroundings| {
        validate::examine(&text, &file, surroundings, Some(machine))
    });
    let diagnostics = match examined {
        Ok(project) => project.warnings,
        Err(ConfigError::Invalid(diagnostics)) => *diagnostics,
        Err(error) => return Err(error),
    };
    Ok(Checked { file: Some(file), diagnostics })
}
