//! First start of a VM in a copy of its project that was made while it ran in the original.

use crate::context::RuntimeContext;
use crate::layout::ProjectLayout;
use crate::qemu::{Disk, DiskCheck, check_disk};
use crate::report::Event;
use crate::vm::error::{VmDiskError, VmError};
use crate::vm::monitor::clean_up;
use crate::vm::record::{Record, copy_of, sentence_of_copy};

/// Prepares a start from the disk as it was copied. Nothing of the original is touched.
///
/// # Errors
/// Returns [`VmDiskError::CopyTorn`] for a disk that was written to between the beginning and the
/// end of the copy.
pub(in crate::vm) fn prepare(
    record: &Record,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    let Some(original) = copy_of(record, layout) else { return Ok(()) };
    let (vm, disk) = (record.name.clone(), record.overlay_path(layout));
    let message = sentence_of_copy(&vm, &original);
    context.reporter.report(&Event::Warning { message });
    // Its header first, and those of its backing chain: qemu-img would follow them anywhere.
    if disk.exists() && Disk::open(&disk).is_ok() {
        match check_disk(&disk, &context.environment, &context.cancel)? {
            DiskCheck::Sound => {}
            DiskCheck::Corrupt => return Err(VmDiskError::CopyTorn { vm, disk, original }.into()),
        }
    }
    let sockets = layout.sockets(&context.runtime_root, &vm);
    clean_up(&layout.vm(&vm), &sockets);
    Ok(())
}
