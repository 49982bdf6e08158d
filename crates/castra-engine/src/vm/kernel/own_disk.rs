//! Disk that is read from outside to decide what boots from it.

use std::cell::OnceCell;
use std::io;
use std::path::Path;

use castra_disk::{Image, Inspection, Limits, Source};

use crate::cancel::Cancel;
use crate::config::VmDefinition;
use crate::qemu;
use crate::vm::error::VmError;

use super::pair::{NoKernel, Pair};

/// Part of a VM's memory that kernel and initramfs of a disk may take: unpacked, they are larger.
const MEMORY_SHARE: u64 = 2;

/// Disk of a VM, or the one that it will be made from. Opened once, at the first question.
pub(super) struct OwnDisk<'a> {
    pub(super) path: &'a Path,
    definition: &'a VmDefinition,
    cancel: &'a Cancel,
    opened: OnceCell<Result<castra_disk::Disk, NoKernel>>,
}

impl<'a> OwnDisk<'a> {
    pub(super) fn new(path: &'a Path, definition: &'a VmDefinition, cancel: &'a Cancel) -> Self {
        Self { path, definition, cancel, opened: OnceCell::new() }
    }

    /// Reads kernel and initramfs through the disk's whole backing chain. The inner error is the
    /// reason why the disk has none.
    ///
    /// # Errors
    /// [`VmError::Qemu`] for a chain that is refused; [`VmError::Interrupted`].
    pub(super) fn pair(&self) -> Result<Result<Pair, NoKernel>, VmError> {
        let most = self.most_bytes();
        let found = self.opened()?.and_then(|disk| {
            let system = disk.find_system().map_err(|reason| NoKernel::found(&reason, most))?;
            Pair::of_system(system, self.definition)
        });
        self.cancel.check()?;
        Ok(found)
    }

    /// Inspects the disk; `None` if it cannot be read.
    ///
    /// # Errors
    /// Those of [`Self::pair`].
    pub(super) fn inspect(&self) -> Result<Option<Inspection>, VmError> {
        let inspected = self.opened()?.ok().and_then(|disk| disk.inspect().ok());
        self.cancel.check()?;
        Ok(inspected)
    }

    fn opened(&self) -> Result<Result<&castra_disk::Disk, NoKernel>, VmError> {
        let opened = match self.opened.get() {
            Some(opened) => opened,
            None => {
                let opened = self.open()?;
                self.opened.get_or_init(|| opened)
            }
        };
        Ok(opened.as_ref().map_err(NoKernel::clone))
    }

    fn open(&self) -> Result<Result<castra_disk::Disk, NoKernel>, VmError> {
        let files = qemu::Disk::open(self.path)?.open_files()?;
        Ok(Image::open(files).map_err(NoKernel::because).and_then(|image| {
            let source = Interruptible { image, cancel: self.cancel.clone() };
            let limits = Limits::default();
            let kernel_bytes = limits.kernel_bytes.min(self.most_bytes());
            let limits = Limits { kernel_bytes, ..limits };
            castra_disk::Disk::open(source, limits).map_err(NoKernel::because)
        }))
    }

    /// Returns the most that kernel and initramfs may have, in bytes.
    fn most_bytes(&self) -> u64 {
        self.definition.memory_bytes / MEMORY_SHARE
    }
}

/// An image that fails to be read once the operation is interrupted.
struct Interruptible {
    image: Image,
    cancel: Cancel,
}

impl Source for Interruptible {
    fn length(&self) -> u64 {
        self.image.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.cancel.check().map_err(io::Error::other)?;
        self.image.read_at(offset, buffer)
    }
}
