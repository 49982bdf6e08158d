//! Starts QEMU, and waits until its guest is ready: the agent says hello, gets the VM's identity,
//! and commands can run.

use std::cell::RefCell;
use std::time::Instant;

use crate::command::Lifetime;
use crate::context::{ACCELERATOR, RuntimeContext};
use crate::failpoint::{self, Point};
use crate::guest::VmKeys;
use crate::host::millis;
use crate::layout::{SocketsLayout, VmLayout};
use crate::qemu::{
    Accelerator, AcceleratorChoice, Disk, ENDED_BY_SIGNAL, Incoming, Launch, MachineSpec, Memory,
    QemuBinary, QemuError, QemuProcess, choose_accelerator, launch,
};
use crate::report::Event;
use crate::vm::accompany;
use crate::vm::disk::{Image, data};
use crate::vm::error::{StartError, StateError, VmError, warn};
use crate::vm::kernel::Boots;
use crate::vm::monitor::clean_up;
use crate::vm::plan::VmPlan;
use crate::vm::project::ProjectRef;
use crate::vm::record::{BootRecord, KernelRecord, MissingModules, Progress, Record, StartKind};
use crate::vm::timeline::Phase;

use super::account::{explain_start, record_timeline};
use super::launch::launch_on_free_port;
use super::login::{await_login, is_expected};
use super::machine::{machine, tcg_cpu};
use super::options::WaitFor;
use super::request::{BootRequest, boot_record};
use super::session::BootSession;
use super::warm::{self, Warm};
use super::watch::{BootEnd, BootWatch};
use crate::vm::ports;

/// Starts the VM, from a warm template if there is one, and writes its record. After a failure no
/// process is left, and the record says `stopped`. A VM whose kernel does not come up boots the
/// `previous` one, if there is one.
pub(in crate::vm) fn start(
    request: &BootRequest<'_>,
    record: Record,
    choice: AcceleratorChoice,
    warm: Option<&Warm>,
    previous: Option<&Boots>,
) -> Result<Record, VmError> {
    let accelerator = choice.accelerator.name();
    let Some(warm) = warm else {
        tracing::debug!(accelerator, "booting");
        return boot(request, record, choice, previous);
    };
    tracing::debug!(accelerator, "restoring from a template");
    match attempt(request, record.clone(), choice.clone(), Some(warm)) {
        Err(error) if should_retry(&error) => {
            let vm = request.vm();
            let message = format!(
                "VM `{vm}` could not be restored from its warm template; booting instead: {error}"
            );
            request.report(Event::Warning { message });
            if is_template_error(&error) {
                warm::refuse_template(warm, &error.to_string());
            }
            request.stopwatch.restart();
            boot(request, record, choice, previous)
        }
        result => result,
    }
}

/// Boots the VM; if that fails, boots its previous kernel, and if it fails under an accelerator,
/// tries once more under TCG.
fn boot(
    request: &BootRequest<'_>,
    record: Record,
    choice: AcceleratorChoice,
    previous: Option<&Boots>,
) -> Result<Record, VmError> {
    let booted = match (attempt(request, record.clone(), choice.clone(), None), previous) {
        (Err(error), Some(previous)) if may_be_the_kernel(&error) => {
            report_fallback(request, previous, &error);
            request.stopwatch.restart();
            let request = BootRequest { boots: previous, ..*request };
            attempt(&request, record.clone(), choice.clone(), None)
        }
        (outcome, _) => outcome,
    };
    match booted {
        Err(error) if choice.accelerator != Accelerator::Tcg && should_retry(&error) => {
            let (vm, reason) = (request.vm().to_owned(), error.to_string());
            request.report(Event::VmRetriesUnderTcg { vm, reason });
            let name = choice.accelerator.name();
            let reason = format!("a boot under {name} failed");
            request.stopwatch.restart();
            attempt(
                request,
                record,
                AcceleratorChoice { accelerator: Accelerator::Tcg, reason },
                None,
            )
        }
        result => result,
    }
}

fn report_fallback(request: &BootRequest<'_>, previous: &Boots, error: &VmError) {
    let title = |boots: &Boots| boots.record().map(KernelRecord::title).unwrap_or_default();
    let (vm, new, old) = (request.vm(), title(request.boots), title(previous));
    let reason = error.to_string();
    let reason = reason.lines().next().unwrap_or_default();
    let message = format!(
        "VM `{vm}` does not come up with {new} as it is on its disk now ({reason}); booting {old} \
        as of its last successful start"
    );
    request.report(Event::Warning { message });
}

/// Returns the accelerator that the environment names.
///
/// # Errors
/// Returns [`StartError::Variable`] for a name that no accelerator has.
pub(in crate::vm) fn named_accelerator(
    context: &RuntimeContext,
) -> Result<Option<Accelerator>, StartError> {
    let named =
        context.environment.parse(ACCELERATOR, "one of kvm, hvf and tcg", Accelerator::from_name);
    Ok(named?)
}

/// Chooses the accelerator: the one that the environment names, or else the winner of the race.
pub(in crate::vm) fn accelerator(
    plan: &VmPlan,
    image: Option<&Image>,
    binary: &QemuBinary,
    project: ProjectRef<'_>,
) -> Result<AcceleratorChoice, VmError> {
    let vm = &plan.definition.name;
    let choice = match named_accelerator(project.context)? {
        Some(accelerator) => {
            AcceleratorChoice { accelerator, reason: format!("set by {ACCELERATOR}") }
        }
        None => choose_accelerator(
            binary,
            &tcg_cpu(&plan.definition, image),
            &project.context.cache,
            project.files(vm).directory(),
            project.cancel(),
        )?,
    };
    let accelerator = choice.accelerator.name().to_owned();
    let (vm, reason) = (vm.clone(), choice.reason.clone());
    project.report(&Event::AcceleratorChosen { vm, accelerator, reason });
    Ok(choice)
}

/// Returns `true` if QEMU could not load the state, or the guest could not continue from it. A busy
/// machine that was too slow proves nothing.
fn is_template_error(error: &VmError) -> bool {
    matches!(error, VmError::Start(StartError::BootDied { .. } | StartError::AgentFailed { .. }))
        || matches!(qemu_error(error), Some(QemuError::Died { .. }))
}

/// Returns the failure of QEMU, if it did not start.
fn qemu_error(error: &VmError) -> Option<&QemuError> {
    match error {
        VmError::Qemu(error) => Some(error),
        VmError::Start(StartError::NotStarted { error, .. }) => Some(error),
        _ => None,
    }
}

/// Returns `true` if the accelerator or the template may be the reason for the failure, rather than
/// a signal that ended QEMU.
fn should_retry(error: &VmError) -> bool {
    let was_ended = |said: &str| said.contains(ENDED_BY_SIGNAL);
    match (error, qemu_error(error)) {
        (VmError::Start(StartError::BootDied { trouble, .. }), _) => !was_ended(&trouble.words),
        (_, Some(QemuError::Died { stderr, .. })) => !was_ended(stderr),
        (_, Some(QemuError::NotResponding { .. })) => true,
        (error, _) => matches!(
            error,
            VmError::Start(
                StartError::BootTimedOut { .. }
                    | StartError::BootFailed { .. }
                    | StartError::AgentFailed { .. }
            )
        ),
    }
}

/// Returns `true` if the kernel or its initramfs may be the reason for the failure: the guest did
/// not get to its root filesystem.
fn may_be_the_kernel(error: &VmError) -> bool {
    match error {
        VmError::Start(StartError::BootTimedOut { trouble, .. }) => {
            matches!(trouble.phase, Phase::Kernel | Phase::Initramfs)
        }
        VmError::Start(
            StartError::BootDied { .. }
            | StartError::BootFailed { .. }
            | StartError::AgentFailed { .. },
        ) => should_retry(error),
        _ => false,
    }
}

/// Makes one attempt, and saves its timeline whatever the outcome.
fn attempt(
    request: &BootRequest<'_>,
    record: Record,
    choice: AcceleratorChoice,
    warm: Option<&Warm>,
) -> Result<Record, VmError> {
    let kind = if warm.is_some() { StartKind::Template } else { StartKind::Boot };
    let (accelerator, base) = (choice.accelerator, record.base.kind.clone());
    let outcome = try_once(request, record, choice, warm);
    record_timeline(request, kind, accelerator, &base, &outcome);
    outcome
}

fn try_once(
    request: &BootRequest<'_>,
    mut record: Record,
    choice: AcceleratorChoice,
    warm: Option<&Warm>,
) -> Result<Record, VmError> {
    let keys = VmKeys::load_or_create(&request.files())?;
    let sockets = request.project.sockets(request.vm());
    if warm.is_none() {
        let kept = record.kept_kernel.as_ref();
        request.boots.provide(&request.files(), kept, request.project.context)?;
    }
    ports::check(request.vm(), &request.plan.definition.port_forwards, request.project.layout)?;
    request.report(Event::VmStarting { vm: request.vm().to_owned(), warm: warm.is_some() });
    let started = Instant::now();
    request.stopwatch.begin_at(Phase::Qemu, started);
    let mut process = start_qemu(request, &mut record, &choice, &sockets, warm)?;
    begin_guest_phase(request, &process, warm.is_some());
    let is_awaited = request.options.wait != WaitFor::Nothing || warm.is_some();
    let boot = record.boot.clone().filter(|_| is_awaited);
    // It starts while the guest does.
    let lifetime = request.options.lifetime;
    let attach = |boot| accompany::attach(request.vm(), boot, request.project, lifetime);
    let attachment = boot.as_ref().and_then(attach);
    let awaited = match record.boot.as_ref().filter(|_| !request.has_agent()) {
        Some(boot) => await_system(request, &choice, boot, &mut process, started).map(|()| None),
        None => await_guest(request, &choice, &sockets, &keys, &mut process, started, warm),
    };
    match awaited {
        Ok(missing) => record.set_missing_modules(missing, request.project.context),
        // The guest lost nothing, and continues once there is room.
        Err(error @ VmError::State(StateError::DiskFull { .. }))
            if request.options.lifetime == Lifetime::Own =>
        {
            return Err(error);
        }
        // Commands can run: trouble with the services is no reason to end the VM.
        Err(error @ VmError::Start(StartError::ServicesTimedOut { .. })) => {
            record.set_running();
            record.save(request.project.layout)?;
            return Err(error);
        }
        // The system runs, whether it has an SSH server or not.
        Err(
            error @ VmError::Start(StartError::NoLogin { .. } | StartError::LoginFailed { .. }),
        ) => {
            record.set_running();
            record.save(request.project.layout)?;
            return Err(error);
        }
        Err(error) => {
            process.kill();
            record_failure(request, &mut record, &sockets);
            return Err(error);
        }
    }
    for error in attachment.into_iter().flat_map(accompany::Attachment::finish) {
        // A command that needs its mounts must not run without them.
        if lifetime == Lifetime::ThisThreads {
            process.kill();
            record_failure(request, &mut record, &sockets);
            return Err(error);
        }
        warn(&error, request.project.context);
    }
    if !request.has_agent() || is_awaited {
        record.set_running();
    }
    let is_let_in = record.boot.as_ref().is_some_and(is_expected);
    let is_ready = is_awaited && (request.has_agent() || is_let_in);
    if let Some(boot) = record.boot.as_mut().filter(|_| is_ready) {
        boot.ready_ms = Some(millis(started.elapsed()));
    }
    if let Err(error) = record.save(request.project.layout) {
        process.kill();
        record_failure(request, &mut record, &sockets);
        return Err(error.into());
    }
    Ok(record)
}

/// Waits for the guest as the options say, and returns its report on its kernel's modules. A guest
/// restored from a template gives it at once, and needs no wait.
fn await_guest(
    request: &BootRequest<'_>,
    choice: &AcceleratorChoice,
    sockets: &SocketsLayout,
    keys: &VmKeys,
    process: &mut QemuProcess,
    started: Instant,
    warm: Option<&Warm>,
) -> Result<Option<MissingModules>, VmError> {
    if request.options.wait == WaitFor::Nothing && warm.is_none() {
        return Ok(None);
    }
    let files = request.files();
    let (definition, watch) = (&request.plan.definition, watch(request, &files, choice, started));
    let session = BootSession {
        watch,
        relays: Some(ports::relays(&definition.port_forwards)),
        disks: data::orders(&definition.data_disks, &files),
        wait: request.options.wait,
        missing_modules: RefCell::default(),
    };
    let followed = match warm {
        Some(_) => {
            failpoint::reach(Point::RestoreLoaded);
            let control = process.control.take();
            let woken = session.wake(sockets, control, keys, || process.is_alive());
            failpoint::reach(Point::RestoreAwake);
            let woken = match woken {
                // It is ready once its disks are mounted.
                Ok(()) if !session.disks.is_empty() => {
                    session.follow(sockets, keys, || process.is_alive())
                }
                woken => woken,
            };
            if woken.is_ok() {
                request.stopwatch.end();
            }
            woken
        }
        None => {
            failpoint::reach(Point::BootLaunched);
            let followed = session.follow(sockets, keys, || process.is_alive());
            failpoint::reach(Point::BootReady);
            followed
        }
    };
    followed.map_err(|end| {
        let signal = if matches!(end, BootEnd::Died) { process.signal() } else { None };
        session.watch.explain(end, signal)
    })?;
    Ok(session.missing_modules.take())
}

/// Waits for a natively booted system as the options say, if its disk has an SSH server.
fn await_system(
    request: &BootRequest<'_>,
    choice: &AcceleratorChoice,
    boot: &BootRecord,
    process: &mut QemuProcess,
    started: Instant,
) -> Result<(), VmError> {
    if request.options.wait == WaitFor::Nothing || !is_expected(boot) {
        request.stopwatch.end();
        return Ok(());
    }
    request.stopwatch.begin_at(Phase::Login, process.greeted);
    failpoint::reach(Point::BootLaunched);
    let files = request.files();
    let watch = watch(request, &files, choice, started);
    let awaited = await_login(&watch, boot, watch.limits().ready, || process.is_alive());
    awaited.map_err(|end| {
        let signal = if matches!(end, BootEnd::Died) { process.signal() } else { None };
        watch.explain(end, signal)
    })?;
    request.stopwatch.end();
    failpoint::reach(Point::BootReady);
    Ok(())
}

/// Returns the watch over a guest that boots.
fn watch<'a>(
    request: &'a BootRequest<'_>,
    files: &'a VmLayout,
    choice: &AcceleratorChoice,
    started: Instant,
) -> BootWatch<'a> {
    let definition = &request.plan.definition;
    BootWatch {
        vm: request.vm(),
        files,
        disk: &definition.overlay,
        was_ready: false,
        accelerator: choice.accelerator,
        cpus: definition.cpus,
        memory_mib: definition.memory_bytes >> 20,
        started,
        limit: request.options.boot_limit,
        context: request.project.context,
        stopwatch: request.stopwatch,
    }
}

/// Begins the phase of the guest in a QEMU that has started: it boots, or it was loaded and is to
/// be woken. Without an agent, its phases are unknown.
fn begin_guest_phase(request: &BootRequest<'_>, process: &QemuProcess, is_warm: bool) {
    let stopwatch = request.stopwatch;
    match (is_warm, request.has_agent()) {
        (true, _) => {
            stopwatch.begin_at(Phase::Load, process.greeted);
            stopwatch.begin(Phase::Personality);
        }
        (false, true) => stopwatch.begin_at(Phase::Kernel, process.greeted),
        (false, false) => {}
    }
}

/// Starts QEMU with a free port for SSH; the record says `starting` before there is a process.
fn start_qemu(
    request: &BootRequest<'_>,
    record: &mut Record,
    choice: &AcceleratorChoice,
    sockets: &SocketsLayout,
    warm: Option<&Warm>,
) -> Result<QemuProcess, VmError> {
    let start = if warm.is_some() { StartKind::Template } else { StartKind::Boot };
    let launched = launch_on_free_port(request, record, |record, ssh_port| {
        let ssh_port = Some(ssh_port);
        let spec = spec(request, choice, ssh_port, warm)?;
        record.progress = Progress::Starting;
        record.boot = Some(boot_record(request, choice, ssh_port, sockets, start, &spec));
        record.ssh_port = ssh_port.or(record.ssh_port);
        record.save(request.project.layout)?;
        request
            .stopwatch
            .set_qemu_start(record.boot.as_ref().map_or(0, |boot| boot.started_unix_ms));
        failpoint::reach(if warm.is_some() { Point::RestoreRecorded } else { Point::BootRecorded });
        let launch_it = Launch {
            spec: &spec,
            sockets,
            log: &request.files().qemu_log(),
            incoming: warm
                .map(|warm| warm.template.device_state())
                .transpose()?
                .map(Incoming::Devices),
            lifetime: request.options.lifetime,
            cache: &request.project.context.cache,
        };
        Ok(launch(request.binary, launch_it, request.project.cancel()))
    })?;
    match launched {
        Ok(process) => {
            if let Some(boot) = record.boot.as_mut() {
                boot.qemu_version.clone_from(&process.version);
            }
            Ok(process)
        }
        Err(error) => {
            let error = explain_start(request, choice.accelerator, error);
            record_failure(request, record, sockets);
            Err(error)
        }
    }
}

/// Returns the VM's machine. One that is restored from a template has its memory and, for a reboot,
/// its initramfs.
fn spec(
    request: &BootRequest<'_>,
    choice: &AcceleratorChoice,
    ssh_port: Option<u16>,
    warm: Option<&Warm>,
) -> Result<MachineSpec, QemuError> {
    let files = &request.files();
    let mut spec = machine(request.plan, request.image, request.boots, files, choice, ssh_port);
    spec.network = request.options.network;
    spec.disk = Disk::open(&spec.disk.path)?;
    if let Some(warm) = warm {
        spec.memory = Memory::Copied(warm.template.layout.memory());
        spec.boot = warm.template.boot(spec.boot);
    }
    Ok(spec)
}

/// Records a failed start. An error of writing the record is ignored, since the failure itself is
/// more worth reporting: the next look derives the right state without it.
fn record_failure(request: &BootRequest<'_>, record: &mut Record, sockets: &SocketsLayout) {
    record.progress = Progress::Stopped;
    record.boot = None;
    clean_up(&request.files(), sockets);
    let _ = record.save(request.project.layout);
}
