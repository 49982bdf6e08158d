//! `castra config`: one file a subcommand.

mod check;
mod show;

pub(super) use check::ConfigChecked;
pub(super) use show::ConfigShown;

use std::path::PathBuf;
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::{ConfigOptions, SCHEMA_URL, json_schema};
use crate::context::RuntimeContext;
use crate::error::Result;

use super::args::{Args, ConfigArgs, ConfigCommand};
use super::error::CliError;
use super::printer::Printer;
use super::{exit, printer, project, table};

/// Runs one subcommand.
pub(super) fn run(
    config: &ConfigArgs,
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

/// Returns the configuration options; a path given to the subcommand takes precedence over
/// `--config`.
fn options(path: Option<&PathBuf>, args: &Args) -> ConfigOptions {
    let options = project::options(args);
    ConfigOptions { explicit: path.cloned().or(options.explicit), ..options }
}

/// The result of `castra config schema`.
#[derive(Serialize, JsonSchema)]
pub(super) struct SchemaShown {
    /// Published location of this version's schema.
    url: &'static str,
    /// The JSON Schema.
    schema: serde_json::Value,
}

fn schema(printer: &Printer) -> Result<ExitCode> {
    let schema = json_schema();
    // `{:#}` is JSON with indentation.
    let text = format!("{schema:#}\n");
    printer.show(&SchemaShown { url: SCHEMA_URL, schema }, &text)?;
    Ok(ExitCode::SUCCESS)
}
