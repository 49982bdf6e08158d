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

/// Place and length of the superblock, and of the numbers in it that make up the size.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const BLOCKS_LOW: usize = 0x4;
const BLOCKS_HIGH: usize = 0x150;
const BLOCK_SIZE_SHIFT: usize = 0x18;
const BLOCKS_PER_GROUP: usize = 0x20;

/// Refuses a filesystem that claims to be larger than its disk, as Linux does. The library reserves
/// memory for as many groups of blocks as there are said to be, and ends the process if it gets
/// none.
fn check_size(disk: &mut Window) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut superblock = [0; SUPERBLOCK_BYTES];
    Ext4Read::read(disk, SUPERBLOCK, &mut superblock)?;
    let number = |at| {
        let bytes = superblock[at..].first_chunk().copied().unwrap_or_default();
        u64::from(u32::from_le_bytes(bytes))
    };
    let blocks = number(BLOCKS_HIGH) << 32 | number(BLOCKS_LOW);
    let block = u32::try_from(number(BLOCK_SIZE_SHIFT))
        .ok()
        .and_then(|shift| 1024_u64.checked_shl(shift).filter(|block| *block > 0));
    let bytes = block.and_then(|block| block.checked_mul(blocks));
    let groups = blocks.checked_div(number(BLOCKS_PER_GROUP));
    // A group has a descriptor of at least 32 bytes on the disk.
    let is_plausible = bytes.is_some_and(|bytes| bytes <= disk.length)
        && groups.is_some_and(|groups| groups <= disk.length / 32);
    if is_plausible { Ok(()) } else { Err("it claims to be larger than its disk".into()) }
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
    check_size(&mut material.open()?).map_err(|reason| failed(Ext4Error::Io(reason)))?;
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
