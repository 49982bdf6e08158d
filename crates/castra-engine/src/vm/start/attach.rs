//! Attaching to a VM whose QEMU runs already, until it is ready.

use crate::cancel::Cancel;
use crate::context::RuntimeContext;
use crate::error::Explain as _;
use crate::guest::{NetworkDown, NetworkReport, VmKeys};
use crate::layout::SocketsLayout;
use crate::qemu::{MachineStatus, running_qemu};
use crate::report::Event;
use crate::vm::accompany;
use crate::vm::disk::data;
use crate::vm::error::{AccessError, Attempt, StartError, StateError, VmError};
use crate::vm::monitor::{continue_recorded, ensure_not_stopped};
use crate::vm::project::ProjectRef;
use crate::vm::record::{BootRecord, MissingModules, Progress, Record, StartKind, VmState};
use crate::vm::timeline::{self, Stopwatch, save_if_new};

use super::continue_vm::continue_vm;
use super::login::{finish_login, is_expected};
use super::options::{UpOptions, UpOutcome, WaitFor};
use super::session::BootSession;
use super::watch::BootWatch;

/// Ensures that commands can run in a VM whose QEMU runs. A ready guest answers within
/// milliseconds.
///
/// # Errors
/// Returns [`StateError::Frozen`], [`StateError::NotRunning`] for a machine that a castra loaded
/// and, killed, never let run, whose guest will never answer, and errors of waiting for the agent.
/// QEMU is left running, since another command may still make it ready.
pub(in crate::vm) fn attach(
    mut record: Record,
    project: ProjectRef<'_>,
    options: UpOptions,
) -> Result<UpOutcome, VmError> {
    let vm = record.name.clone();
    ensure_not_stopped(&vm, running_qemu(&project.files(&vm).pidfile()).as_ref())?;
    if record.progress == Progress::Starting
        && record.boot.as_ref().is_some_and(|boot| boot.start == StartKind::Suspended)
    {
        let record = continue_vm(record, project)?;
        report_running(&record, None, project.context);
        return Ok(UpOutcome { record, ran_already: true });
    }
    if record.progress == Progress::Starting && is_stalled(&record, project.context) {
        return Err(StateError::NotRunning { vm, state: VmState::Starting }.into());
    }
    continue_recorded(&record, project)?;
    let has_agent = record.has_agent();
    if !has_agent && options.wait == WaitFor::Services {
        return Err(StartError::ServicesUnseen { vm }.into());
    }
    let is_ready = record.progress == Progress::Running;
    let before = record.clone();
    let sockets = record.boot.as_ref().map(BootRecord::socket_paths);
    if let Some(gone) = sockets.filter(SocketsLayout::are_gone) {
        let gone = AccessError::sockets_gone(&vm, Attempt::LookInto, &gone);
        if !is_ready {
            return Err(gone.into());
        }
        let hint = gone.hint().unwrap_or_default();
        project.report(&Event::Warning { message: format!("{gone}. {hint}") });
    } else if let Some(boot) =
        before.boot.as_ref().filter(|_| has_agent && options.wait != WaitFor::Nothing)
    {
        let missing = follow(&record, boot, project, options)?;
        record.set_missing_modules(missing, project.context);
        if is_ready {
            check_network(&record, project.cancel())?;
        }
    }
    if options.wait != WaitFor::Nothing && record.boot.as_ref().is_some_and(is_expected) {
        record = finish_login(record, project, options.boot_limit)?;
    }
    let is_unfinished = has_agent && options.wait == WaitFor::Nothing;
    if !is_ready && !is_unfinished {
        record.set_running();
    }
    if record != before {
        record.save(project.layout)?;
    }
    if options.wait != WaitFor::Nothing {
        accompany::restore(&record, project);
    }
    report_running(&record, None, project.context);
    Ok(UpOutcome { record, ran_already: true })
}

/// Waits for a guest whose QEMU runs, and returns its report on its kernel's modules. Its report on
/// its boot goes to that boot's timeline.
fn follow(
    record: &Record,
    boot: &BootRecord,
    project: ProjectRef<'_>,
    options: UpOptions,
) -> Result<Option<MissingModules>, VmError> {
    let (vm, files, disk) =
        (&record.name, &project.files(&record.name), &record.overlay_path(project.layout));
    let sockets = boot.socket_paths();
    let keys = VmKeys::load_or_create(files)?;
    let kept = timeline::find(files, boot.started_unix_ms);
    let stopwatch = &Stopwatch::continuing(vm, kept.as_ref(), &project.context.reporter);
    let was_ready = record.progress == Progress::Running;
    let watch = BootWatch {
        was_ready,
        limit: options.boot_limit,
        ..BootWatch::of_running(vm, files, disk, boot, project.context, stopwatch)
    };
    let session = BootSession {
        wait: options.wait,
        ..BootSession::of_running(watch, boot, data::orders(&record.data_disks, files))
    };
    let is_alive = || running_qemu(&files.pidfile()).is_some();
    let followed = session.follow(&sockets, &keys, is_alive);
    if let Some(kept) = kept {
        save_if_new(stopwatch, kept, followed.is_ok(), files);
    }
    followed.map_err(|end| session.watch.explain(end, None))?;
    Ok(session.missing_modules.take())
}

/// Returns `true` if a castra was killed before the machine that it started ran: a state that
/// nothing loads or continues stays so for good. A QEMU that does not answer now is left to the
/// usual wait.
pub(in crate::vm) fn is_stalled(record: &Record, context: &RuntimeContext) -> bool {
    let Some(boot) = record.boot.as_ref().filter(|boot| boot.start == StartKind::Template) else {
        return false;
    };
    let sockets = boot.socket_paths();
    MachineStatus::ask(&sockets, &context.cancel) == Some(MachineStatus::Paused)
}

/// Reports that a VM runs.
pub(in crate::vm) fn report_running(
    record: &Record,
    boot_ms: Option<u64>,
    context: &RuntimeContext,
) {
    let (vm, agent, reachable) = (record.name.clone(), record.has_agent(), record.runs_commands());
    context.reporter.report(&Event::VmRunning { vm, agent, reachable, boot_ms });
}

/// Checks that a guest that was ready still has its network.
///
/// # Errors
/// Returns [`VmError::NetworkDown`], or [`VmError::Control`] after an interruption.
pub(in crate::vm) fn check_network(record: &Record, cancel: &Cancel) -> Result<(), VmError> {
    let Some(agent) = record.agent_socket() else { return Ok(()) };
    match NetworkReport::ask(&agent.path, cancel)? {
        NetworkReport::Faulty(fault) => Err(NetworkDown { vm: agent.vm, fault }.into()),
        NetworkReport::Unknown | NetworkReport::Complete => Ok(()),
    }
}
