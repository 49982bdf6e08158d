//! Errors of operations on sandboxes.

use std::io;

use castra_engine::Error;
use castra_engine::session::SessionError;

/// Error of an operation on a sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("the sandbox {0} was not found")]
    NotFound(String),
    #[error("the snapshot {0} was not found")]
    NoSnapshot(String),
    #[error("the template {0} was not found; there are {1}")]
    NoTemplate(String, String),
    #[error("the sandbox {0} is paused")]
    Paused(String),
    #[error("the sandbox {0} is already paused")]
    AlreadyPaused(String),
    #[error("{0}")]
    Full(String),
    #[error("{0} is the name of a template")]
    NameTaken(String),
    #[error("cannot write a record: {0}")]
    Record(#[from] io::Error),
    #[error("{}", in_full(.0))]
    Vm(Error),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("process {0} ended while the VM was suspended")]
    ProcessEnded(u32),
    #[error("the server is ending")]
    Ending,
}

impl From<Error> for SandboxError {
    fn from(error: Error) -> Self {
        Self::Vm(error)
    }
}

/// Returns an error with its causes and its hint.
fn in_full(error: &Error) -> String {
    let causes: String = error.causes().map(|cause| format!(": {cause}")).collect();
    let hint = error.hint().map(|hint| format!(". {hint}")).unwrap_or_default();
    format!("{error}{causes}{hint}")
}
