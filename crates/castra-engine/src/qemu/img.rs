//! Creates and grows a VM's own disk, and runs `qemu-img`, here only.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cancel::Cancel;
use crate::command::{self, CommandError, Invocation, Output};
use crate::context::Environment;

use super::argv::escape_path;
use super::error::QemuError;
use super::{DiskFormat, overlay};

/// Turns the empty file at `path` into a qcow2 of `size_bytes` with the backing file
/// `backing_file`. The name is written as given, without opening the file: a relative one counts
/// from the overlay's directory, so that the project can be moved.
///
/// # Errors
/// [`QemuError::File`].
pub fn create_overlay(path: &Path, backing_file: &Path, size_bytes: u64) -> Result<(), QemuError> {
    let failed = |source| QemuError::File { action: "create", path: path.to_owned(), source };
    let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    overlay::write(&mut file, backing_file, size_bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed)
}

/// Turns the empty file at `path` into a qcow2 of `size_bytes` without a backing file, all of it
/// zero.
///
/// # Errors
/// [`QemuError::File`].
pub fn create_blank_disk(path: &Path, size_bytes: u64) -> Result<(), QemuError> {
    let failed = |source| QemuError::File { action: "create", path: path.to_owned(), source };
    let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    overlay::write_blank(&mut file, size_bytes).and_then(|()| file.sync_all()).map_err(failed)
}

/// A disk for `qemu-img`: always with its format, which it would otherwise guess from bytes that a
/// stranger wrote.
#[derive(Debug, Clone, Copy)]
pub struct ImageDisk<'a> {
    /// The file.
    pub path: &'a Path,
    /// The format.
    pub format: DiskFormat,
    /// Length of the disk, if the file holds more data after it.
    pub length: Option<u64>,
}

/// Task of a `qemu-img`.
#[derive(Debug, Clone, Copy)]
pub enum ImageWork<'a> {
    /// Describes the disk, as JSON.
    Describe,
    /// Converts the disk into another file.
    Convert {
        /// Path of the other file.
        to: &'a Path,
        /// Format of the other file.
        format: DiskFormat,
    },
    /// Writes the disk's first bytes, as the guest sees them, into another file.
    CopyBeginning {
        /// Path of the other file, which receives the raw bytes.
        to: &'a Path,
        /// Number of bytes.
        bytes: u64,
    },
    /// Resizes a qcow2 or raw disk to this many bytes.
    Resize(u64),
    /// Checks that a qcow2's tables are consistent. Changes nothing.
    Check,
}

/// Time limit for operations that read or write only a disk's tables, on a busy machine with a slow
/// network disk.
const SHORT_LIMIT: Duration = Duration::from_secs(120);

/// Slowest acceptable conversion, in bytes per second: a USB 2 stick is five times as fast.
const SLOWEST_BYTES_A_SECOND: u64 = 1 << 20;

/// Runs `qemu-img` and returns its output. `announce` is called with the command line first.
///
/// # Errors
/// As [`command::run`]. The time is limited to two minutes; conversions have an additional second
/// per MiB of the disk.
pub fn run_image_tool(
    program: PathBuf,
    disk: ImageDisk,
    work: ImageWork,
    environment: &Environment,
    cancel: &Cancel,
    announce: impl FnOnce(&Invocation),
) -> Result<Output, CommandError> {
    let tool = Invocation::new(program).environment(environment.for_qemu());
    let invocation = match work {
        ImageWork::Describe => {
            tool.args(["info", "--output=json", "--image-opts"]).arg(options(disk))
        }
        ImageWork::Convert { to, format } => {
            tool.args(["convert", "-O", format.name(), "--image-opts"]).arg(options(disk)).arg(to)
        }
        ImageWork::CopyBeginning { to, bytes } => {
            // Another program that writes to the disk meanwhile does not prevent reading it.
            tool.args(["convert", "-U", "-O", "raw", "--image-opts"])
                .arg(beginning(disk, bytes))
                .arg(to)
        }
        ImageWork::Resize(bytes) => {
            tool.args(["resize", "-q", "--image-opts"]).arg(options(disk)).arg(bytes.to_string())
        }
        ImageWork::Check => tool.args(["check", "-q", "--image-opts"]).arg(options(disk)),
    };
    announce(&invocation);
    command::run(&invocation, limit(disk, work), cancel)
}

fn limit(disk: ImageDisk, work: ImageWork) -> Duration {
    match work {
        ImageWork::Describe
        | ImageWork::Resize(_)
        | ImageWork::Check
        | ImageWork::CopyBeginning { .. } => SHORT_LIMIT,
        ImageWork::Convert { .. } => {
            let bytes = disk.path.metadata().map_or(0, |metadata| metadata.len());
            SHORT_LIMIT + Duration::from_secs(bytes / SLOWEST_BYTES_A_SECOND)
        }
    }
}

/// Returns the first bytes of a disk as `--image-opts`. The disk is a file of its own.
fn beginning(disk: ImageDisk, bytes: u64) -> OsString {
    let mut options = OsString::from(format!(
        "driver=raw,offset=0,size={bytes},file.driver={},file.file.driver=file,file.file.filename=",
        disk.format
    ));
    options.push(escape_path(disk.path));
    options
}

/// Returns the disk as `--image-opts`, which accept any path and an end of the disk: a VHD without
/// its footer need not be copied first.
fn options(disk: ImageDisk) -> OsString {
    let mut options = OsString::from(format!("driver={},", disk.format));
    if disk.format == DiskFormat::Vpc {
        // QEMU trusts the geometry of most creators' VHDs, which may end before the disk does.
        options.push("force_size_calc=current_size,");
    }
    let prefix = match disk.length {
        None => "",
        Some(length) => {
            options.push(format!("file.driver=raw,file.offset=0,file.size={length},"));
            "file."
        }
    };
    options.push(format!("{prefix}file.driver=file,{prefix}file.filename="));
    options.push(escape_path(disk.path));
    options
}

/// Result of a check of a qcow2's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskCheck {
    /// The tables are consistent, or could not be checked, as without `qemu-img`.
    Sound,
    /// The tables contradict each other.
    Corrupt,
}

/// Checks a qcow2's tables. The caller knows its backing chain.
///
/// # Errors
/// [`QemuError::Interrupted`].
pub fn check_disk(
    disk: &Path,
    environment: &Environment,
    cancel: &Cancel,
) -> Result<DiskCheck, QemuError> {
    /// Exit status of `qemu-img check` for a corrupt disk: qemu-img(1).
    const CORRUPT: i32 = 2;
    let Some(program) = command::find_program(environment, "qemu-img") else {
        return Ok(DiskCheck::Sound);
    };
    let qcow2 = ImageDisk { path: disk, format: DiskFormat::Qcow2, length: None };
    match run_image_tool(program, qcow2, ImageWork::Check, environment, cancel, |_| ()) {
        Err(CommandError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(CommandError::Failed { status, .. }) if status.code() == Some(CORRUPT) => {
            Ok(DiskCheck::Corrupt)
        }
        _ => Ok(DiskCheck::Sound),
    }
}

/// Grows a qcow2 to `size_bytes`, keeping its content.
///
/// # Errors
/// [`QemuError::NotInstalled`], [`QemuError::MakeDisk`], [`QemuError::Interrupted`].
pub fn resize_disk(
    disk: &Path,
    size_bytes: u64,
    environment: &Environment,
    cancel: &Cancel,
) -> Result<(), QemuError> {
    let program = command::find_program(environment, "qemu-img")
        .ok_or_else(|| QemuError::NotInstalled { program: "qemu-img".into() })?;
    let qcow2 = ImageDisk { path: disk, format: DiskFormat::Qcow2, length: None };
    match run_image_tool(program, qcow2, ImageWork::Resize(size_bytes), environment, cancel, |_| ())
    {
        Ok(_) => Ok(()),
        Err(CommandError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(source) => Err(QemuError::MakeDisk { path: disk.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_named_with_its_format_and_no_comma_adds_an_option() {
        let path = Path::new("/p/a,driver=nbd/disk");
        for (format, length, expected) in [
            (
                DiskFormat::Raw,
                None,
                "driver=raw,file.driver=file,file.filename=/p/a,,driver=nbd/disk",
            ),
            (
                DiskFormat::Qcow2,
                None,
                "driver=qcow2,file.driver=file,file.filename=/p/a,,driver=nbd/disk",
            ),
            (
                DiskFormat::Vpc,
                Some(512),
                "driver=vpc,force_size_calc=current_size,file.driver=raw,file.offset=0,\
                file.size=512,file.file.driver=file,file.file.filename=/p/a,,driver=nbd/disk",
            ),
        ] {
            assert_eq!(options(ImageDisk { path, format, length }), expected);
        }
    }

    #[test]
    fn every_work_has_a_limit_and_runs_without_secrets() {
        let directory = tempfile::tempdir().expect("a directory");
        let disk = directory.path().join("disk");
        std::fs::File::create(&disk).and_then(|file| file.set_len(10 << 20)).expect("made");
        let disk = ImageDisk { path: &disk, format: DiskFormat::Raw, length: None };
        assert_eq!(limit(disk, ImageWork::Describe), SHORT_LIMIT);
        assert_eq!(limit(disk, ImageWork::Resize(1)), SHORT_LIMIT);
        let to = Path::new("/p/other");
        let convert = ImageWork::Convert { to, format: DiskFormat::Qcow2 };
        assert_eq!(limit(disk, convert), SHORT_LIMIT + Duration::from_secs(10));
        let environment =
            Environment::of([("PATH", "/bin"), ("TOKEN", "secret"), ("HOME", "/home/ada")]);
        let env = PathBuf::from("/usr/bin/env");
        let mut seen = Vec::new();
        let keep = |invocation: &Invocation| {
            seen.extend(invocation.environment.variables().map(|(name, _)| name.to_owned()));
        };
        let _ = run_image_tool(env, disk, ImageWork::Describe, &environment, &Cancel::new(), keep);
        assert_eq!(seen, ["LC_ALL", "PATH"]);
    }
}
