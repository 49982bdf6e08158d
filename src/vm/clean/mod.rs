//! Removes what no VM of a project needs and, on request, whole VMs.
//!
//! The survey decides what goes, then the freed space is counted, and removing comes last. The
//! project's lock is held meanwhile, of which every operation on a VM holds a share: nothing can
//! come to need what is about to go. A VM that runs or is suspended is never touched.

mod foundations;
mod orphans;
mod remove;
mod survey;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::Bounds;
use crate::context::RuntimeContext;
use crate::files::Lock;
use crate::layout::{ProjectLayout, is_frozen_layer};
use crate::report::Event;

use super::disk::{refuse_in_use, remove_disk};
use super::error::VmError;
use super::lock::ensure_reachable;
use super::record::{Record, RecordError};
use remove::{Usage, remove, remove_empty_directories, set_record_aside};
use survey::Survey;

pub use orphans::{Orphan, end_orphan, orphans};

/// What a clean may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CleanOptions {
    /// Only tell.
    pub dry_run: bool,
    /// Remove VMs that are stopped, with their disks, records and keys.
    pub disks: bool,
    /// Move records aside that cannot be read, so that `up` writes new ones.
    pub records: bool,
}

/// Sorts of things that go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CleanedKind {
    /// A VM's disk.
    Disk,
    /// Record, keys and all else of a VM.
    Vm,
    /// A record that cannot be read; it is moved aside.
    Record,
    /// A layer of clones, or a template's disk, that no disk stands on.
    Layer,
    /// An image that no disk stands on.
    Image,
    /// What was moved aside because it was damaged.
    Quarantine,
    /// A log.
    Log,
    /// What a killed castra or QEMU left, or what the next start makes anew.
    Leftover,
    /// The cache that stood in for the user's own.
    Cache,
}

/// One thing that was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// What it is.
    pub kind: CleanedKind,
    /// The VM it belonged to, if it belonged to one.
    pub vm: Option<String>,
    /// The file or directory.
    pub path: PathBuf,
    /// How much space on disk its removal frees, in bytes: nothing for what has another name elsewhere.
    pub freed_bytes: u64,
}

/// Something that stays, and that a reader might have expected to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The VM it is about, if it is about one.
    pub vm: Option<String>,
    /// What stays and why, as a sentence without its end.
    pub why: String,
}

/// What became of a project.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CleanReport {
    /// What went.
    pub removed: Vec<Cleaned>,
    /// What stays.
    pub kept: Vec<Kept>,
}

/// Removes what the project does not need; of the VMs of these names only, if there is one. A disk out of these bounds stays,
/// whatever a record says: the file may have been changed by another hand.
///
/// # Errors
/// [`RecordError::Unknown`] before anything is done; [`VmError::Disk`], [`VmError::Lock`]. What was removed before stays removed.
pub fn clean(
    names: &[String],
    options: CleanOptions,
    bounds: &Arc<Bounds>,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<CleanReport, VmError> {
    if !layout.state_root().is_dir() {
        return names.first().map_or(Ok(CleanReport::default()), |name| {
            Err(RecordError::Unknown { vm: name.clone(), similar: None }.into())
        });
    }
    let tell = || {
        let what = "another castra that works on a VM of this project".to_owned();
        context.reporter.report(&Event::Waiting { what });
    };
    let lock = Lock::acquire(&layout.project_lock(), &context.cancel, tell)?;
    let known = Record::names(layout);
    for vm in if names.is_empty() { &known } else { names } {
        ensure_reachable(vm, layout)?;
    }
    let survey = Survey { names, options, bounds, layout, context }.run()?;
    // Before anything goes: the VM of a disk that is open needs its sockets, too.
    for disk in survey.planned.iter().filter(|planned| planned.kind == CleanedKind::Disk) {
        refuse_in_use(&disk.path)?;
    }
    let mut usage = Usage::default();
    let mut report = CleanReport { removed: Vec::new(), kept: survey.kept };
    for mut planned in survey.planned {
        context.cancel.check()?;
        // What is moved aside takes what it took.
        if planned.kind != CleanedKind::Record {
            planned.freed_bytes = usage.take(&planned.path);
        }
        if !options.dry_run {
            match planned.kind {
                CleanedKind::Record => planned.path = set_record_aside(&planned, layout)?,
                CleanedKind::Disk => remove_disk(&planned.path)?,
                CleanedKind::Layer if is_frozen_layer(&planned.path) => remove_disk(&planned.path)?,
                _ => remove(&planned.path)?,
            }
        }
        report.removed.push(planned);
    }
    if !options.dry_run {
        remove_empty_directories(layout, context, names.is_empty());
    }
    drop(lock);
    report.removed.sort_by(|one, other| (one.kind, &one.path).cmp(&(other.kind, &other.path)));
    Ok(report)
}
