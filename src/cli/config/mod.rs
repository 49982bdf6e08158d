//! `castra config`: one file a subcommand.

mod check;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{ConfigOptions, json_schema};
use crate::context::RuntimeContext;
use crate::error::Result;

use super::args::{Args, Config, ConfigCommand};
use super::error::CliError;
use super::printer::Printer;
use super::{exit, printer, project, table};

/// Runs one subcommand.
pub(super) fn run(
    config: &Config,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<ExitCode> {
    match &config.command {
        ConfigCommand::Check { path } => check::run(&options(path.as_ref(), args), context, printer),
        ConfigCommand::Show { path } => show::run(&options(path.as_ref(), args), context, printer),
        ConfigCommand::Schema => schema(printer),
    }
}

/// A path given to the subcommand wins over `--config`.
fn options(path: Option<&PathBuf>, args: &Args) -> ConfigOptions {
    let options = project::options(args);
    ConfigOptions { explicit: path.cloned().or(options.explicit), ..options }
}

/// The schema is a JSON document of its own kind, which validators must be able to read: it is the same with `--json`.
fn schema(printer: &Printer) -> Result<ExitCode> {
    let mut text = serde_json::to_string_pretty(&json_schema()).map_err(std::io::Error::from).map_err(CliError::from)?;
    text.push('\n');
    printer.result(&text).map_err(CliError::from)?;
    Ok(ExitCode::SUCCESS)
}
