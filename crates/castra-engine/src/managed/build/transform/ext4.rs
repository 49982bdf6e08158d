//! Extraction of files from a disk that is one ext4 filesystem, without mounting it.

use std::error::Error;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::{MAX_FILE_BYTES, Material, TransformError, Window, write_out};
use crate::cancel::Cancel;
use crate::managed::error::ImageError;
use crate::size::ByteSize;

impl Ext4Read for Window {
    fn read(
        &mut self,
        start_byte: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        self.seek(SeekFrom::Start(start_byte))?;
        Ok(self.read_exact(bytes)?)
    }
}

/// Extracts the file at `path` (absolute, inside the filesystem) into `output`.
pub(super) fn extract(
    material: &Material,
    path: &str,
    output: &Path,
    cancel: &Cancel,
) -> Result<Material, ImageError> {
    let failed = |source| match source {
        Ext4Error::NotFound
        | Ext4Error::NotADirectory
        | Ext4Error::IsADirectory
        | Ext4Error::IsASpecialFile => {
            TransformError::NoSuchFile { path: material.path.clone(), file: path.to_owned() }
        }
        source => TransformError::Ext4 { path: material.path.clone(), source },
    };
    let filesystem = Ext4::load(Box::new(material.open()?)).map_err(failed)?;
    let file = filesystem.open(path).map_err(failed)?;
    let length = file.metadata().len();
    if length > MAX_FILE_BYTES {
        return Err(TransformError::TooLarge {
            what: path.to_owned(),
            limit: ByteSize(MAX_FILE_BYTES),
        }
        .into());
    }
    let damaged = |source| TransformError::Ext4File {
        path: material.path.clone(),
        file: path.to_owned(),
        source,
    };
    write_out(file.take(length), output, cancel, damaged)
}
