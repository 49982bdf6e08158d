//! A closer look at a `castra.toml` than starting VMs needs: all of its problems, those of this machine with it too.

use std::path::{Path, PathBuf};

use super::discovery::read;
use super::machine::Machine;
use super::validate;
use super::{ConfigError, ConfigOptions, Diagnostics, Surroundings, resolve_config_path};

/// What was looked at, and what was found.
#[derive(Debug)]
pub struct Checked {
    /// The file; nothing where there is none, and the default project needs none.
    pub file: Option<PathBuf>,
    /// All problems and warnings, in the file's order.
    pub diagnostics: Diagnostics,
}

/// Looks at the file that is meant, and at what its VMs need of this machine.
///
/// # Errors
/// [`ConfigError`] for a file that cannot even be read as one; what is wrong inside is the result.
pub fn check(
    options: &ConfigOptions,
    working_directory: &Path,
    surroundings: &Surroundings<'_>,
    machine: &dyn Machine,
) -> Result<Checked, ConfigError> {
    let Some(file) = resolve_config_path(options, working_directory)? else {
        return Ok(Checked { file: None, diagnostics: Diagnostics::default() });
    };
    let diagnostics = match validate::examine(&read(&file)?, &file, surroundings, Some(machine)) {
        Ok(project) => project.warnings,
        Err(ConfigError::Invalid(diagnostics)) => *diagnostics,
        Err(error) => return Err(error),
    };
    Ok(Checked { file: Some(file), diagnostics })
}
