//! Errors of finding, reading and writing records.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::ALLOW_OUTSIDE;
use crate::error::{Explain, Kind, kind_of_io};
use crate::similar::closest;
use crate::trusted::Distrust;

/// Reason why a VM's record is not available.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The record cannot be read or written.
    #[error("cannot {action} the record {}", path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The record.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The record is truncated or was edited by hand.
    #[error("the record of VM `{vm}` is damaged: {}", path.display())]
    Damaged {
        /// The VM.
        vm: String,
        /// The record.
        path: PathBuf,
        /// `true` if a QEMU of the VM is running.
        is_running: bool,
        /// The problem.
        source: serde_json::Error,
    },
    /// The record says something that no castra writes.
    #[error("the record {} is refused: {problem}", path.display())]
    Refused {
        /// The VM.
        vm: String,
        /// The record.
        path: PathBuf,
        /// `true` if a QEMU of the VM is running.
        is_running: bool,
        /// The problem.
        problem: String,
    },
    /// The record was written by a newer castra.
    #[error(
        "the record of VM `{vm}` has format {format}; this castra supports formats up to \
        {known}"
    )]
    TooNew {
        /// The VM.
        vm: String,
        /// The record.
        path: PathBuf,
        /// `true` if a QEMU of the VM is running.
        is_running: bool,
        /// Format of the record.
        format: u32,
        /// Newest format known here.
        known: u32,
    },
    /// There is no such VM in the project.
    #[error("there is no VM `{vm}` here{}", did_you_mean(similar))]
    Unknown {
        /// Requested name.
        vm: String,
        /// Closest existing name.
        similar: Option<String>,
    },
    /// Nothing was ever started here.
    #[error("there are no VMs here yet")]
    NoneYet,
    /// There are several VMs, so a name is needed.
    #[error("there are several VMs here: {}", names.join(", "))]
    Ambiguous {
        /// Names of all of them.
        names: Vec<String>,
    },
}

impl RecordError {
    /// Returns [`RecordError::Unknown`] for a name that is not among `known`.
    pub fn unknown<S: AsRef<str>>(vm: &str, known: &[S]) -> Self {
        let similar = closest(vm, known.iter().map(AsRef::as_ref)).map(str::to_owned);
        Self::Unknown { vm: vm.to_owned(), similar }
    }
}

impl Explain for RecordError {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => kind_of_io(source),
            Self::Damaged { .. } | Self::Refused { .. } | Self::TooNew { .. } => Kind::Data,
            Self::Unknown { .. } | Self::NoneYet => Kind::NotFound,
            Self::Ambiguous { .. } => Kind::Usage,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io { path, source, .. } => return hint_of_io(path, source),
            Self::Damaged { vm, is_running, .. } | Self::Refused { vm, is_running, .. } => {
                without_record(vm, *is_running)
            }
            Self::TooNew { vm, is_running, .. } => format!(
                "Update castra, or use the one that made this VM. Otherwise: {}",
                without_record(vm, *is_running)
            ),
            Self::Unknown { .. } => "`castra status` lists the VMs of this project.".into(),
            Self::NoneYet => "`castra up` starts one.".into(),
            Self::Ambiguous { .. } => "Name the one you mean.".into(),
        })
    }
}

/// Returns the way to a new record for the same disk.
fn without_record(vm: &str, is_running: bool) -> String {
    let steps = format!(
        "`castra clean --records {vm}` quarantines the record, and `castra up {vm}` then writes a \
        new one for the same disk."
    );
    match is_running {
        true => format!("The VM is running: `castra down {vm}` stops it. Then {steps}"),
        false => steps,
    }
}

/// Returns the way out if a file of the project's state cannot be used because it belongs to
/// another user or is not writable.
pub(in crate::vm) fn hint_of_io(path: &Path, source: &io::Error) -> Option<String> {
    if let Some(distrust) = Distrust::of(source) {
        return Some(distrust.way_out(path));
    }
    (kind_of_io(source) == Kind::Permission).then(|| {
        format!(
            "Castra keeps its state beside your work: make {} writable for yourself, or work in a \
            directory of your own. To keep the state elsewhere, name a directory as `state_dir` in \
            castra.toml and in {ALLOW_OUTSIDE}.",
            path.parent().unwrap_or(path).display()
        )
    })
}

fn did_you_mean(similar: &Option<String>) -> String {
    similar.as_ref().map_or(String::new(), |name| format!("; did you mean `{name}`?"))
}
