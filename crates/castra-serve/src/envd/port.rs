//! Requests for other ports of a sandbox: whatever listens there answers.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::enter::{Addressed, ENVD_PORT, find};
use crate::control::ApiError;
use crate::guard::host_of;
use crate::server::Shared;

/// Answers what nothing else does.
pub(crate) async fn forward() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "castra serve has no such address")
}

/// Passes a request for another port of a sandbox on to it.
pub(crate) async fn divert(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let addressed = Addressed::of(request.headers(), host_of(&request).as_deref());
    match addressed {
        Some(Addressed { id, port }) if port != ENVD_PORT => {
            pass_on(&shared, &id, port, request).await
        }
        _ => next.run(request).await,
    }
}

async fn pass_on(shared: &Shared, id: &str, port: u16, mut request: Request) -> Response {
    let sandbox = match find(shared, id).await {
        Ok(sandbox) => sandbox,
        Err(refused) => return refused,
    };
    let failed = |message: String| ApiError::new(StatusCode::BAD_GATEWAY, message).into_response();
    let session = match sandbox.session().await {
        Ok(session) => session,
        Err(error) => return failed(error.to_string()),
    };
    let Ok(stream) = session.connect(port).await else {
        // The SDKs know the words.
        return failed(format!("The sandbox is running but port is not open: {port}"));
    };
    let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
        return failed(format!("what listens on port {port} does not speak HTTP"));
    };
    let upgraded = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    tokio::spawn(connection.with_upgrades());
    let headers = request.headers_mut();
    for secret in ["x-access-token", "x-api-key"] {
        headers.remove(secret);
    }
    let host = format!("localhost:{port}");
    headers
        .insert(header::HOST, HeaderValue::from_str(&host).unwrap_or(HeaderValue::from_static("")));
    // HTTP/1.1 has the path alone.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    *request.uri_mut() = path.parse().unwrap_or_default();
    *request.version_mut() = axum::http::Version::HTTP_11;
    match sender.send_request(request).await {
        Ok(mut response) => {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS
                && let Some(ours) = upgraded
            {
                let theirs = hyper::upgrade::on(&mut response);
                tokio::spawn(join(ours, theirs));
            }
            response.map(Body::new)
        }
        Err(error) => failed(format!("port {port} of the sandbox: {error}")),
    }
}

/// Joins both sides of a connection that is no longer HTTP, such as a WebSocket.
async fn join(ours: hyper::upgrade::OnUpgrade, theirs: hyper::upgrade::OnUpgrade) {
    if let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await) {
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
    }
}
