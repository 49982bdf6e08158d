//! Removes what no VM of a project needs and, on request, whole VMs.
//!
//! The survey decides what to remove, then the freed space is counted, and the removal comes last.
//! The project's lock is held meanwhile, which every operation on a VM shares: nothing can start to
//! need a file that is about to be removed. A VM that runs or is suspended is never touched.

mod foundations;
mod orphans;
mod remove;
mod survey;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::Bounds;
use crate::files::Lock;
use crate::layout::is_frozen_layer;
use crate::qemu::DiskName;
use crate::report::Event;

use super::disk::{refuse_in_use, remove_disk};
use super::error::VmError;
use super::lock::ensure_reachable;
use super::project::ProjectRef;
use super::record::{Record, RecordError};
use remove::{Usage, forget_data_disk, quarantine_record, remove, remove_empty_directories};
use survey::Survey;

pub use orphans::{Orphan, end_orphan, orphans};
pub use survey::vm_names;

/// Options of a clean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CleanOptions<'a> {
    /// Only report what would be removed.
    pub dry_run: bool,
    /// Remove stopped VMs, with their disks, records and keys.
    pub disks: bool,
    /// Data disks of stopped VMs that are removed, too.
    pub data_disks: DataDisks<'a>,
    /// Quarantine unreadable records, so that `up` writes new ones.
    pub records: bool,
}

/// Data disks that a clean removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DataDisks<'a> {
    /// None.
    #[default]
    Keep,
    /// Disks with one of these names.
    Named(&'a [DiskName]),
    /// All.
    All,
}

impl DataDisks<'_> {
    /// Returns `true` if a disk of this name is removed.
    fn include(self, name: &DiskName) -> bool {
        match self {
            Self::Keep => false,
            Self::Named(names) => names.contains(name),
            Self::All => true,
        }
    }
}

/// Kinds of things that are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CleanedKind {
    /// A VM's disk.
    Disk,
    /// A data disk.
    DataDisk,
    /// Record, keys and everything else of a VM.
    Vm,
    /// An unreadable record, which is quarantined.
    Record,
    /// A layer of clones, or a template's disk, that is in no backing chain.
    Layer,
    /// An image that is in no backing chain.
    Image,
    /// A damaged file in quarantine.
    Quarantine,
    /// A log.
    Log,
    /// A file that a killed castra or QEMU left, or that the next start writes again.
    Leftover,
    /// The cache that replaced the user's own.
    Cache,
}

/// One thing that was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// Kind of thing.
    pub kind: CleanedKind,
    /// The VM it belonged to, if it belonged to one.
    pub vm: Option<String>,
    /// The file or directory.
    pub path: PathBuf,
    /// Disk space in bytes that its removal frees: 0 for a file with another name elsewhere.
    pub freed_bytes: u64,
}

/// One thing that stays although a user might expect it to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The VM it is about, if it is about one.
    pub vm: Option<String>,
    /// The thing and the reason, as a sentence without its full stop.
    pub why: String,
}

/// Result of cleaning a project.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CleanReport {
    /// Things removed, or that would be.
    pub removed: Vec<Cleaned>,
    /// Things that stay.
    pub kept: Vec<Kept>,
}

/// Removes what the project does not need. If `names` is not empty, only these VMs are considered.
/// A disk outside `bounds` stays, whatever a record says, since something else may have changed the
/// record.
///
/// # Errors
/// Returns [`RecordError::Unknown`] before anything is done, [`VmError::Io`] or
/// [`VmError::Lock`]. What was removed before stays removed.
pub fn clean(
    names: &[String],
    options: CleanOptions<'_>,
    bounds: &Arc<Bounds>,
    project: ProjectRef<'_>,
) -> Result<CleanReport, VmError> {
    if !project.layout.state_root().is_dir() {
        return names.first().map_or(Ok(CleanReport::default()), |name| {
            Err(RecordError::Unknown { vm: name.clone(), similar: None }.into())
        });
    }
    let report_wait = || {
        let what = "another castra working on a VM of this project".to_owned();
        project.report(&Event::Waiting { what });
    };
    let lock = Lock::acquire(&project.layout.project_lock(), project.cancel(), report_wait)?;
    let known = Record::names(project.layout);
    for vm in if names.is_empty() { &known } else { names } {
        ensure_reachable(vm, project.layout)?;
    }
    let survey = Survey { names, options, bounds, project }.run()?;
    // Before anything is removed, since the VM of an open disk also needs its sockets.
    let is_disk = |kind| matches!(kind, CleanedKind::Disk | CleanedKind::DataDisk);
    for disk in survey.planned.iter().filter(|planned| is_disk(planned.kind)) {
        refuse_in_use(&disk.path)?;
    }
    let mut usage = Usage::default();
    let mut report = CleanReport { removed: Vec::new(), kept: survey.kept };
    for mut planned in survey.planned {
        project.cancel().check()?;
        // A quarantined file frees nothing.
        if planned.kind != CleanedKind::Record {
            planned.freed_bytes = usage.take(&planned.path);
        }
        if !options.dry_run {
            match planned.kind {
                CleanedKind::Record => planned.path = quarantine_record(&planned, project.layout)?,
                CleanedKind::Disk => remove_disk(&planned.path)?,
                CleanedKind::DataDisk => {
                    remove_disk(&planned.path)?;
                    forget_data_disk(&planned, project.layout)?;
                }
                CleanedKind::Layer if is_frozen_layer(&planned.path) => remove_disk(&planned.path)?,
                _ => remove(&planned.path)?,
            }
        }
        report.removed.push(planned);
    }
    if !options.dry_run {
        remove_empty_directories(project, names.is_empty());
    }
    drop(lock);
    report.removed.sort_by(|one, other| (one.kind, &one.path).cmp(&(other.kind, &other.path)));
    Ok(report)
}
