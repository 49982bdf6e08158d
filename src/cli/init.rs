use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::{self, defaults};
use crate::context::RuntimeContext;
use crate::error::Result;
use crate::layout::CONFIG_FILE;
use crate::vm::BaseKind;

use super::args::{Args, InitArgs};
use super::error::CliError;
use super::printer::Printer;
use super::project;

/// Outcome of `castra init`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Initialised {
    /// The configuration file.
    path: PathBuf,
}

/// Writes a castra.toml that changes nothing yet: every default, commented out. Never overwrites a
/// file.
pub(super) fn run(
    _init: &InitArgs,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<ExitCode> {
    let (project, image) = proposal(context)?;
    let path = args.config.clone().unwrap_or(project::working_directory()?.join(CONFIG_FILE));
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => CliError::AlreadyThere { path: path.clone() },
        _ => CliError::File { action: "create", path: path.clone(), source },
    };
    // Whatever the umask, no other user may change what `castra up` does.
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o644).open(&path).map_err(failed)?;
    file.write_all(config::template(&project, &image).as_bytes()).map_err(failed)?;
    printer.success(&format!("wrote {}", path.display()));
    printer.tip("  castra up    starts what it describes");
    printer.show(&Initialised { path }, "")?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a name and an image that fit the directory: a VM that was started without a file keeps
/// the image that its disk is based on.
fn proposal(context: &RuntimeContext) -> Result<(String, String)> {
    let config = project::default_config(context)?;
    let layout = config.state_root.open(context)?;
    let record = project::records(&layout).remove(defaults::IMAGE);
    let image = match record.map(|record| record.base.kind) {
        Some(BaseKind::Managed(label)) => label.id,
        Some(BaseKind::Path(_)) | None => defaults::IMAGE.to_owned(),
    };
    Ok((config.name, image))
}
