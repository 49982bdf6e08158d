//! Errors of the control plane.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use castra_engine::Kind;
use castra_engine::error::Explain as _;
use serde_json::json;

use crate::sandboxes::SandboxError;

/// Time after which a client may try again, in seconds.
const RETRY_AFTER_SECS: &str = "5";

/// Error as clients receive it: a status, and a message in JSON.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// Returns the error for something that makes no sense.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Returns the error for what this server does not do.
    pub(crate) fn unsupported(what: &str) -> Self {
        let message = format!("castra serve does not support {what}");
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }
}

impl From<SandboxError> for ApiError {
    fn from(error: SandboxError) -> Self {
        let status = match &error {
            SandboxError::NotFound(_)
            | SandboxError::NoSnapshot(_)
            | SandboxError::NoTemplate(..) => StatusCode::NOT_FOUND,
            SandboxError::AlreadyPaused(_)
            | SandboxError::Paused(_)
            | SandboxError::NameTaken(_) => StatusCode::CONFLICT,
            SandboxError::Full(_) => StatusCode::TOO_MANY_REQUESTS,
            SandboxError::Vm(error) if error.kind() == Kind::Busy => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            SandboxError::Session(error) if error.kind() == Kind::Busy => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            SandboxError::Ending => StatusCode::SERVICE_UNAVAILABLE,
            SandboxError::Record(_)
            | SandboxError::Vm(_)
            | SandboxError::Session(_)
            | SandboxError::ProcessEnded(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({ "code": self.status.as_u16(), "message": self.message });
        let mut response = (self.status, Json(body)).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let after = HeaderValue::from_static(RETRY_AFTER_SECS);
            response.headers_mut().insert(header::RETRY_AFTER, after);
        }
        response
    }
}
