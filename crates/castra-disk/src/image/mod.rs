//! Images: a chain of qcow2 and raw files as one source.
//!
//! The caller opens the files, and names the format of each: no file is opened here because a
//! header names it, and no format is guessed from content that a guest may have written.

mod cache;
mod header;
mod qcow2;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub use header::HeaderError;
use qcow2::{Extent, Qcow2};

use crate::source::{Source, check_range};

/// Format of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// QEMU's format.
    Qcow2,
    /// Bytes of the disk.
    Raw,
}

/// An opened file of a chain. It needs no permission to write.
#[derive(Debug)]
pub struct Layer {
    /// The file.
    pub file: File,
    /// Format of the file.
    pub format: Format,
}

/// A chain that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no layer.
    #[error("a disk has at least one layer")]
    Empty,
    /// The file of a layer cannot be read.
    #[error("layer {layer} of the disk cannot be read")]
    Read {
        /// Number of layers above it.
        layer: usize,
        /// Error of the file.
        source: io::Error,
    },
    /// The header of a qcow2 is invalid or has features that are not supported.
    #[error("layer {layer} of the disk: {source}")]
    Header {
        /// Number of layers above it.
        layer: usize,
        /// Fault of the header.
        source: HeaderError,
    },
    /// A layer has a backing file by its header, and is the last of the chain.
    #[error("layer {layer} of the disk has a backing file, which is missing")]
    NoBacking {
        /// Number of layers above it.
        layer: usize,
    },
    /// A layer has no backing file by its header, and another one follows.
    #[error("layer {layer} of the disk has no backing file, but another layer follows")]
    NotBacked {
        /// Number of layers above it.
        layer: usize,
    },
}

/// A disk in one or several files.
pub struct Image {
    layers: Vec<Opened>,
}

enum Opened {
    Raw { file: File, length: u64 },
    Qcow2(Box<Qcow2>),
}

impl Image {
    /// Opens a chain, from the overlay down to the last backing file.
    ///
    /// # Errors
    /// [`ImageError`] names the layer.
    pub fn open(layers: impl IntoIterator<Item = Layer>) -> Result<Self, ImageError> {
        let mut opened = Vec::new();
        let mut must_follow = None;
        for (layer, Layer { file, format }) in layers.into_iter().enumerate() {
            if must_follow == Some(false) {
                return Err(ImageError::NotBacked { layer: layer - 1 });
            }
            let (next, has_backing) = match format {
                Format::Raw => {
                    let metadata = file.metadata();
                    let length = metadata.map_err(|source| ImageError::Read { layer, source })?;
                    (Opened::Raw { file, length: length.len() }, false)
                }
                Format::Qcow2 => {
                    let (qcow2, has_backing) = Qcow2::open(file, layer)?;
                    (Opened::Qcow2(Box::new(qcow2)), has_backing)
                }
            };
            opened.push(next);
            must_follow = Some(has_backing);
        }
        match must_follow {
            None => Err(ImageError::Empty),
            Some(true) => Err(ImageError::NoBacking { layer: opened.len() - 1 }),
            Some(false) => Ok(Self { layers: opened }),
        }
    }

    /// Reads from a layer and those below it; beyond the end of a layer, everything is zero.
    fn read_layer(&self, layer: usize, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let Some(opened) = self.layers.get(layer) else {
            buffer.fill(0);
            return Ok(());
        };
        let exists = opened.length().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let (buffer, beyond) = buffer.split_at_mut(exists);
        beyond.fill(0);
        match opened {
            Opened::Raw { file, .. } => read_or_zero(file, offset, buffer),
            Opened::Qcow2(qcow2) => self.read_qcow2(qcow2, layer, offset, buffer),
        }
    }

    fn read_qcow2(
        &self,
        qcow2: &Qcow2,
        layer: usize,
        mut offset: u64,
        mut buffer: &mut [u8],
    ) -> io::Result<()> {
        while !buffer.is_empty() {
            let (extent, length) = qcow2.extent(offset)?;
            let length = length.min(buffer.len() as u64) as usize;
            let (piece, rest) = buffer.split_at_mut(length);
            match extent {
                Extent::Zero => piece.fill(0),
                Extent::Below => self.read_layer(layer + 1, offset, piece)?,
                extent => qcow2.read(extent, piece)?,
            }
            buffer = rest;
            offset += length as u64;
        }
        Ok(())
    }
}

impl Opened {
    fn length(&self) -> u64 {
        match self {
            Self::Raw { length, .. } => *length,
            Self::Qcow2(qcow2) => qcow2.length(),
        }
    }
}

impl Source for Image {
    fn length(&self) -> u64 {
        self.layers[0].length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        check_range(self.length(), offset, buffer.len())?;
        self.read_layer(0, offset, buffer)
    }
}

/// Fills the buffer from a file; beyond its end, everything is zero, as QEMU reads it.
fn read_or_zero(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                buffer.fill(0);
                return Ok(());
            }
            Ok(count) => {
                buffer = &mut buffer[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
