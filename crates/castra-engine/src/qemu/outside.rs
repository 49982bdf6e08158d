//! Files of a disk, opened for a reader on the host.

use castra_disk::Format;

use super::chain::{Disk, LayerFormat};
use super::error::QemuError;
use crate::files::open_regular;

impl Disk {
    /// Opens all files of the chain for reading, from the top down, each with its known format: the
    /// reader itself opens nothing.
    ///
    /// # Errors
    /// [`QemuError::File`].
    pub fn open_files(&self) -> Result<Vec<castra_disk::Layer>, QemuError> {
        let top = std::iter::once((&self.path, Format::Qcow2));
        let below = self.below.iter().map(|layer| {
            let format = match layer.format {
                LayerFormat::Qcow2 => Format::Qcow2,
                LayerFormat::Raw => Format::Raw,
            };
            (&layer.path, format)
        });
        let open = |(path, format)| {
            let failed =
                |source| QemuError::File { action: "read", path: Clone::clone(path), source };
            Ok(castra_disk::Layer { file: open_regular(path).map_err(failed)?, format })
        };
        top.chain(below).map(open).collect()
    }
}
