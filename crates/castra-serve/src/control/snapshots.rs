//! Requests for snapshots, which clients use as templates.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::ApiError;
use super::page::{newest_first, page};
use super::sandboxes::parse_or_default;
use crate::sandboxes::SnapshotRecord;
use crate::server::Shared;

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(rename = "snapshotID")]
    snapshot_id: String,
    names: Vec<String>,
}

impl From<SnapshotRecord> for Shown {
    fn from(record: SnapshotRecord) -> Self {
        Self { snapshot_id: record.id, names: record.names }
    }
}

#[derive(Debug, Default, Deserialize)]
struct New {
    name: Option<String>,
    memory: Option<bool>,
}

pub(super) async fn create(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<impl Serialize>), ApiError> {
    let New { name, memory } = parse_or_default(&body)?;
    if memory == Some(false) {
        return Err(ApiError::unsupported("snapshots of a filesystem without the memory"));
    }
    let made = shared.sandboxes.make_snapshot(&id, name).await?;
    Ok((StatusCode::CREATED, Json(Shown::from(made))))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListQuery {
    #[serde(rename = "sandboxID")]
    sandbox_id: Option<String>,
    name: Option<String>,
    limit: Option<usize>,
    next_token: Option<String>,
}

pub(super) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<ListQuery>,
) -> Result<(HeaderMap, Json<Vec<impl Serialize>>), ApiError> {
    let is_wanted = |snapshot: &SnapshotRecord| {
        query.sandbox_id.as_ref().is_none_or(|id| snapshot.source == *id)
            && query.name.as_ref().is_none_or(|name| snapshot.names.contains(name))
    };
    let wanted = shared.sandboxes.snapshots().into_iter().filter(is_wanted);
    let items = wanted
        .map(|snapshot| (newest_first(snapshot.made_unix_ms, &snapshot.id), Shown::from(snapshot)));
    page(items, query.limit, query.next_token.as_deref())
}

pub(super) async fn remove(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    if shared.sandboxes.templates().image(&name).is_some() {
        return Err(ApiError::unsupported("removing templates, which castra.toml describes"));
    }
    shared.sandboxes.remove_snapshot(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
