//! `castra config`: one file per subcommand.

mod check;
mod show;

use std::process::ExitCode;

use castra_engine::config::{SCHEMA_URL, json_schema};
use castra_engine::error::Result;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{ConfigArgs, ConfigCommand};
use super::context::CommandContext;
use super::error::CliError;
use super::printer::Printer;
use super::{exit, printer, table};

pub(super) use check::ConfigChecked;
pub(super) use show::ConfigShown;

/// Runs one subcommand.
pub(super) fn run(config: &ConfigArgs, context: &CommandContext) -> Result<ExitCode> {
    match &config.command {
        ConfigCommand::Check { .. } => check::run(context),
        ConfigCommand::Show { .. } => show::run(context),
        ConfigCommand::Schema => schema(context.printer),
    }
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
