//! `qemu-img`: converting disks, and looking at them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Material, TransformError};
use crate::command::{self, CommandError, Invocation};
use crate::managed::error::ImageError;
use crate::managed::job::Job;
use crate::qemu::{DiskError, DiskFormat, Qcow2Header, QemuError};

/// `qemu-img` on the `PATH`.
pub(in crate::managed) fn qemu_img(job: &Job) -> Result<PathBuf, TransformError> {
    let found = command::find_program(&job.context.environment, "qemu-img");
    found.ok_or(TransformError::MissingQemuImg)
}

/// Converts a disk into a new file. A disk that leans on other files is refused: what it would draw in is not pinned.
pub(super) fn convert(
    job: &Job,
    material: &Material,
    input_format: DiskFormat,
    output: &Path,
    output_format: DiskFormat,
) -> Result<(), ImageError> {
    let input = input_options(material, input_format);
    if input_format == DiskFormat::Qcow2
        && let Some(problem) = qcow2_problem(&material.path)
    {
        return Err(TransformError::BadDisk { path: material.path.clone(), problem }.into());
    }
    // A raw disk has no words in it that could name another file.
    if input_format != DiskFormat::Raw {
        let described = describe(job, &material.path, &[OsString::from("--image-opts"), input.clone()])?;
        if let Some(problem) = described.leans_on() {
            return Err(TransformError::BadDisk { path: material.path.clone(), problem }.into());
        }
    }
    let invocation = Invocation::new(qemu_img(job)?)
        .args(["convert", "-O", output_format.name(), "--image-opts"])
        .arg(input)
        .arg(output);
    let action = || format!("convert {} from {input_format} to {output_format}", material.path.display());
    match run(job, &invocation, action) {
        Err(ImageError::Transform(TransformError::QemuImg { source, .. })) if is_about_space(&source) => {
            let source = std::io::Error::new(std::io::ErrorKind::StorageFull, source);
            Err(ImageError::DiskFull { path: output.to_owned(), source })
        }
        other => other.map(drop),
    }
}

/// Whether `qemu-img` ended for lack of space, by the words of the C library.
fn is_about_space(error: &CommandError) -> bool {
    const WORDS: [&str; 3] = ["No space left on device", "Disk quota exceeded", "File too large"];
    matches!(error, CommandError::Failed { stderr, .. } if WORDS.iter().any(|words| stderr.contains(words)))
}

/// What is wrong with a qcow2 that leans on other files or is none of the kind that is known, as the end of a sentence about
/// it. Looked at here and first: qemu-img opens what it names, even to tell of it. Nothing for what is no qcow2 at all.
pub(in crate::managed) fn qcow2_problem(disk: &Path) -> Option<String> {
    match Qcow2Header::read(disk) {
        Ok(header) => header.backing_file.map(|file| format!("has a backing file, {}", file.display())),
        Err(QemuError::Disk(DiskError::DataElsewhere { .. })) => {
            Some("keeps its data in another file".to_owned())
        }
        Err(QemuError::Disk(DiskError::Encrypted { .. })) => Some("is encrypted".to_owned()),
        Err(QemuError::Disk(error)) => Some(format!("cannot be used: {error}")),
        Err(_) => None,
    }
}

/// What `qemu-img info` says of a disk.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::managed) struct DiskInfo {
    pub(in crate::managed) format: String,
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
    /// The files that a VMDK consists of.
    #[serde(default)]
    extents: Vec<Extent>,
}

#[derive(Debug, Deserialize)]
struct Extent {
    filename: String,
}

impl DiskInfo {
    /// The other file that the disk needs, as the end of a sentence about it.
    pub(in crate::managed) fn leans_on(&self) -> Option<String> {
        let extents = self.format_specific.iter().filter_map(|specific| specific.data.as_ref());
        let mut extents = extents.flat_map(|data| &data.extents);
        if let Some(other) = extents.find(|extent| extent.filename != self.filename) {
            return Some(format!("keeps its data in another file, {}", other.filename));
        }
        let data = self.format_specific.as_ref().and_then(|specific| specific.data.as_ref());
        let data_file = data.and_then(|data| data.data_file.as_ref());
        let backing = self.backing_filename.as_ref().map(|file| format!("has a backing file, {file}"));
        backing.or_else(|| data_file.map(|file| format!("keeps its data in another file, {file}")))
    }
}

/// Asks `qemu-img` about a disk whose format it is to find out by itself.
pub(in crate::managed) fn info(job: &Job, disk: &Path) -> Result<DiskInfo, ImageError> {
    describe(job, disk, &[disk.as_os_str().to_owned()])
}

fn describe(job: &Job, disk: &Path, arguments: &[OsString]) -> Result<DiskInfo, ImageError> {
    let invocation = Invocation::new(qemu_img(job)?).args(["info", "--output=json"]).args(arguments);
    let output = run(job, &invocation, || format!("look at {}", disk.display()))?;
    serde_json::from_slice(&output)
        .map_err(|source| TransformError::QemuImgInfo { path: disk.to_owned(), source }.into())
}

fn run(job: &Job, invocation: &Invocation, action: impl Fn() -> String) -> Result<Vec<u8>, ImageError> {
    job.note(&format!("running {}", shown(invocation)));
    let invocation = invocation.clone().environment(job.context.environment.for_qemu());
    match command::run(&invocation, None, &job.context.cancel) {
        Ok(output) => Ok(output.stdout),
        Err(CommandError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(source) => Err(TransformError::QemuImg { action: action(), source }.into()),
    }
}

fn shown(invocation: &Invocation) -> String {
    let words =
        std::iter::once(invocation.program.as_os_str()).chain(invocation.arguments.iter().map(AsRef::as_ref));
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The disk as `--image-opts`, which take any path and can be told where the disk ends: a VHD without its footer need
/// not be copied first.
fn input_options(material: &Material, format: DiskFormat) -> OsString {
    let mut options = format!("driver={format},").into_bytes();
    if format == DiskFormat::Vpc {
        // QEMU believes the geometry of most creators' VHDs, which may end before the disk does.
        options.extend_from_slice(b"force_size_calc=current_size,");
    }
    let prefix = if material.whole {
        ""
    } else {
        options.extend_from_slice(
            format!("file.driver=raw,file.offset=0,file.size={},", material.length).as_bytes(),
        );
        "file."
    };
    options.extend_from_slice(format!("{prefix}file.driver=file,{prefix}file.filename=").as_bytes());
    for byte in material.path.as_os_str().as_bytes() {
        // A comma ends a value; two are one comma.
        options.extend_from_slice(if *byte == b',' { b",," } else { std::slice::from_ref(byte) });
    }
    OsString::from_vec(options)
}
