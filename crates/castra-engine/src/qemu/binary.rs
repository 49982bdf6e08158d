//! The QEMU program of this machine.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use crate::command::{self, Invocation};
use crate::context::Environment;
use crate::sanitize::sanitize_text;

use super::error::QemuError;
use super::options::UserArguments;

/// Name of QEMU's program.
const PROGRAM: &str = "qemu-system-x86_64";

/// The QEMU installed on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QemuBinary {
    /// Path of the program.
    pub path: PathBuf,
    /// Identity, which changes with the program and with the user's own arguments: path, size, time
    /// of change, arguments.
    pub identity: String,
    /// Environment for QEMU.
    pub environment: Environment,
    /// Arguments that the user adds to a machine's own.
    pub user_arguments: UserArguments,
}

impl QemuBinary {
    /// Finds QEMU on the `PATH`, or the program that `CASTRA_QEMU` names.
    ///
    /// # Errors
    /// [`QemuError::NotInstalled`], [`QemuError::NotExecutable`], or [`QemuError::File`] if the
    /// program cannot be examined.
    pub fn find(environment: &Environment) -> Result<Self, QemuError> {
        let named = environment.get("CASTRA_QEMU");
        let missing = || match named {
            Some(name) => {
                QemuError::NotExecutable { program: sanitize_text(&name.to_string_lossy()) }
            }
            None => QemuError::NotInstalled { program: PROGRAM.to_owned() },
        };
        let path = command::find_program(
            environment,
            named.map_or(OsStr::new(PROGRAM), OsString::as_os_str),
        )
        .ok_or_else(missing)?;
        let metadata = fs::metadata(&path).map_err(|source| QemuError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let user_arguments = UserArguments::of(environment);
        let mut identity =
            format!("{} size={} mtime={}", path.display(), metadata.size(), metadata.mtime());
        // Neither a template nor a saved state fits a machine with other devices.
        if let Some(arguments) = user_arguments.identity() {
            identity.push_str(&format!(" arguments={arguments}"));
        }
        Ok(Self { path, identity, environment: environment.for_qemu(), user_arguments })
    }

    /// Returns an invocation of the program without arguments.
    pub(super) fn invocation(&self) -> Invocation {
        Invocation::new(&self.path).environment(self.environment.clone())
    }
}
