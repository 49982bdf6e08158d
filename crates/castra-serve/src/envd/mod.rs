//! Requests for a sandbox: its processes and files by the Connect protocol, uploads and downloads,
//! and whatever else listens on its ports.

mod connect;
mod enter;
mod entry;
mod error;
mod files;
mod filesystem;
mod messages;
pub(crate) mod metrics;
pub(crate) mod port;
mod process;
mod signature;
mod watcher;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;

pub(crate) use entry::Files;
pub(crate) use error::ConnectError;
pub(crate) use files::{Download, Upload};
pub(crate) use filesystem::list_directory;
pub(crate) use messages::filesystem::{EntryInfo, FileType};
pub(crate) use watcher::Watcher;

use crate::server::Shared;
use connect::{client_stream, server_stream, unary};

/// Version of the services whose clients' ways this server knows. The next one has metadata of
/// files.
pub(crate) const ENVD_VERSION: &str = "0.6.1";

/// Defines the route of a call.
macro_rules! call {
    ($kind:ident, $handler:path) => {
        post(|State(shared): State<Shared>, request: Request| {
            $kind(shared, request, async |call, message| $handler(call, message).await)
        })
    };
}

/// Returns the routes.
pub(crate) fn router() -> Router<Shared> {
    Router::new()
        .route("/process.Process/List", call!(unary, process::list))
        .route("/process.Process/Start", call!(server_stream, process::start))
        .route("/process.Process/Connect", call!(server_stream, process::connect))
        .route("/process.Process/Update", call!(unary, process::update))
        .route("/process.Process/StreamInput", call!(client_stream, process::stream_input))
        .route("/process.Process/SendInput", call!(unary, process::send_input))
        .route("/process.Process/SendSignal", call!(unary, process::send_signal))
        .route("/process.Process/CloseStdin", call!(unary, process::close_stdin))
        .route("/filesystem.Filesystem/Stat", call!(unary, filesystem::stat))
        .route("/filesystem.Filesystem/MakeDir", call!(unary, filesystem::make_dir))
        .route("/filesystem.Filesystem/Move", call!(unary, filesystem::rename))
        .route("/filesystem.Filesystem/ListDir", call!(unary, filesystem::list_dir))
        .route("/filesystem.Filesystem/Remove", call!(unary, filesystem::remove))
        .route("/filesystem.Filesystem/WatchDir", call!(server_stream, watcher::watch_dir))
        .route("/filesystem.Filesystem/CreateWatcher", call!(unary, watcher::create))
        .route("/filesystem.Filesystem/GetWatcherEvents", call!(unary, watcher::events))
        .route("/filesystem.Filesystem/RemoveWatcher", call!(unary, watcher::remove))
        .route("/files", get(files::download).post(files::upload))
        .route("/health", get(health))
        .route("/envs", get(environment))
        .route("/metrics", get(metrics::of_request))
}

async fn health(State(shared): State<Shared>, request: Request) -> Response {
    // Without a token, as it says nothing but that the sandbox runs.
    let host = request.headers().get("host").and_then(|host| host.to_str().ok());
    let Some(addressed) = enter::Addressed::of(request.headers(), host) else {
        return StatusCode::NO_CONTENT.into_response();
    };
    match enter::find(&shared, &addressed.id).await {
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(refused) => refused,
    }
}

async fn environment(State(shared): State<Shared>, request: Request) -> Response {
    match enter::enter(&shared, request.headers()).await {
        Ok(entered) => Json(entered.sandbox.record().environment).into_response(),
        Err(refused) => refused,
    }
}

/// Decodes what is percent-encoded, as far as it is text.
pub(crate) fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let coded = (*byte == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(coded.unwrap_or(*byte));
        at += if coded.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Returns a path as the guest's server takes it.
fn path_bytes(path: &str) -> Bytes {
    Bytes::copy_from_slice(path.as_bytes())
}
