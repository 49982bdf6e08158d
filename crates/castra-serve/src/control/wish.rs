//! The request that makes a sandbox.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::ApiError;
use crate::sandboxes::{OnTimeout, Wish};

/// Time that a sandbox has if its client names none, and the longest, in seconds.
pub(super) const DEFAULT_TIMEOUT_SECS: u64 = 300;
const MAX_TIMEOUT_SECS: u64 = 30 * 24 * 60 * 60;

/// Request for a sandbox.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewSandbox {
    #[serde(rename = "templateID")]
    template_id: String,
    timeout: Option<u64>,
    auto_pause: Option<bool>,
    auto_pause_memory: Option<bool>,
    auto_resume: Option<AutoResume>,
    /// A token is made unless this is false.
    secure: Option<bool>,
    #[serde(rename = "allow_internet_access")]
    allow_internet_access: Option<bool>,
    network: Option<Value>,
    metadata: Option<BTreeMap<String, String>>,
    env_vars: Option<BTreeMap<String, String>>,
    mcp: Option<Value>,
    iam: Option<Value>,
    volume_mounts: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
struct AutoResume {
    #[serde(default)]
    enabled: bool,
}

impl NewSandbox {
    /// Returns the wish, if this server can fulfil all of it.
    ///
    /// # Errors
    /// The wish makes no sense, or something of it is not supported.
    pub(super) fn wish(self) -> Result<Wish, ApiError> {
        if self.mcp.is_some_and(|value| !value.is_null()) {
            return Err(ApiError::unsupported("MCP servers in sandboxes"));
        }
        if self.iam.is_some_and(|value| !value.is_null()) {
            return Err(ApiError::unsupported("workload identities (iam)"));
        }
        if self.volume_mounts.is_some_and(|mounts| !mounts.is_empty()) {
            return Err(ApiError::unsupported("volumes"));
        }
        let mut is_isolated = self.allow_internet_access == Some(false);
        if let Some(network) = self.network.filter(|value| !value.is_null()) {
            is_isolated |= denies_all(&network)?;
        }
        let on_timeout = match (self.auto_pause, self.auto_pause_memory) {
            (Some(true), Some(false)) => OnTimeout::Stop,
            (Some(true), _) => OnTimeout::Pause,
            _ => OnTimeout::Kill,
        };
        let environment = self.env_vars.unwrap_or_default();
        let is_bad = |(name, value): (&String, &String)| {
            name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')
        };
        if environment.iter().any(is_bad) {
            return Err(ApiError::bad("envVars has a name or a value that no process can have"));
        }
        Ok(Wish {
            template: self.template_id,
            timeout: timeout(self.timeout.unwrap_or(DEFAULT_TIMEOUT_SECS))?,
            metadata: self.metadata.unwrap_or_default(),
            environment,
            has_token: self.secure != Some(false),
            on_timeout,
            auto_resume: self.auto_resume.is_some_and(|auto| auto.enabled),
            is_isolated,
            memory_mib: None,
        })
    }
}

/// Returns a timeout in seconds as a duration.
///
/// # Errors
/// It is longer than sandboxes may live.
pub(super) fn timeout(secs: u64) -> Result<Duration, ApiError> {
    if secs > MAX_TIMEOUT_SECS {
        let message = format!("timeout is {secs} s, and the longest is {MAX_TIMEOUT_SECS} s");
        return Err(ApiError::bad(message));
    }
    Ok(Duration::from_secs(secs))
}

/// Returns `true` for rules that deny everything. Others are not supported, but for those that
/// change nothing.
fn denies_all(network: &Value) -> Result<bool, ApiError> {
    let Some(rules) = network.as_object() else {
        return Err(ApiError::bad("network is not an object"));
    };
    let mut denies = false;
    for (name, value) in rules {
        let is_empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        match name.as_str() {
            _ if is_empty => {}
            "allowPublicTraffic" if value.as_bool() == Some(true) => {}
            "denyOut" if *value == serde_json::json!(["0.0.0.0/0"]) => denies = true,
            _ => {
                return Err(ApiError::unsupported(&format!(
                    "the network rule {name}: a sandbox reaches everything or, with \
                    allow_internet_access = false, nothing"
                )));
            }
        }
    }
    Ok(denies)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;

    use super::*;

    fn wish(request: Value) -> Result<Wish, ApiError> {
        serde_json::from_value::<NewSandbox>(request).expect("a request").wish()
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (name, value) in [
            ("mcp", json!({ "github": {} })),
            ("iam", json!({ "tokens": {} })),
            ("volumeMounts", json!([{ "name": "a", "path": "/a" }])),
            ("network", json!({ "allowOut": ["1.1.1.1"] })),
            ("network", json!({ "allowPublicTraffic": false })),
        ] {
            let error = wish(json!({ "templateID": "base", name: value })).err().expect("refused");
            assert_eq!(error.status, StatusCode::NOT_IMPLEMENTED, "{name}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_sdks() {
        let made = wish(json!({ "templateID": "base" })).expect("a wish");
        assert_eq!(made.timeout, Duration::from_secs(300));
        assert!(made.has_token && !made.is_isolated && made.on_timeout == OnTimeout::Kill);
        let request = json!({
            "templateID": "base", "autoPause": true, "allow_internet_access": false, "secure": false
        });
        let made = wish(request).expect("a wish");
        assert!(!made.has_token && made.is_isolated && made.on_timeout == OnTimeout::Pause);
        assert!(wish(json!({ "templateID": "base", "timeout": u64::MAX })).is_err());
        assert!(wish(json!({ "templateID": "base", "envVars": { "A=B": "" } })).is_err());
    }
}
