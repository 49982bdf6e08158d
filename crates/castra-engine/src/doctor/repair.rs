//! Repairs that lose nothing a user made.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::cancel::Interrupted;
use crate::context::RuntimeContext;
use crate::error::{Explain, Kind, kind_of_io};
use crate::qemu::QemuBinary;
use crate::template::{self, TemplateError};

use super::Finding;

/// A repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repair {
    /// Remove templates that no VM will be restored from; new ones are made when they are needed.
    PruneTemplates,
    /// Remove a file that is recreated automatically.
    RemoveFile(PathBuf),
    /// Make a directory accessible to this user alone.
    Tighten(PathBuf),
}

/// Reason why a repair failed.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A template cannot be removed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A file cannot be changed.
    #[error("cannot change {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The user interrupted it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl Explain for RepairError {
    fn kind(&self) -> Kind {
        match self {
            Self::Template(error) => error.kind(),
            Self::File { source, .. } => kind_of_io(source),
            Self::Interrupted(_) => Kind::Interrupted,
        }
    }
}

/// Carries out all repairs, each once. Returns a description of what was done.
///
/// # Errors
/// The first failure.
pub fn fix(findings: &[Finding], context: &RuntimeContext) -> Result<Vec<String>, RepairError> {
    let mut done: Vec<&Repair> = Vec::new();
    let mut descriptions = Vec::new();
    for repair in findings.iter().filter_map(|finding| finding.repair.as_ref()) {
        context.cancel.check()?;
        if !done.contains(&repair) {
            descriptions.push(carry_out(repair, context)?);
            done.push(repair);
        }
    }
    Ok(descriptions)
}

fn carry_out(repair: &Repair, context: &RuntimeContext) -> Result<String, RepairError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RepairError::File { path, source }
    };
    Ok(match repair {
        Repair::PruneTemplates => {
            let qemu = QemuBinary::find(&context.environment).ok();
            let gone =
                template::prune(&context.cache, qemu.as_ref(), false, false, &context.cancel)?;
            format!("removed {} obsolete warm templates and the records of failed ones", gone.len())
        }
        Repair::RemoveFile(path) => {
            fs::remove_file(path).map_err(failed(path))?;
            format!("removed {}", path.display())
        }
        Repair::Tighten(path) => {
            fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed(path))?;
            format!("made {} private (0700)", path.display())
        }
    })
}
