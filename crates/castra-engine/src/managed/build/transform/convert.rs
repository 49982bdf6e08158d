//! `qemu-img`: converting and inspecting disks.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Material, TransformError, magic};
use crate::command::{self, CommandError, Invocation};
use crate::context::RuntimeContext;
use crate::files::FileError;
use crate::managed::error::ImageError;
use crate::managed::job::Job;
use crate::qemu::{
    DiskError, DiskFormat, ImageDisk, ImageWork, Qcow2Header, QemuError, run_image_tool,
};

/// Finds `qemu-img` on the `PATH`.
pub(crate) fn qemu_img(job: &Job) -> Result<PathBuf, TransformError> {
    let found = command::find_program(&job.context.environment, "qemu-img");
    found.ok_or(TransformError::MissingQemuImg)
}

/// Converts a disk into a new file. A disk that depends on other files is refused, since nothing
/// pins those.
pub(super) fn convert(
    job: &Job,
    material: &Material,
    input_format: DiskFormat,
    output: &Path,
    output_format: DiskFormat,
) -> Result<(), ImageError> {
    if input_format == DiskFormat::Qcow2
        && let Some(problem) = qcow2_problem(&material.path)
    {
        return Err(TransformError::BadDisk { path: material.path.clone(), problem }.into());
    }
    let length = (!material.whole).then_some(material.length);
    let disk = ImageDisk { path: &material.path, format: input_format, length };
    // A raw disk has no metadata that could name another file.
    if input_format != DiskFormat::Raw {
        let described = describe(job, disk)?;
        if let Some(problem) = described.leans_on() {
            return Err(TransformError::BadDisk { path: material.path.clone(), problem }.into());
        }
    }
    let action =
        || format!("convert {} from {input_format} to {output_format}", material.path.display());
    match run(job, disk, ImageWork::Convert { to: output, format: output_format }, action) {
        Err(ImageError::Transform(TransformError::QemuImg { source, .. }))
            if is_about_space(&source) =>
        {
            let kind = match is_about_file_size(&source) {
                true => std::io::ErrorKind::FileTooLarge,
                false => std::io::ErrorKind::StorageFull,
            };
            let source = std::io::Error::new(kind, source);
            Err(FileError::DiskFull { path: output.to_owned(), source }.into())
        }
        other => other.map(drop),
    }
}

/// Returns `true` if `qemu-img` ended for lack of space, by the messages of the C library.
fn is_about_space(error: &CommandError) -> bool {
    const WORDS: [&str; 3] = ["No space left on device", "Disk quota exceeded", "File too large"];
    is_about_file_size(error)
        || matches!(
            error,
            CommandError::Failed { stderr, .. }
                if WORDS.iter().any(|words| stderr.contains(words))
        )
}

/// Returns `true` where `qemu-img` ended because a file became as long as it may.
fn is_about_file_size(error: &CommandError) -> bool {
    let CommandError::Failed { status, stderr, .. } = error else { return false };
    status.signal() == Some(signal_hook::consts::SIGXFSZ) || stderr.contains("File too large")
}

/// Returns the problem of a qcow2 that depends on other files or is of an unknown kind, as the end
/// of a sentence about it, or `None` for anything but a qcow2. Checked here before qemu-img runs,
/// which opens the files that a disk names even to describe it.
pub(crate) fn qcow2_problem(disk: &Path) -> Option<String> {
    match Qcow2Header::read(disk) {
        Ok(header) => {
            header.backing_file.map(|file| format!("has a backing file, {}", file.display()))
        }
        Err(QemuError::Disk(DiskError::DataElsewhere { .. })) => {
            Some("has an external data file".to_owned())
        }
        Err(QemuError::Disk(DiskError::Encrypted { .. })) => Some("is encrypted".to_owned()),
        Err(QemuError::Disk(error)) => Some(format!("cannot be used: {error}")),
        Err(_) => None,
    }
}

/// Output of `qemu-img info`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DiskInfo {
    pub(crate) format: String,
    filename: String,
    backing_filename: Option<String>,
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    data: Option<FormatData>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FormatData {
    data_file: Option<String>,
    /// Files that a VMDK consists of.
    #[serde(default)]
    extents: Vec<Extent>,
}

#[derive(Debug, Deserialize)]
struct Extent {
    filename: String,
}

impl DiskInfo {
    /// Returns the other file that the disk needs, as the end of a sentence about it.
    pub(crate) fn leans_on(&self) -> Option<String> {
        let extents = self.format_specific.iter().filter_map(|specific| specific.data.as_ref());
        let mut extents = extents.flat_map(|data| &data.extents);
        if let Some(other) = extents.find(|extent| extent.filename != self.filename) {
            return Some(format!("has an external data file, {}", other.filename));
        }
        let data = self.format_specific.as_ref().and_then(|specific| specific.data.as_ref());
        let data_file = data.and_then(|data| data.data_file.as_ref());
        let backing =
            self.backing_filename.as_ref().map(|file| format!("has a backing file, {file}"));
        backing.or_else(|| data_file.map(|file| format!("has an external data file, {file}")))
    }
}

/// Asks `qemu-img` about a disk, with the format found by its first bytes. That must not be left to
/// `qemu-img`, which takes a text that names other files for a VMDK, and opens them.
pub(crate) fn info(job: &Job, disk: &Path) -> Result<DiskInfo, ImageError> {
    let format = magic::recognise(disk)?;
    describe(job, ImageDisk { path: disk, format, length: None })
}

fn describe(job: &Job, disk: ImageDisk) -> Result<DiskInfo, ImageError> {
    let output =
        run(job, disk, ImageWork::Describe, || format!("look at {}", disk.path.display()))?;
    serde_json::from_slice(&output)
        .map_err(|source| TransformError::QemuImgInfo { path: disk.path.to_owned(), source }.into())
}

fn run(
    job: &Job,
    disk: ImageDisk,
    work: ImageWork,
    action: impl Fn() -> String,
) -> Result<Vec<u8>, ImageError> {
    let announce = |invocation: &Invocation| job.note(&format!("running {}", shown(invocation)));
    let RuntimeContext { environment, cancel, .. } = &job.context;
    match run_image_tool(qemu_img(job)?, disk, work, environment, cancel, announce) {
        Ok(output) => Ok(output.stdout),
        Err(CommandError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(source) => Err(TransformError::QemuImg { action: action(), source }.into()),
    }
}

fn shown(invocation: &Invocation) -> String {
    let words = std::iter::once(invocation.program.as_os_str())
        .chain(invocation.arguments.iter().map(AsRef::as_ref));
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
