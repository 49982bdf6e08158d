//! The way of a request into a sandbox: which one it names, and whether it may.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::time::Instant;

use crate::sandboxes::{Sandbox, SandboxError, USER};
use crate::server::Shared;
use crate::token::is_same;

/// Headers that name a sandbox and a port of it, and the one with its token.
const SANDBOX: &str = "e2b-sandbox-id";
const PORT: &str = "e2b-sandbox-port";
const ACCESS_TOKEN: &str = "x-access-token";

/// Port of a sandbox on which clients expect the services themselves.
pub(super) const ENVD_PORT: u16 = 49983;

/// Header with the interval of signs of life in a stream, in seconds.
const KEEPALIVE: &str = "keepalive-ping-interval";
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(90);

/// Sandbox and port that a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addressed {
    pub(super) id: String,
    pub(super) port: u16,
}

impl Addressed {
    /// Returns what a request is for: by its headers, or by a host `PORT-ID.DOMAIN`.
    pub(super) fn of(headers: &HeaderMap, host: Option<&str>) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        if let Some(id) = text(SANDBOX) {
            let port = text(PORT).map_or(Some(ENVD_PORT), |port| port.parse().ok())?;
            return Some(Self { id: id.to_owned(), port });
        }
        let (port, id) = host?.split('.').next()?.split_once('-')?;
        Some(Self { id: id.to_owned(), port: port.parse().ok()? })
    }
}

/// A request that may enter its sandbox.
pub(super) struct Entered {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) user: String,
    keepalive: Duration,
}

/// A call of a service.
pub(super) struct Call {
    pub(super) sandbox: Arc<Sandbox>,
    /// User of the sandbox who does it.
    pub(super) user: String,
    /// End of the time for it.
    pub(super) deadline: Option<Instant>,
    /// Interval of signs of life in its stream.
    pub(super) keepalive: Duration,
}

impl Entered {
    pub(super) fn call(self, deadline: Option<Instant>) -> Call {
        let Self { sandbox, user, keepalive } = self;
        Call { sandbox, user, deadline, keepalive }
    }
}

/// Lets a request into the sandbox that it names, if it has its token. Resumes a paused one that is
/// to be.
///
/// # Errors
/// The answer to a request that may not.
pub(super) async fn enter(shared: &Shared, headers: &HeaderMap) -> Result<Entered, Response> {
    let host = headers.get("host").and_then(|host| host.to_str().ok());
    let Some(Addressed { id, .. }) = Addressed::of(headers, host) else {
        return Err(answer(StatusCode::BAD_REQUEST, "", "the request names no sandbox"));
    };
    let sandbox = known(shared, &id).ok_or_else(|| missing(&id))?;
    let token = headers.get(ACCESS_TOKEN).and_then(|token| token.to_str().ok());
    if let Some(expected) = sandbox.record().access_token
        && !token.is_some_and(|token| is_same(token.as_bytes(), expected.as_bytes()))
    {
        let message = "the access token is missing, or is not this sandbox's";
        return Err(answer(StatusCode::UNAUTHORIZED, &id, message));
    }
    wake(shared, &sandbox).await?;
    let keepalive = headers.get(KEEPALIVE).and_then(|secs| secs.to_str().ok()?.parse().ok());
    let keepalive = keepalive.filter(|secs| *secs > 0).map(Duration::from_secs);
    let user = user_of(headers).unwrap_or_else(|| USER.to_owned());
    Ok(Entered { sandbox, user, keepalive: keepalive.unwrap_or(DEFAULT_KEEPALIVE) })
}

/// Returns the sandbox, running if it is to be.
///
/// # Errors
/// The answer to a request for one that is not there or is paused.
pub(super) async fn find(shared: &Shared, id: &str) -> Result<Arc<Sandbox>, Response> {
    let sandbox = known(shared, id).ok_or_else(|| missing(id))?;
    wake(shared, &sandbox).await?;
    Ok(sandbox)
}

fn known(shared: &Shared, id: &str) -> Option<Arc<Sandbox>> {
    shared.sandboxes.get(id).ok()
}

fn missing(id: &str) -> Response {
    // The SDKs know the words.
    answer(StatusCode::BAD_GATEWAY, id, "The sandbox was not found")
}

/// Resumes a sandbox that is paused, or is just being, if it is to be.
async fn wake(shared: &Shared, sandbox: &Sandbox) -> Result<(), Response> {
    let record = sandbox.settled().await;
    // It may have been ended meanwhile.
    known(shared, &record.id).ok_or_else(|| missing(&record.id))?;
    if record.paused.is_none() {
        return Ok(());
    }
    if !record.auto_resume {
        let message = "The sandbox is paused, so a running one was not found";
        return Err(answer(StatusCode::BAD_GATEWAY, &record.id, message));
    }
    shared.sandboxes.wake(&record.id).await.map_err(|error| match error {
        SandboxError::NotFound(id) => missing(&id),
        error => crate::control::ApiError::from(error).into_response(),
    })
}

/// Returns the user that a request names, by HTTP's basic authentication without a password.
fn user_of(headers: &HeaderMap) -> Option<String> {
    let named = headers.get("authorization")?.to_str().ok()?.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(STANDARD.decode(named).ok()?).ok()?;
    let user = decoded.split_once(':').map_or(&*decoded, |(user, _)| user);
    (!user.is_empty()).then(|| user.to_owned())
}

fn answer(status: StatusCode, id: &str, message: &str) -> Response {
    let body = json!({ "code": status.as_u16(), "message": message, "sandboxId": id });
    (status, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_is_named_by_headers_or_by_the_host() {
        let named = |id: &str, port| Some(Addressed { id: id.to_owned(), port });
        let mut headers = HeaderMap::new();
        assert_eq!(Addressed::of(&headers, Some("3000-abc.localhost:49999")), named("abc", 3000));
        assert_eq!(Addressed::of(&headers, Some("localhost:49999")), None);
        assert_eq!(Addressed::of(&headers, Some("x-abc.localhost")), None);
        headers.insert(SANDBOX, "abc".parse().expect("a value"));
        assert_eq!(Addressed::of(&headers, Some("3000-other.localhost")), named("abc", 49983));
        headers.insert(PORT, "8080".parse().expect("a value"));
        assert_eq!(Addressed::of(&headers, None), named("abc", 8080));
        headers.insert(PORT, "65536".parse().expect("a value"));
        assert_eq!(Addressed::of(&headers, None), None);
    }

    #[test]
    fn users_are_named_without_a_password() {
        let mut headers = HeaderMap::new();
        assert_eq!(user_of(&headers), None);
        headers.insert("authorization", "Basic cm9vdDo=".parse().expect("a value"));
        assert_eq!(user_of(&headers).as_deref(), Some("root"));
        headers.insert("authorization", "Basic Og==".parse().expect("a value"));
        assert_eq!(user_of(&headers), None);
    }
}
