//! Guard of the server: only clients of this machine, with the right token, may ask.
//!
//! A page in a user's browser can reach a server on 127.0.0.1, too, under a name that its own
//! server resolves to that address. So a request must name this machine as its host, and none may
//! come from a page.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::control::ApiError;
use crate::server::Shared;

/// Header with the token of the control plane.
const API_KEY: &str = "x-api-key";

/// Refuses requests from pages of a browser, and those for other hosts.
pub(crate) async fn check_host(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    let refused = |message: &str| ApiError::new(StatusCode::FORBIDDEN, message).into_response();
    if request.headers().contains_key(header::ORIGIN) {
        return refused("requests from web pages are refused");
    }
    match host_of(&request) {
        Some(host) if shared.is_own_host(&host) => next.run(request).await,
        _ => refused("the Host header does not name this server"),
    }
}

/// Refuses requests for the control plane without its token.
pub(crate) async fn check_token(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    if token_of(request.headers()).is_some_and(|token| shared.token.is(token)) {
        return next.run(request).await;
    }
    let message = "the API key is missing or wrong; `castra serve` prints it when it starts";
    ApiError::new(StatusCode::UNAUTHORIZED, message).into_response()
}

fn token_of(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    text(API_KEY).or_else(|| text("authorization")?.strip_prefix("Bearer "))
}

/// Returns the host that a request names, without its port.
pub(crate) fn host_of(request: &Request) -> Option<String> {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = match named {
        Some(host) => host.parse::<Authority>().ok()?,
        // HTTP/2 has it in the address.
        None => request.uri().authority()?.clone(),
    };
    Some(authority.host().to_ascii_lowercase())
}

/// Returns `true` for a name that no server elsewhere can give to an address of this machine.
pub(crate) fn is_local(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "[::1]") || host.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in ["localhost", "127.0.0.1", "[::1]", "3000-abc.localhost"] {
            assert!(is_local(host), "{host}");
        }
        for host in ["example.org", "127.0.0.1.example.org", "localhost.example.org", "10.0.0.1"] {
            assert!(!is_local(host), "{host}");
        }
    }
}
