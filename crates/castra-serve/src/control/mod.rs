//! The control plane: requests that make, list and end sandboxes.

mod error;
mod page;
mod sandboxes;
mod snapshots;
mod templates;
mod unsupported;
mod wish;

use axum::Router;
use axum::routing::{delete, get, post, put};

pub(crate) use error::ApiError;

use crate::server::Shared;

/// Returns the routes.
pub(crate) fn router() -> Router<Shared> {
    Router::new()
        .route("/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .route("/v2/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .route("/sandboxes/{id}", get(sandboxes::detail).delete(sandboxes::kill))
        .route("/sandboxes/{id}/timeout", post(sandboxes::set_timeout))
        .route("/sandboxes/{id}/refreshes", post(sandboxes::refresh))
        .route("/sandboxes/{id}/pause", post(sandboxes::pause))
        .route("/sandboxes/{id}/resume", post(sandboxes::connect))
        .route("/sandboxes/{id}/connect", post(sandboxes::connect))
        .route("/v2/sandboxes/{id}/connect", post(sandboxes::connect))
        .route("/sandboxes/{id}/fork", post(sandboxes::fork))
        .route("/sandboxes/{id}/metrics", get(sandboxes::metrics))
        .route("/sandboxes/{id}/snapshots", post(snapshots::create))
        .route("/snapshots", get(snapshots::list))
        .route("/templates", get(templates::list))
        .route("/v2/templates", get(templates::list))
        .route("/templates/aliases/{name}", get(templates::alias))
        .route("/templates/{id}", get(templates::detail).delete(snapshots::remove))
        .route("/sandboxes/{id}/network", put(unsupported::network))
        .route("/sandboxes/{id}/logs", get(unsupported::logs))
        .route("/v2/sandboxes/{id}/logs", get(unsupported::logs))
        .route("/sandboxes/metrics", get(unsupported::metrics_of_all))
        .route("/v3/templates", post(unsupported::builds))
        .route("/templates/tags", post(unsupported::tags).delete(unsupported::tags))
        .route("/templates/{id}/{*rest}", get(unsupported::builds))
        .route("/v2/templates/{*rest}", post(unsupported::builds).patch(unsupported::builds))
        .route("/volumes", get(unsupported::volumes).post(unsupported::volumes))
        .route("/volumes/{*rest}", get(unsupported::volumes).delete(unsupported::volumes))
        .route("/volumecontent/{*rest}", get(unsupported::volumes).post(unsupported::volumes))
        .route("/secrets", get(unsupported::secrets).post(unsupported::secrets))
        .route("/secrets/{id}", delete(unsupported::secrets).get(unsupported::secrets))
        .method_not_allowed_fallback(unsupported::method)
}
