//! Recorded starts as JSON.

use std::path::PathBuf;

use castra_engine::report::ImageLabel;
use castra_engine::vm::{BaseKind, StartResult, Timeline};
use schemars::JsonSchema;
use serde::Serialize;

use super::kind;

/// Recorded starts of a VM.
#[derive(Serialize, JsonSchema)]
pub(in super::super) struct Starts {
    /// Name of the VM.
    vm: String,
    /// Starts, the newest first.
    starts: Vec<Start>,
}

#[derive(Serialize, JsonSchema)]
struct Start {
    /// Time at which the start began, in milliseconds since 1970.
    started_unix_ms: u64,
    /// `boot`, `template` or `suspended`.
    kind: &'static str,
    /// `kvm`, `hvf` or `tcg`.
    accelerator: &'static str,
    /// Virtual CPUs.
    cpus: u32,
    /// Memory in MiB.
    memory_mib: u64,
    /// Image that the VM's disk is based on.
    image: Option<ImageLabel>,
    /// The user's own file that the disk is based on, if it is not based on an image.
    base_image: Option<PathBuf>,
    /// Version of castra that started the VM.
    castra_version: String,
    /// `ready`, `started` or `failed`.
    result: &'static str,
    /// Reason why it failed.
    reason: Option<String>,
    /// Milliseconds from the start's beginning until commands could run.
    ready_ms: Option<u64>,
    /// Phases, in order.
    phases: Vec<Span>,
}

#[derive(Serialize, JsonSchema)]
struct Span {
    /// Name of the phase.
    phase: &'static str,
    /// Milliseconds from the start's beginning to the phase's.
    start_ms: u64,
    /// Milliseconds from the start's beginning to the phase's end; `null` if the end was not seen.
    end_ms: Option<u64>,
}

/// Returns the starts as they are printed.
pub(super) fn output(vm: &str, starts: &[Timeline]) -> Starts {
    Starts { vm: vm.to_owned(), starts: starts.iter().map(start).collect() }
}

fn start(start: &Timeline) -> Start {
    let (image, base_image) = match &start.base {
        BaseKind::Managed(label) => (Some(label.clone()), None),
        BaseKind::Path(path) => (None, Some(path.clone())),
    };
    let (result, reason) = match &start.result {
        StartResult::Ready => ("ready", None),
        StartResult::Started => ("started", None),
        StartResult::Failed { reason } => ("failed", Some(reason.clone())),
    };
    let span = |span: &castra_engine::vm::PhaseSpan| Span {
        phase: span.phase.name(),
        start_ms: span.start_ms,
        end_ms: span.end_ms,
    };
    Start {
        started_unix_ms: start.started_unix_ms,
        kind: kind(start.kind),
        accelerator: start.accelerator.name(),
        cpus: start.cpus,
        memory_mib: start.memory_mib,
        image,
        base_image,
        castra_version: start.castra_version.clone(),
        result,
        reason,
        ready_ms: start.ready_ms(),
        phases: start.phases.iter().map(span).collect(),
    }
}
