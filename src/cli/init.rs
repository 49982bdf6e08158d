//! `castra init`: writes a commented `castra.toml`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::config::{self, defaults};
use castra_engine::context::working_directory;
use castra_engine::error::Result;
use castra_engine::layout::CONFIG_FILE;
use castra_engine::vm::{BaseKind, Record};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::InitArgs;
use super::context::CommandContext;
use super::error::CliError;
use super::project;

/// Outcome of `castra init`.
#[derive(Serialize, JsonSchema)]
pub(super) struct Initialised {
    /// The configuration file.
    path: PathBuf,
}

/// Writes a castra.toml that changes nothing yet: every default, commented out. Never overwrites a
/// file.
pub(super) fn run(_init: &InitArgs, context: &CommandContext) -> Result<ExitCode> {
    let (project, image) = proposal(context)?;
    let path = context.args.config.clone().unwrap_or(working_directory()?.join(CONFIG_FILE));
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => CliError::AlreadyThere { path: path.clone() },
        _ => CliError::File { action: "create", path: path.clone(), source },
    };
    // Whatever the umask, no other user may change what `castra up` does.
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o644).open(&path).map_err(failed)?;
    if let Err(error) = file.write_all(config::template(&project, &image).as_bytes()) {
        // What is there of it would be taken for a configuration without VMs.
        let _ = fs::remove_file(&path);
        return Err(failed(error).into());
    }
    context.printer.success(&format!("wrote {}", path.display()));
    context.printer.tip("  castra up    starts what it describes");
    context.printer.show(&Initialised { path }, "")?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a name and an image that fit the directory: a VM that was started without a file keeps
/// the image that its disk is based on.
fn proposal(context: &CommandContext) -> Result<(String, String)> {
    let config = project::default_config(&context.runtime)?;
    let layout = config.state_root.open(&context.runtime)?;
    let record = Record::all(&layout).remove(defaults::IMAGE);
    let image = match record.map(|record| record.base.kind) {
        Some(BaseKind::Managed(label)) => label.id,
        Some(BaseKind::Path(_)) | None => defaults::IMAGE.to_owned(),
    };
    Ok((config.name, image))
}
