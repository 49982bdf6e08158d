//! The kept starts as JSON.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use crate::report::ImageLabel;
use crate::vm::{BaseKind, StartResult, Timeline};

use super::kind;

/// The kept starts of a VM.
#[derive(Serialize, JsonSchema)]
pub(in super::super) struct Starts {
    /// The VM.
    vm: String,
    /// The newest first.
    starts: Vec<Start>,
}

#[derive(Serialize, JsonSchema)]
struct Start {
    /// When it began.
    started_unix_ms: u64,
    /// `boot`, `template` or `suspended`.
    kind: &'static str,
    /// `kvm`, `hvf` or `tcg`.
    accelerator: &'static str,
    /// Virtual CPUs.
    cpus: u32,
    /// Memory in MiB.
    memory_mib: u64,
    /// The image its disk stands on.
    image: Option<ImageLabel>,
    /// Or the user's own file that it stands on.
    base_image: Option<PathBuf>,
    /// The castra that started it.
    castra_version: String,
    /// `ready`, `started` or `failed`.
    result: &'static str,
    /// Why it failed.
    reason: Option<String>,
    /// Milliseconds from its beginning until commands could run.
    ready_ms: Option<u64>,
    /// What it went through, in order.
    phases: Vec<Span>,
}

#[derive(Serialize, JsonSchema)]
struct Span {
    /// Its name.
    phase: &'static str,
    /// Its beginning, milliseconds since that of the start.
    start_ms: u64,
    /// Its end; nothing if nobody has seen it.
    end_ms: Option<u64>,
}

/// What is printed.
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
    let span = |span: &crate::vm::PhaseSpan| Span {
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
