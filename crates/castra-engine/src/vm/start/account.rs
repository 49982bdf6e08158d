//! Record of a finished start: its timeline and, if it failed, the reason.

use std::time::Duration;

use crate::command::Lifetime;
use crate::qemu::{Accelerator, QemuError};
use crate::vm::diagnosis::{About, Diagnosis, Trouble};
use crate::vm::error::{StartError, VmError};
use crate::vm::record::{BaseKind, Progress, Record, StartKind};
use crate::vm::timeline::{self, Phase, StartResult, Timeline};

use super::request::BootRequest;

/// Saves the timeline of a start, except for a throwaway VM.
pub(in crate::vm) fn record_timeline(
    request: &BootRequest<'_>,
    kind: StartKind,
    accelerator: Accelerator,
    base: &BaseKind,
    outcome: &Result<Record, VmError>,
) {
    let result = match outcome {
        // Commands can run.
        Ok(record) if record.progress == Progress::Running && record.runs_commands() => {
            StartResult::Ready
        }
        Err(VmError::Start(StartError::ServicesTimedOut { .. })) => StartResult::Ready,
        Ok(_) => StartResult::Started,
        Err(error) => {
            request.stopwatch.stop();
            let text = error.to_string();
            let reason = error
                .diagnosis()
                .map(|found| found.cause.as_str())
                .or_else(|| text.lines().next())
                .unwrap_or_default();
            StartResult::Failed { reason: reason.to_owned() }
        }
    };
    if request.options.lifetime == Lifetime::Own {
        let definition = &request.plan.definition;
        let finished = request.stopwatch.timeline(Timeline {
            started_unix_ms: 0,
            qemu_unix_ms: 0,
            kind,
            accelerator,
            cpus: definition.cpus,
            memory_mib: definition.memory_bytes >> 20,
            base: base.clone(),
            castra_version: env!("CARGO_PKG_VERSION").to_owned(),
            result,
            phases: Vec::new(),
        });
        timeline::save(&finished, &request.files());
    }
}

/// Returns the failure of QEMU's start, with a probable cause if there is one.
pub(in crate::vm) fn explain_start(
    request: &BootRequest<'_>,
    accelerator: Accelerator,
    error: QemuError,
) -> VmError {
    let QemuError::Died { signal, .. } = &error else { return error.into() };
    let (vm, files) = (request.vm(), &request.files());
    let memory_mib = request.plan.definition.memory_bytes >> 20;
    let about = About { vm, files, accelerator, memory_mib, has_ended: true, signal: *signal };
    let diagnosis = Trouble::gather(&about, Phase::Qemu, Duration::ZERO, None).diagnosis;
    match diagnosis.or_else(|| Diagnosis::by_trial(request.binary, request.project.cancel())) {
        Some(diagnosis) => {
            StartError::NotStarted { error: Box::new(error), diagnosis: Box::new(diagnosis) }.into()
        }
        None => error.into(),
    }
}
