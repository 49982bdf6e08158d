use std::process::ExitCode;

use crate::context::RuntimeContext;
use crate::error::Result;
use crate::managed::{Catalog, ImageManager, ManagedImageSpec};

use super::args::{Args, Image, ImageCommand};
use super::error::CliError;
use super::printer::Printer;
use super::project;
use super::table::table;

/// Looks at managed images.
pub(super) fn run(
    image: &Image,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<ExitCode> {
    match image.command {
        ImageCommand::List => list(args, context, printer),
    }
}

fn list(args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ExitCode> {
    let config = project::config(args, context, printer)?;
    let manager = ImageManager::new(&config.layout);
    let catalog = Catalog::builtin();
    let row = |spec: &ManagedImageSpec| {
        let here = if manager.is_cached(spec, context) { "yes" } else { "no" };
        [spec.id.clone(), spec.version.clone(), here.into(), spec.description.clone()]
    };
    let mut rows = vec![["IMAGE", "VERSION", "HERE", "WHAT IT IS"].map(String::from)];
    rows.extend(catalog.images().iter().chain(config.images.values()).map(row));
    printer.result(&table(&rows)).map_err(CliError::from)?;
    Ok(ExitCode::SUCCESS)
}
