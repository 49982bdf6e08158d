//! Requests for sandboxes.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ApiError;
use super::page::{newest_first, oldest_first, page};
use super::wish::{DEFAULT_TIMEOUT_SECS, NewSandbox, timeout};
use crate::envd::{self, ENVD_VERSION};
use crate::sandboxes::{OnTimeout, Paused, SandboxRecord, time};
use crate::server::Shared;

/// Most forks of one request.
const MAX_FORKS: usize = 100;

/// Sandbox as the answer to those who make, connect or fork one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    envd_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    envd_access_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<String>,
}

impl Made {
    fn of(record: SandboxRecord, shared: &Shared) -> Self {
        Self {
            template_id: record.template,
            sandbox_id: record.id,
            client_id: "castra",
            envd_version: ENVD_VERSION,
            envd_access_token: record.access_token,
            domain: shared.domain(),
        }
    }
}

/// Sandbox as lists show it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    #[serde(rename = "templateID")]
    template_id: String,
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    #[serde(rename = "clientID")]
    client_id: &'static str,
    started_at: String,
    end_at: String,
    cpu_count: u32,
    #[serde(rename = "memoryMB")]
    memory_mb: u64,
    #[serde(rename = "diskSizeMB")]
    disk_size_mb: u64,
    state: &'static str,
    alias: String,
    envd_version: &'static str,
    metadata: BTreeMap<String, String>,
}

impl Shown {
    fn of(record: SandboxRecord) -> Self {
        Self {
            alias: record.template.clone(),
            template_id: record.template,
            sandbox_id: record.id,
            client_id: "castra",
            started_at: time(record.started_unix_ms),
            end_at: time(record.ends_unix_ms),
            cpu_count: record.shape.cpus,
            memory_mb: record.shape.memory_mib,
            disk_size_mb: record.shape.disk_mib,
            state: state(record.paused),
            envd_version: ENVD_VERSION,
            metadata: record.metadata,
        }
    }
}

fn state(paused: Option<Paused>) -> &'static str {
    if paused.is_some() { "paused" } else { "running" }
}

pub(super) async fn create(
    State(shared): State<Shared>,
    body: Bytes,
) -> Result<(StatusCode, Json<impl Serialize>), ApiError> {
    let wish = parse::<NewSandbox>(&body)?.wish()?;
    let made = shared.sandboxes.create(wish).await?;
    Ok((StatusCode::CREATED, Json(Made::of(made.record(), &shared))))
}

/// Query of a list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListQuery {
    metadata: Option<String>,
    state: Option<String>,
    template: Option<String>,
    started_after: Option<String>,
    order: Option<String>,
    limit: Option<usize>,
    next_token: Option<String>,
}

pub(super) async fn list(
    State(shared): State<Shared>,
    Query(query): Query<ListQuery>,
) -> Result<(HeaderMap, Json<Vec<impl Serialize>>), ApiError> {
    let wanted = query.metadata.as_deref().map(metadata).unwrap_or_default();
    let states: Option<Vec<&str>> = query.state.as_deref().map(|text| text.split(',').collect());
    if let Some(unknown) =
        states.iter().flatten().find(|state| !["running", "paused"].contains(state))
    {
        return Err(ApiError::bad(format!("unknown state {unknown}")));
    }
    let after = query.started_after.as_deref().map(str::parse::<Timestamp>).transpose();
    let after = after.map_err(|error| ApiError::bad(format!("bad startedAfter: {error}")))?;
    let is_wanted = |record: &SandboxRecord| {
        wanted.iter().all(|(name, value)| record.metadata.get(name) == Some(value))
            && states.as_ref().is_none_or(|states| states.contains(&state(record.paused)))
            && query.template.as_ref().is_none_or(|template| record.template == *template)
            && after.is_none_or(|after| record.started_unix_ms >= after.as_millisecond())
    };
    let key: fn(i64, &str) -> String = match query.order.as_deref() {
        None | Some("desc") => newest_first,
        Some("asc") => oldest_first,
        Some(other) => return Err(ApiError::bad(format!("unknown order {other}"))),
    };
    let wanted = shared.sandboxes.list().into_iter().filter(is_wanted);
    let items = wanted.map(|record| (key(record.started_unix_ms, &record.id), Shown::of(record)));
    page(items, query.limit, query.next_token.as_deref())
}

/// Parses `name=value&…`, encoded as a form, in which the SDKs have encoded each name and value
/// before.
fn metadata(text: &str) -> BTreeMap<String, String> {
    let decoded =
        |text: &str| envd::percent_decoded(&envd::percent_decoded(&text.replace('+', " ")));
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

pub(super) async fn detail(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let record = shared.sandboxes.get(&id)?.record();
    let (token, is_isolated) = (record.access_token.clone(), record.shape.is_isolated);
    let on_timeout = if record.on_timeout == OnTimeout::Kill { "kill" } else { "pause" };
    let lifecycle = json!({ "autoResume": record.auto_resume, "onTimeout": on_timeout });
    let mut detail = serde_json::to_value(Shown::of(record)).unwrap_or_default();
    detail["allowInternetAccess"] = json!(!is_isolated);
    detail["lifecycle"] = lifecycle;
    if let Some(token) = token {
        detail["envdAccessToken"] = json!(token);
    }
    if let Some(domain) = shared.domain() {
        detail["domain"] = json!(domain);
    }
    Ok(Json(detail))
}

pub(super) async fn kill(
    State(shared): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    shared.sandboxes.kill(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
struct Timeout {
    timeout: u64,
}

pub(super) async fn set_timeout(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let Timeout { timeout: secs } = parse(&body)?;
    shared.sandboxes.set_timeout(&id, timeout(secs)?, true)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
struct Refresh {
    duration: Option<u64>,
}

pub(super) async fn refresh(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let Refresh { duration } = parse_or_default(&body)?;
    let duration = timeout(duration.unwrap_or(DEFAULT_TIMEOUT_SECS))?;
    shared.sandboxes.set_timeout(&id, duration, false)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
struct Pause {
    memory: Option<bool>,
}

pub(super) async fn pause(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let Pause { memory } = parse_or_default(&body)?;
    let kind = if memory == Some(false) { Paused::DiskOnly } else { Paused::WithMemory };
    shared.sandboxes.pause(&id, kind).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Connect {
    timeout: Option<u64>,
    memory: Option<bool>,
    auto_pause: Option<bool>,
}

pub(super) async fn connect(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<impl Serialize>), ApiError> {
    let Connect { timeout: secs, memory, auto_pause } = parse_or_default(&body)?;
    if auto_pause.is_some() {
        tracing::debug!("sandbox {id}: autoPause of a connect is left as it was made");
    }
    let limit = timeout(secs.unwrap_or(DEFAULT_TIMEOUT_SECS))?;
    // Before it resumes: its time may be over already.
    shared.sandboxes.set_timeout(&id, limit, false)?;
    let has_resumed = shared.sandboxes.resume(&id, memory == Some(false)).await?;
    let status = if has_resumed { StatusCode::CREATED } else { StatusCode::OK };
    let record = shared.sandboxes.get(&id)?.record();
    Ok((status, Json(Made::of(record, &shared))))
}

#[derive(Debug, Default, Deserialize)]
struct Fork {
    timeout: Option<u64>,
    count: Option<usize>,
}

pub(super) async fn fork(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Vec<Value>>), ApiError> {
    let Fork { timeout: secs, count } = parse_or_default(&body)?;
    let count = count.unwrap_or(1);
    if !(1..=MAX_FORKS).contains(&count) {
        return Err(ApiError::bad(format!("count must be 1 to {MAX_FORKS}")));
    }
    let limit = timeout(secs.unwrap_or(DEFAULT_TIMEOUT_SECS))?;
    let forks = shared.sandboxes.fork(&id, count, limit).await?;
    let shown = forks.into_iter().map(|fork| match fork {
        Ok(sandbox) => json!({ "sandbox": Made::of(sandbox.record(), &shared) }),
        Err(error) => {
            let error = ApiError::from(error);
            json!({ "error": { "code": error.status.as_u16(), "message": error.message } })
        }
    });
    Ok((StatusCode::CREATED, Json(shown.collect())))
}

/// Times of the wanted samples, in seconds since the Unix epoch.
#[derive(Debug, Deserialize)]
pub(super) struct MetricsQuery {
    start: Option<i64>,
    end: Option<i64>,
}

pub(super) async fn metrics(
    State(shared): State<Shared>,
    Path(id): Path<String>,
    Query(query): Query<MetricsQuery>,
) -> Result<Json<Vec<Value>>, ApiError> {
    let sandbox = shared.sandboxes.get(&id)?;
    let record = sandbox.record();
    // There is one sample: of now.
    let now = Timestamp::now().as_second();
    let is_wanted = query.start.is_none_or(|start| start <= now + 1)
        && query.end.is_none_or(|end| end >= now - 1);
    if record.paused.is_some() || !is_wanted {
        return Ok(Json(Vec::new()));
    }
    Ok(Json(vec![envd::metrics::sample(&sandbox).await?]))
}

/// Parses a body.
///
/// # Errors
/// It is not JSON of this kind.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad(format!("bad request: {error}")))
}

/// Parses a body that may be missing.
///
/// # Errors
/// It is not JSON of this kind.
pub(super) fn parse_or_default<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, ApiError> {
    if body.is_empty() { Ok(T::default()) } else { parse(body) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_decoded_as_the_sdks_encode_it() {
        let parsed = metadata("a%2520b=c%2526d&other=x&broken");
        let expected = [("a b", "c&d"), ("other", "x")];
        assert_eq!(parsed.iter().map(|(k, v)| (&**k, &**v)).collect::<Vec<_>>(), expected);
    }
}
