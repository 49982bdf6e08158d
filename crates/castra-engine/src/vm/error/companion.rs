//! Errors of companions: the processes of castra's that work for running VMs.

use std::io;

use crate::error::{Explain, Kind};

/// Failure of a VM's companion: it cannot be started or does not answer.
#[derive(Debug, thiserror::Error)]
#[error("the companion of VM `{vm}`, which serves its mounts and ports, {what}")]
pub struct CompanionError {
    /// The VM.
    vm: String,
    /// Failure of the process, to follow its name.
    what: &'static str,
    /// The reason.
    source: io::Error,
}

impl CompanionError {
    /// Returns the failure of a VM's companion, whose description follows its name.
    pub(in crate::vm) fn new(vm: &str, what: &'static str, source: io::Error) -> Self {
        Self { vm: vm.to_owned(), what, source }
    }
}

impl Explain for CompanionError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn hint(&self) -> Option<String> {
        None
    }
}
