//! `castra init`: writes a commented `castra.toml`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::config::{self, BaseImageSource, ManagedImageSelection, TemplateBase, defaults};
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
    let text = proposal(context)?;
    let path = context.args.config.clone().unwrap_or(working_directory()?.join(CONFIG_FILE));
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => CliError::AlreadyThere { path: path.clone() },
        _ => CliError::File { action: "create", path: path.clone(), source },
    };
    // Whatever the umask, no other user may change what `castra up` does.
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o644).open(&path).map_err(failed)?;
    if let Err(error) = file.write_all(text.as_bytes()) {
        // What is there of it would be taken for a configuration without VMs.
        let _ = fs::remove_file(&path);
        return Err(failed(error).into());
    }
    context.printer.success(&format!("wrote {}", path.display()));
    context.printer.tip("  castra up    starts what it describes");
    context.printer.show(&Initialised { path }, "")?;
    Ok(ExitCode::SUCCESS)
}

/// Returns a castra.toml that fits the directory: a VM that was started without a file keeps its
/// name and the image that its disk is based on.
fn proposal(context: &CommandContext) -> Result<String> {
    let config = project::default_config(&context.runtime)?;
    let layout = config.state_root.open(&context.runtime)?;
    let vm = &config.vms[0];
    let record = Record::all(&layout).remove(&vm.name);
    let (image, file) = match (record.map(|record| record.base.kind), &vm.base_image) {
        (Some(BaseKind::Managed(label)), _) => (label.id, None),
        (Some(BaseKind::Path(path)), _) => (String::new(), Some(path)),
        (None, BaseImageSource::Path(path)) => (String::new(), Some(path.clone())),
        (None, BaseImageSource::Managed(ManagedImageSelection::Exact { name, .. })) => {
            (name.clone(), None)
        }
        (None, BaseImageSource::Managed(ManagedImageSelection::Default)) => {
            (defaults::IMAGE.to_owned(), None)
        }
    };
    let base = file.as_deref().map_or(TemplateBase::Managed(&image), TemplateBase::File);
    Ok(config::template(&config.name, &vm.name, base))
}
