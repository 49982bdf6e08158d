//! First start of a VM in a copy of its project that was made while it ran in the original.

use std::path::Path;

use crate::qemu::{Disk, DiskCheck, check_disk};
use crate::report::Event;
use crate::vm::disk::data;
use crate::vm::error::{VmDiskError, VmError};
use crate::vm::monitor::clean_up;
use crate::vm::project::ProjectRef;
use crate::vm::record::{Record, copy_of, sentence_of_copy};

/// Prepares a start from the disk as it was copied. Nothing of the original is touched.
///
/// # Errors
/// Returns [`VmDiskError::CopyTorn`] for a disk that was written to between the beginning and the
/// end of the copy.
pub(in crate::vm) fn prepare(record: &Record, project: ProjectRef<'_>) -> Result<(), VmError> {
    let Some(original) = copy_of(record, project.layout) else { return Ok(()) };
    let (vm, disk) = (record.name.clone(), record.overlay_path(project.layout));
    let message = sentence_of_copy(&vm, &original);
    project.report(&Event::Warning { message });
    // Its header first, and those of its backing chain: qemu-img would follow them anywhere.
    if disk.exists() && Disk::open(&disk).is_ok() {
        match check_disk(&disk, &project.context.environment, project.cancel())? {
            DiskCheck::Sound => {}
            DiskCheck::Corrupt => return Err(VmDiskError::CopyTorn { vm, disk, original }.into()),
        }
    }
    check_data_disks(record, &original, project)?;
    let sockets = project.sockets(&vm);
    clean_up(&project.files(&vm), &sockets);
    Ok(())
}

fn check_data_disks(
    record: &Record,
    original: &Path,
    project: ProjectRef<'_>,
) -> Result<(), VmError> {
    let files = project.files(&record.name);
    data::check(&record.name, &record.data_disks, None, project.layout)?;
    for found in data::found(&files) {
        match check_disk(&found.path, &project.context.environment, project.cancel())? {
            DiskCheck::Sound => {}
            DiskCheck::Corrupt => {
                let (vm, disk, original) = (record.name.clone(), found.path, original.to_owned());
                return Err(VmDiskError::CopyTorn { vm, disk, original }.into());
            }
        }
    }
    Ok(())
}
