//! Metrics: how much of its machine a sandbox uses.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::ConnectError;
use super::{enter, process};
use crate::sandboxes::{Sandbox, SandboxError};
use crate::server::Shared;

/// Looks at the guest twice, since its use of the CPU shows between two looks.
const LOOK: &str = "head -n1 /proc/stat; sleep 0.2; head -n1 /proc/stat; cat /proc/meminfo; \
    df -Pk / | tail -n1";

/// Time for both looks.
const LIMIT: Duration = Duration::from_secs(10);

/// Returns a sample.
///
/// # Errors
/// The sandbox cannot be reached.
pub(crate) async fn sample(sandbox: &Sandbox) -> Result<Value, SandboxError> {
    let arguments = ["/bin/sh", "-c", LOOK].map(Into::into).to_vec();
    let printed = process::output(sandbox, "root", arguments, LIMIT).await;
    let printed =
        printed.map_err(|error| SandboxError::Record(std::io::Error::other(error.message)))?;
    let text = String::from_utf8_lossy(&printed);
    Ok(shown(&text, sandbox.record().shape.cpus))
}

fn shown(text: &str, cpus: u32) -> Value {
    let lines: Vec<&str> = text.lines().collect();
    let cpu = |line: Option<&&str>| -> (u64, u64) {
        let ticks = line.map(|line| line.split_whitespace().skip(1)).into_iter().flatten();
        let ticks: Vec<u64> = ticks.filter_map(|tick| tick.parse().ok()).collect();
        let idle = ticks.get(3).unwrap_or(&0) + ticks.get(4).unwrap_or(&0);
        (ticks.iter().sum(), idle)
    };
    let (first, second) = (cpu(lines.first()), cpu(lines.get(1)));
    let (all, idle) = (second.0.saturating_sub(first.0), second.1.saturating_sub(first.1));
    let used_pct = if all == 0 { 0.0 } else { 100.0 * (1.0 - idle as f64 / all as f64) };
    let memory = |name: &str| -> u64 {
        let line = lines.iter().find(|line| line.split(':').next() == Some(name));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    };
    let disk: Vec<u64> = lines
        .last()
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
        .unwrap_or_default();
    let disk = |index: usize| disk.get(index).copied().unwrap_or(0) * 1024;
    let (total, available) = (memory("MemTotal"), memory("MemAvailable"));
    let now = Timestamp::now();
    json!({
        "timestamp": now.to_string(),
        "timestampUnix": now.as_second(),
        "cpuCount": cpus,
        "cpuUsedPct": (used_pct * 100.0).round() / 100.0,
        "memTotal": total,
        "memUsed": total.saturating_sub(available),
        "memCache": memory("Cached"),
        "diskTotal": disk(0),
        "diskUsed": disk(1),
    })
}

pub(super) async fn of_request(State(shared): State<Shared>, request: Request) -> Response {
    let entered = match enter::enter(&shared, request.headers()).await {
        Ok(entered) => entered,
        Err(refused) => return refused,
    };
    match sample(&entered.sandbox).await {
        Ok(sample) => Json(sample).into_response(),
        Err(error) => ConnectError::from(error).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_read_from_what_the_kernel_prints() {
        let text = "cpu  100 0 100 800 0 0 0 0 0 0\ncpu  150 0 100 850 0 0 0 0 0 0\n\
            MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     600 kB\n\
            Cached:           300 kB\n/dev/vda 2000 500 1500 25% /\n";
        let sample = shown(text, 2);
        assert_eq!(sample["cpuUsedPct"], 50.0);
        assert_eq!(sample["memTotal"], 1_024_000);
        assert_eq!(sample["memUsed"], 409_600);
        assert_eq!(
            (&sample["diskTotal"], &sample["diskUsed"]),
            (&json!(2_048_000), &json!(512_000))
        );
        assert_eq!(shown("", 1)["memTotal"], 0);
    }
}
