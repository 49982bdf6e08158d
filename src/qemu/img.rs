//! `qemu-img`: making and growing a VM's own disk.

use std::path::Path;

use crate::cancel::Cancel;
use crate::command::{self, Invocation};
use crate::context::Environment;

use super::error::QemuError;

/// Makes a qcow2 of `size_bytes` at `overlay` that stands on `backing_file`. The name is written as given: a relative
/// one is relative to the overlay's directory, so that the project can be moved.
///
/// # Errors
/// [`QemuError::NotInstalled`], [`QemuError::MakeDisk`], [`QemuError::Interrupted`].
pub fn create_overlay(
    overlay: &Path,
    backing_file: &Path,
    size_bytes: u64,
    environment: &Environment,
    cancel: &Cancel,
) -> Result<(), QemuError> {
    let arguments = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    let invocation = qemu_img(environment)?.args(arguments).arg(backing_file).arg(overlay);
    run(invocation.arg(size_bytes.to_string()), overlay, cancel)
}

/// Makes a qcow2 of `size_bytes` at `layer` that names a backing file without looking at it: the name is right where the
/// layer will be used, and may lead nowhere from here.
///
/// # Errors
/// As for [`create_overlay`].
pub fn create_layer(
    layer: &Path,
    backing_file: &Path,
    size_bytes: u64,
    environment: &Environment,
    cancel: &Cancel,
) -> Result<(), QemuError> {
    let arguments = ["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"];
    let invocation = qemu_img(environment)?.args(arguments).arg(backing_file).arg(layer);
    run(invocation.arg(size_bytes.to_string()), layer, cancel)
}

/// Makes a qcow2 `size_bytes` large. Its content stays; the file may only grow.
///
/// # Errors
/// As for [`create_overlay`].
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
        .map(Invocation::new)
        .ok_or_else(|| QemuError::NotInstalled { program: "qemu-img".into() })
}

fn run(invocation: Invocation, disk: &Path, cancel: &Cancel) -> Result<(), QemuError> {
    match command::run(&invocation, None, cancel) {
        Ok(_) => Ok(()),
        Err(command::CommandError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(source) => Err(QemuError::MakeDisk { path: disk.to_owned(), source }),
    }
}
