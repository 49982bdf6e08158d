//! Error of a throwaway VM, of which nothing is left to inspect.

use crate::error::{Explain, Kind};

use super::VmError;

/// Error of a throwaway VM. Its record and its logs are gone with it, so no hint names them.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ThrowawayError(Box<VmError>);

impl ThrowawayError {
    pub(in crate::vm) fn new(error: impl Into<VmError>) -> Self {
        Self(Box::new(match error.into() {
            VmError::Provision(error) => error.of_run().into(),
            error => error,
        }))
    }
}

impl Explain for ThrowawayError {
    fn kind(&self) -> Kind {
        self.0.kind()
    }

    fn hint(&self) -> Option<String> {
        match &*self.0 {
            VmError::Start(error) => error.advice(),
            VmError::Record(_)
            | VmError::Io(_)
            | VmError::Disk(_)
            | VmError::Port(_)
            | VmError::State(_)
            | VmError::Access(_)
            | VmError::Suspend(_)
            | VmError::Clone(_)
            | VmError::Stop(_) => None,
            of_another_module => of_another_module.hint(),
        }
    }
}
