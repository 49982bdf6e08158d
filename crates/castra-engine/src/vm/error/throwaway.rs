//! Error of a throwaway VM, of which nothing is left to inspect.

use crate::error::{Explain, Kind};

use super::{ProvisionError, VmError};

/// Error of a throwaway VM. Its record and its logs are gone with it, so no hint names them.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ThrowawayError(Box<VmError>);

impl ThrowawayError {
    pub(in crate::vm) fn new(error: impl Into<VmError>) -> Self {
        Self(Box::new(error.into()))
    }
}

impl Explain for ThrowawayError {
    fn kind(&self) -> Kind {
        self.0.kind()
    }

    fn hint(&self) -> Option<String> {
        match &*self.0 {
            VmError::Start(error) => error.advice(),
            VmError::Provision(error) => hint_of_steps(error),
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

/// Returns the hint of an error of a VM's steps, which belong to an image or to the command line.
fn hint_of_steps(error: &ProvisionError) -> Option<String> {
    let hint = match error {
        ProvisionError::Failed { .. } => {
            "Nothing of this step is kept, and the steps before it are not run again."
        }
        ProvisionError::SecretsNotGranted { .. } => {
            "A step can send them anywhere. If you want it, run `castra up --allow-secrets` in the \
            project once."
        }
        other => return other.hint(),
    };
    Some(hint.to_owned())
}
