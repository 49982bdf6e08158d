//! Errors of sessions.

use castra_wire::RecordError;
use castra_wire::stream::{Refusal, Target};

use crate::error::{Explain, Kind};
use crate::guest::ssh::SshError;

/// Error of an operation in a session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// All stream ports of the VM are in use, or it has none.
    #[error("all ways into the VM are in use, or it has no agent of castra's")]
    NoPort,
    /// The guest does not answer.
    #[error("the VM's agent does not answer")]
    Silent,
    /// The session has ended: the VM was stopped or suspended, or its guest has rebooted.
    #[error("the connection to the VM was lost")]
    Lost,
    /// The guest has no such user.
    #[error("the VM has no user {0}")]
    UnknownUser(String),
    /// No such program runs, or there is no such directory.
    #[error("not found")]
    NotFound,
    /// Nothing answers at the port, or the guest lacks resources.
    #[error("not available in the VM")]
    Unavailable,
    /// The guest's agent comes from an older castra.
    #[error("the agent in this VM comes from an older castra, which cannot do this")]
    OldAgent,
    /// The arguments and variables are longer than the guest's kernel allows.
    #[error("the arguments and variables are too long for the VM")]
    TooLong,
    /// The program was not started.
    #[error("{reason}")]
    NotStarted {
        /// Exit status that a shell would report: 126 or 127.
        status: u32,
        /// The reason.
        reason: String,
    },
}

impl Explain for SessionError {
    fn kind(&self) -> Kind {
        match self {
            Self::NoPort => Kind::Busy,
            Self::Silent | Self::Lost | Self::Unavailable | Self::OldAgent => Kind::Unavailable,
            Self::UnknownUser(_) | Self::NotFound => Kind::NotFound,
            Self::TooLong => Kind::Usage,
            Self::NotStarted { .. } => Kind::Data,
        }
    }
}

impl From<RecordError> for SessionError {
    fn from(_: RecordError) -> Self {
        Self::Lost
    }
}

impl From<SshError> for SessionError {
    fn from(error: SshError) -> Self {
        match error {
            SshError::TooSlow { .. } => Self::Silent,
            _ => Self::Lost,
        }
    }
}

/// Returns the error for a stream that the guest refuses.
pub(super) fn of_refusal(refusal: Refusal, wanted: &Target) -> SessionError {
    match (refusal, wanted) {
        (
            Refusal::UnknownUser,
            Target::Kept { user, .. } | Target::Files { user } | Target::Watch { user, .. },
        ) => SessionError::UnknownUser(user.clone()),
        (Refusal::NotFound, _) => SessionError::NotFound,
        (Refusal::Malformed, _) => SessionError::OldAgent,
        _ => SessionError::Unavailable,
    }
}
