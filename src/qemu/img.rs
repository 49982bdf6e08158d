//! Making and growing a VM's own disk, and the one place that runs `qemu-img`.

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

/// A disk as `qemu-img` is given it: never without its format, which it would guess by bytes that a stranger wrote.
#[derive(Debug, Clone, Copy)]
pub struct ImageDisk<'a> {
    /// The file.
    pub path: &'a Path,
    /// The format.
    pub format: DiskFormat,
    /// The length of the disk, where the file holds more behind it.
    pub length: Option<u64>,
}

/// The work of a `qemu-img`.
#[derive(Debug, Clone, Copy)]
pub enum ImageWork<'a> {
    /// Describe the disk, as JSON.
    Describe,
    /// Write it into another file.
    Convert {
        /// The other file.
        to: &'a Path,
        /// The other file's format.
        format: DiskFormat,
    },
    /// Write its first bytes, as the guest sees them, into another file.
    CopyBeginning {
        /// The other file, which gets the bytes as they are.
        to: &'a Path,
        /// Their number.
        bytes: u64,
    },
    /// Make a qcow2 or raw disk this many bytes large.
    Resize(u64),
    /// Look whether a qcow2's tables make sense. Changes nothing.
    Check,
}

/// Time for what reads or writes nothing but a disk's tables, on a busy machine with a slow network disk.
const SHORT_LIMIT: Duration = Duration::from_secs(120);

/// Bytes a second that a conversion does at least: a USB 2 stick does five times as much.
const SLOWEST_BYTES_A_SECOND: u64 = 1 << 20;

/// Runs this `qemu-img`, and returns what it printed. `announce` is handed the command line before.
///
/// # Errors
/// As [`command::run`]. The time is limited: for two minutes, and where a disk is converted, for a second more with each
/// MiB of it.
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
        ImageWork::Describe => tool.args(["info", "--output=json", "--image-opts"]).arg(options(disk)),
        ImageWork::Convert { to, format } => {
            tool.args(["convert", "-O", format.name(), "--image-opts"]).arg(options(disk)).arg(to)
        }
        ImageWork::CopyBeginning { to, bytes } => {
            // A program that writes to the disk meanwhile does not prevent a look at it.
            tool.args(["convert", "-U", "-O", "raw", "--image-opts"]).arg(beginning(disk, bytes)).arg(to)
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
        ImageWork::Describe | ImageWork::Resize(_) | ImageWork::Check | ImageWork::CopyBeginning { .. } => {
            SHORT_LIMIT
        }
        ImageWork::Convert { .. } => {
            let bytes = disk.path.metadata().map_or(0, |metadata| metadata.len());
            SHORT_LIMIT + Duration::from_secs(bytes / SLOWEST_BYTES_A_SECOND)
        }
    }
}

/// The first bytes of a disk that is a file of its own, as `--image-opts`.
fn beginning(disk: ImageDisk, bytes: u64) -> OsString {
    let mut options = OsString::from(format!(
        "driver=raw,offset=0,size={bytes},file.driver={},file.file.driver=file,file.file.filename=",
        disk.format
    ));
    options.push(escape_path(disk.path));
    options
}

/// The disk as `--image-opts`, which take any path and can be told where the disk ends: a VHD without its footer need
/// not be copied first.
fn options(disk: ImageDisk) -> OsString {
    let mut options = OsString::from(format!("driver={},", disk.format));
    if disk.format == DiskFormat::Vpc {
        // QEMU believes the geometry of most creators' VHDs, which may end before the disk does.
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

/// Finding of a look at a qcow2's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskCheck {
    /// They make sense; or nothing can be said, as without `qemu-img`.
    Sound,
    /// They contradict each other.
    Corrupt,
}

/// Looks whether a qcow2's tables make sense. The caller knows what it is based on.
///
/// # Errors
/// [`QemuError::Interrupted`].
pub fn check_disk(disk: &Path, environment: &Environment, cancel: &Cancel) -> Result<DiskCheck, QemuError> {
    /// Exit status of `qemu-img check` for a corrupt disk: qemu-img(1).
    const CORRUPT: i32 = 2;
    let Some(program) = command::find_program(environment, "qemu-img") else { return Ok(DiskCheck::Sound) };
    let qcow2 = ImageDisk { path: disk, format: DiskFormat::Qcow2, length: None };
    match run_image_tool(program, qcow2, ImageWork::Check, environment, cancel, |_| ()) {
        Err(CommandError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(CommandError::Failed { status, .. }) if status.code() == Some(CORRUPT) => Ok(DiskCheck::Corrupt),
        _ => Ok(DiskCheck::Sound),
    }
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
    let program = command::find_program(environment, "qemu-img")
        .ok_or_else(|| QemuError::NotInstalled { program: "qemu-img".into() })?;
    let qcow2 = ImageDisk { path: disk, format: DiskFormat::Qcow2, length: None };
    match run_image_tool(program, qcow2, ImageWork::Resize(size_bytes), environment, cancel, |_| ()) {
        Ok(_) => Ok(()),
        Err(CommandError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(source) => Err(QemuError::MakeDisk { path: disk.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_told_with_its_format_and_no_comma_adds_an_option() {
        let path = Path::new("/p/a,driver=nbd/disk");
        for (format, length, told) in [
            (DiskFormat::Raw, None, "driver=raw,file.driver=file,file.filename=/p/a,,driver=nbd/disk"),
            (DiskFormat::Qcow2, None, "driver=qcow2,file.driver=file,file.filename=/p/a,,driver=nbd/disk"),
            (
                DiskFormat::Vpc,
                Some(512),
                "driver=vpc,force_size_calc=current_size,file.driver=raw,file.offset=0,file.size=512,\
                 file.file.driver=file,file.file.filename=/p/a,,driver=nbd/disk",
            ),
        ] {
            assert_eq!(options(ImageDisk { path, format, length }), told);
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
        let environment = Environment::of([("PATH", "/bin"), ("TOKEN", "secret"), ("HOME", "/home/ada")]);
        let env = PathBuf::from("/usr/bin/env");
        let mut seen = Vec::new();
        let keep = |invocation: &Invocation| {
            seen.extend(invocation.environment.variables().map(|(name, _)| name.to_owned()));
        };
        let _ = run_image_tool(env, disk, ImageWork::Describe, &environment, &Cancel::new(), keep);
        assert_eq!(seen, ["LC_ALL", "PATH"]);
    }
}
