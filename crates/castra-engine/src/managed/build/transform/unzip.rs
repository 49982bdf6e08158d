//! Extraction of one member of a ZIP archive. Wheels are ZIP archives.

use std::io::{BufReader, Read as _};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use super::{MAX_FILE_BYTES, Material, TransformError, write_out};
use crate::cancel::Cancel;
use crate::managed::error::ImageError;
use crate::size::ByteSize;

/// Extracts the member of exactly this name into `output`. Its name is never used as a path.
pub(super) fn unzip(
    material: &Material,
    member: &str,
    output: &Path,
    cancel: &Cancel,
) -> Result<Material, ImageError> {
    let failed = |source| TransformError::Archive { path: material.path.clone(), source };
    let no_such =
        || TransformError::NoSuchMember { path: material.path.clone(), member: member.to_owned() };
    let mut archive = ZipArchive::new(BufReader::new(material.open()?)).map_err(failed)?;
    if archive.has_duplicate_names() {
        return Err(TransformError::AmbiguousArchive { path: material.path.clone() }.into());
    }
    let file = archive.by_name(member).map_err(|error| match error {
        ZipError::FileNotFound => no_such(),
        other => failed(other),
    })?;
    if !file.is_file() {
        return Err(no_such().into());
    }
    let declared = file.size();
    if declared > MAX_FILE_BYTES {
        return Err(TransformError::TooLarge {
            what: member.to_owned(),
            limit: ByteSize(MAX_FILE_BYTES),
        }
        .into());
    }
    // Reads one byte more than declared, so that a member that lies about its size is noticed.
    let damaged = |error| failed(ZipError::Io(error));
    let unpacked = write_out(file.take(declared + 1), output, cancel, damaged)?;
    if unpacked.length != declared {
        let problem = ZipError::InvalidArchive("a member does not have its declared size".into());
        return Err(failed(problem).into());
    }
    Ok(unpacked)
}
