//! Transformation of a source's bytes into a file of an image: the steps of [`TransformStep`], each
//! a function from one [`Material`] to the next.
//!
//! A verified download is never written to. Steps that only need part of a file (removing a VHD's
//! footer) narrow the view of it instead of copying it, and zeros stay holes.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::cancel::Cancel;
use crate::failpoint::{self, Point};
use crate::files::{self, At, Digest, FileError, HashError, Hasher};
use crate::managed::error::ImageError;
use crate::managed::job::Job;
use crate::managed::spec::{ManagedArtifactSpec, TransformStep};

pub(crate) mod convert;
mod decompress;
pub(crate) mod error;
mod ext4;
mod magic;
mod unzip;
mod vhd;

pub use error::TransformError;
pub use vhd::{VhdKind, parse_vhd_footer};

/// Longest file that a step may make in bytes, holes included. Images of this kind take a hundredth
/// of it; a compressed file that promises more is a bomb.
pub(crate) const MAX_FILE_BYTES: u64 = 64 << 30;

/// An intermediate file, or the first bytes of one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Material {
    path: PathBuf,
    /// Number of bytes that count, from the file's start.
    length: u64,
    /// True if those are all its bytes.
    whole: bool,
    /// SHA-256 of those bytes in hexadecimal, if it was computed while they were written.
    sha256: Option<String>,
}

/// A finished file.
pub(crate) struct Product {
    pub(crate) path: PathBuf,
    /// SHA-256 in hexadecimal, unless another program wrote the file.
    pub(crate) sha256: Option<String>,
}

/// Runs a verified download through an artifact's pipeline and returns the finished file, which
/// lies in `work`.
pub(crate) fn run(
    job: &Job,
    artifact: &ManagedArtifactSpec,
    blob: &Path,
    work: &Path,
) -> Result<Product, ImageError> {
    let mut material = Material::whole(blob)?;
    if let Digest::Sha256(verified) = &artifact.digest {
        material.sha256 = Some(verified.clone());
    }
    for (number, step) in artifact.pipeline.iter().enumerate() {
        job.check()?;
        if let Some(words) = in_words(step) {
            job.step(artifact.role, words);
        }
        // A name that no `Rename` can ask for.
        let output = work.join(format!(".step-{number}"));
        let next = apply(job, step, &material, &output, work)?;
        failpoint::reach(Point::StepDone);
        if material.path.starts_with(work) && material.path != next.path {
            files::remove_file(&material.path)?;
        }
        material = next;
    }
    finished(job, material, work)
}

fn apply(
    job: &Job,
    step: &TransformStep,
    material: &Material,
    output: &Path,
    work: &Path,
) -> Result<Material, ImageError> {
    let cancel = &job.context.cancel;
    match step {
        TransformStep::StripVhdFooter => vhd::strip_footer(material),
        TransformStep::Rename { name } => rename(job, material, &work.join(name), work),
        TransformStep::QemuImgConvert { input_format, output_format } => {
            convert::convert(job, material, *input_format, output, *output_format)?;
            Material::whole(output)
        }
        TransformStep::ExtractFile { path } => ext4::extract(material, path, output, cancel),
        TransformStep::Unzip { member } => unzip::unzip(material, member, output, cancel),
        TransformStep::Decompress { format } => {
            decompress::decompress(material, *format, output, MAX_FILE_BYTES, cancel)
        }
    }
}

fn in_words(step: &TransformStep) -> Option<String> {
    Some(match step {
        TransformStep::StripVhdFooter => "stripping the VHD footer".to_owned(),
        TransformStep::QemuImgConvert { input_format, output_format } => {
            format!("converting {input_format} to {output_format}")
        }
        TransformStep::ExtractFile { path } => format!("extracting {path}"),
        TransformStep::Unzip { member } => {
            format!("unzipping {}", member.rsplit('/').next().unwrap_or(member))
        }
        TransformStep::Decompress { .. } => "decompressing".to_owned(),
        TransformStep::Rename { .. } => return None,
    })
}

/// Gives the material a name of its own, as a link if possible.
fn rename(
    job: &Job,
    material: &Material,
    target: &Path,
    work: &Path,
) -> Result<Material, ImageError> {
    if material.path.starts_with(work) {
        fs::rename(&material.path, target).at("rename", &material.path)?;
    } else if fs::hard_link(&material.path, target).is_err() {
        return copy(job, material, target);
    }
    Ok(Material { path: target.to_owned(), ..material.clone() })
}

/// Returns the file to publish: one in `work` that holds the material and nothing else.
fn finished(job: &Job, material: Material, work: &Path) -> Result<Product, ImageError> {
    if material.whole && material.path.starts_with(work) {
        return Ok(Product { path: material.path, sha256: material.sha256 });
    }
    let target = work.join(".finished");
    if material.whole && fs::hard_link(&material.path, &target).is_ok() {
        return Ok(Product { path: target, sha256: material.sha256 });
    }
    let copied = copy(job, &material, &target)?;
    Ok(Product { path: copied.path, sha256: copied.sha256 })
}

fn copy(job: &Job, material: &Material, target: &Path) -> Result<Material, ImageError> {
    let (from, to) = (material.open()?, files::create_new(target)?);
    let mut hasher = Hasher::sha256();
    let length =
        files::copy_sparse(from, to, &mut hasher, &job.context.cancel).at("write", target)?;
    Ok(Material::written(target, length, hasher))
}

/// Writes a step's output and returns it. Damaged input and a full disk both arrive as I/O errors;
/// only the latter have a system error number.
fn write_out(
    from: impl Read,
    output: &Path,
    cancel: &Cancel,
    damaged: impl FnOnce(io::Error) -> TransformError,
) -> Result<Material, ImageError> {
    let to = files::create_new(output)?;
    let mut hasher = Hasher::sha256();
    let length =
        files::copy_sparse(from, to, &mut hasher, cancel).map_err(|error| match error {
            HashError::Interrupted(interrupted) => ImageError::from(interrupted),
            HashError::Io(error) if error.raw_os_error().is_some() => {
                FileError::io("write", output, error).into()
            }
            HashError::Io(error) => damaged(error).into(),
        })?;
    Ok(Material::written(output, length, hasher))
}

impl Material {
    fn whole(path: &Path) -> Result<Self, ImageError> {
        let length = files::open(path)?.metadata().at("look at", path)?.len();
        Ok(Self { path: path.to_owned(), length, whole: true, sha256: None })
    }

    /// Returns the material of a file that this process has just written, through this hasher.
    fn written(path: &Path, length: u64, hasher: Hasher) -> Self {
        let sha256 = Some(hasher.finish().hex().to_owned());
        Self { path: path.to_owned(), length, whole: true, sha256 }
    }

    fn open(&self) -> Result<Window, ImageError> {
        Ok(Window { file: files::open(&self.path)?, length: self.length, position: 0 })
    }
}

/// Reader of the first bytes of a file, as if it held no others.
#[derive(Debug)]
struct Window {
    file: File,
    length: u64,
    position: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.position);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count =
            std::os::unix::fs::FileExt::read_at(&self.file, &mut buffer[..most], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
