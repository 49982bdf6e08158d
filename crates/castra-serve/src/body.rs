//! Bodies of requests that are read before anything is answered. A connection whose request was
//! refused with its body unread is closed, and a client that sends the next one on it at that
//! moment loses it.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::control::ApiError;

/// Longest body that is read at once, in bytes. Longer ones are files.
const SMALL_BYTES: usize = 1 << 20;

/// Reads a small body before the request is answered.
pub(crate) async fn read_small(request: Request, next: Next) -> Response {
    if !is_small(request.headers()) {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    match to_bytes(body, SMALL_BYTES).await {
        Ok(bytes) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Err(error) => {
            ApiError::new(StatusCode::BAD_REQUEST, format!("bad body: {error}")).into_response()
        }
    }
}

fn is_small(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    length.and_then(|length| length.parse().ok()).is_some_and(|length: usize| length <= SMALL_BYTES)
}
