//! Making and growing a VM's own disk.

use std::fs::OpenOptions;
use std::path::Path;

use crate::cancel::Cancel;
use crate::command::{self, Invocation};
use crate::context::Environment;

use super::error::QemuError;
use super::overlay;

/// Makes the empty file at `path` a qcow2 of `size_bytes` that stands on `backing_file`. The name is written as given and
/// not looked at: a relative one counts from the overlay's directory, so that the project can be moved.
///
/// # Errors
/// [`QemuError::File`].
pub fn create_overlay(path: &Path, backing_file: &Path, size_bytes: u64) -> Result<(), QemuError> {
    let failed = |source| QemuError::File { action: "create", path: path.to_owned(), source };
    let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    overlay::write(&mut file, backing_file, size_bytes).and_then(|()| file.sync_all()).map_err(failed)
}

/// Makes a qcow2 `size_bytes` large. Its content stays; the file may only grow.
///
/// # Errors
/// [`QemuError::NotInstalled`], [`QemuError::MakeDisk`], [`QemuError::Interrupted`].
pub fn resize_disk(
    disk: &Path,
    size_bytes: u64,
    environment: &Environment,
    cancel: &Cancel,
) -> Result<(), QemuError> {
    let invocation = qemu_img(environment)?.args(["resize", "-q", "-f", "qcow2"]).arg(disk);
    run(invocation.arg(size_bytes.to_string()), disk, cancel)
}

fn qemu_img(environment: &Environment) -> Result<Invocation, QemuError> {
    command::find_program(environment, "qemu-img")
        .map(|program| Invocation::new(program).environment(environment.for_qemu()))
        .ok_or_else(|| QemuError::NotInstalled { program: "qemu-img".into() })
}

fn run(invocation: Invocation, disk: &Path, cancel: &Cancel) -> Result<(), QemuError> {
    match command::run(&invocation, None, cancel) {
        Ok(_) => Ok(()),
        Err(command::CommandError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(source) => Err(QemuError::MakeDisk { path: disk.to_owned(), source }),
    }
}
