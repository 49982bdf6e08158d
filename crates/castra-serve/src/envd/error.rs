//! Errors of the services in a sandbox, as the Connect protocol has them.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use castra_engine::session::SessionError;
use castra_engine::session::sftp::{Code as Status, Failure};
use serde_json::{Value, json};

use crate::sandboxes::SandboxError;

/// Code of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Unimplemented,
    Internal,
    Unavailable,
    Unauthenticated,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::PermissionDenied => "permission_denied",
            Self::ResourceExhausted => "resource_exhausted",
            Self::FailedPrecondition => "failed_precondition",
            Self::Unimplemented => "unimplemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::Unauthenticated => "unauthenticated",
        }
    }

    /// Returns the status of an answer without a stream.
    fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists => StatusCode::CONFLICT,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
        }
    }
}

/// Error of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectError {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl ConnectError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// Returns the error for a path.
    pub(crate) fn of_path(path: &str, failure: Failure) -> Self {
        match failure {
            Failure::Status { code, words } => {
                let message = format!("{path}: {}", String::from_utf8_lossy(&words));
                let code = match code {
                    Status::NO_SUCH_FILE => Code::NotFound,
                    Status::PERMISSION_DENIED => Code::PermissionDenied,
                    _ if words.to_ascii_lowercase().windows(5).any(|it| it == b"space") => {
                        Code::ResourceExhausted
                    }
                    _ => Code::InvalidArgument,
                };
                Self::new(code, message)
            }
            Failure::Ended => Self::new(Code::Unavailable, "the connection to the VM was lost"),
        }
    }

    pub(super) fn json(&self) -> Value {
        json!({ "code": self.code.name(), "message": self.message })
    }
}

impl From<SessionError> for ConnectError {
    fn from(error: SessionError) -> Self {
        let code = match &error {
            SessionError::UnknownUser(_) => Code::Unauthenticated,
            SessionError::NotFound => Code::NotFound,
            SessionError::TooLong | SessionError::NotStarted { .. } => Code::InvalidArgument,
            SessionError::OldAgent => Code::Unimplemented,
            SessionError::NoPort
            | SessionError::Silent
            | SessionError::Lost
            | SessionError::Unavailable => Code::Unavailable,
        };
        Self::new(code, error.to_string())
    }
}

impl From<SandboxError> for ConnectError {
    fn from(error: SandboxError) -> Self {
        match error {
            SandboxError::Session(error) => error.into(),
            SandboxError::Full(_) => Self::new(Code::ResourceExhausted, error.to_string()),
            _ => Self::new(Code::Unavailable, error.to_string()),
        }
    }
}

impl IntoResponse for ConnectError {
    fn into_response(self) -> Response {
        (self.code.status(), Json(self.json())).into_response()
    }
}
