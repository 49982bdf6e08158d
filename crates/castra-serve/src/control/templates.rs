//! Requests for templates.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::ApiError;
use crate::server::Shared;

fn shown(name: &str, shared: &Shared) -> Value {
    let machine = shared.sandboxes.machine();
    json!({
        "templateID": name,
        "buildID": name,
        "aliases": [name],
        "names": [name],
        "public": false,
        "cpuCount": machine.cpus,
        "memoryMB": machine.memory_mib,
        "diskSizeMB": machine.disk_mib,
        "createdAt": "1970-01-01T00:00:00Z",
        "updatedAt": "1970-01-01T00:00:00Z",
        "createdBy": null,
        "lastSpawnedAt": null,
        "spawnCount": 0,
        "buildCount": 1,
        "buildStatus": "ready",
        "envdVersion": crate::envd::ENVD_VERSION,
    })
}

pub(super) async fn list(State(shared): State<Shared>) -> Json<Vec<Value>> {
    let names = shared.sandboxes.templates().names();
    Json(names.iter().map(|name| shown(name, &shared)).collect())
}

pub(super) async fn detail(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if shared.sandboxes.templates().image(&name).is_none() {
        return Err(missing(&name));
    }
    let mut detail = shown(&name, &shared);
    detail["builds"] = json!([]);
    Ok(Json(detail))
}

pub(super) async fn alias(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    match shared.sandboxes.templates().image(&name) {
        Some(_) => Ok(Json(json!({ "templateID": name, "public": false }))),
        None => Err(missing(&name)),
    }
}

fn missing(name: &str) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("the template {name} was not found"))
}
