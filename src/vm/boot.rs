//! One boot: QEMU is started, the agent says hello, the VM gets its personality, commands can run.

use std::time::{Duration, Instant};

use crate::config::BootProfile;
use crate::context::RuntimeContext;
use crate::guest::{VmKeys, append_agent};
use crate::layout::{ProjectLayout, SocketsLayout, VmLayout};
use crate::plan::VmPlan;
use crate::qemu::{
    Accelerator, AcceleratorChoice, QemuBinary, QemuError, QemuProcess, choose_accelerator, launch,
};
use crate::report::Event;

use super::clock::{millis, since_epoch};
use super::disk::ResolvedVmArtifacts;
use super::error::VmError;
use super::forwards;
use super::leftovers::clean_up;
use super::machine::{machine, tcg_cpu};
use super::record::{BootRecord, Progress, Record};
use super::up::WaitFor;
use super::watch::BootWatch;

/// Another program may take the port between its choice and QEMU's start; more often than this it is no accident.
const PORT_ATTEMPTS: usize = 5;

/// All that a boot needs to know.
pub(super) struct BootRequest<'a> {
    pub(super) plan: &'a VmPlan,
    pub(super) artifacts: &'a ResolvedVmArtifacts,
    pub(super) layout: &'a ProjectLayout,
    pub(super) context: &'a RuntimeContext,
    pub(super) wait: WaitFor,
    pub(super) limit: Option<Duration>,
}

/// Boots the VM and writes its record. After a failure no process is left, and the record says `stopped`.
pub(super) fn boot(request: &BootRequest<'_>, record: Record) -> Result<Record, VmError> {
    let binary = QemuBinary::find(&request.context.environment)?;
    let choice = accelerator(request, &binary)?;
    match attempt(request, &binary, record.clone(), choice.clone()) {
        Err(error) if choice.accelerator != Accelerator::Tcg && is_worth_tcg(&error) => {
            let (vm, reason) = (request.vm().to_owned(), error.to_string());
            request.report(Event::VmRetriesUnderTcg { vm, reason });
            let name = choice.accelerator.name();
            let reason = format!("a boot under {name} failed");
            attempt(request, &binary, record, AcceleratorChoice { accelerator: Accelerator::Tcg, reason })
        }
        result => result,
    }
}

impl BootRequest<'_> {
    pub(super) fn vm(&self) -> &str {
        &self.plan.definition.name
    }

    fn report(&self, event: Event) {
        self.context.reporter.report(&event);
    }

    pub(super) fn files(&self) -> VmLayout {
        self.layout.vm(self.vm())
    }

    pub(super) fn has_agent(&self) -> bool {
        self.plan.boot == BootProfile::Managed
    }
}

fn accelerator(request: &BootRequest<'_>, binary: &QemuBinary) -> Result<AcceleratorChoice, VmError> {
    let context = request.context;
    let choice = match context.environment.text("CASTRA_ACCELERATOR") {
        Some(name) => {
            let unknown = || VmError::UnknownAccelerator { name: name.to_owned() };
            let accelerator = Accelerator::from_name(name).ok_or_else(unknown)?;
            AcceleratorChoice { accelerator, reason: "CASTRA_ACCELERATOR asks for it".into() }
        }
        None => choose_accelerator(
            binary,
            &tcg_cpu(request),
            &context.cache,
            request.files().directory(),
            &context.cancel,
        )?,
    };
    let (vm, accelerator) = (request.vm().to_owned(), choice.accelerator.name().to_owned());
    request.report(Event::AcceleratorChosen { vm, accelerator, reason: choice.reason.clone() });
    Ok(choice)
}

/// Whether the failure may be the accelerator's.
fn is_worth_tcg(error: &VmError) -> bool {
    matches!(
        error,
        VmError::BootDied { .. }
            | VmError::BootTimedOut { .. }
            | VmError::Qemu(QemuError::Died { .. } | QemuError::Silent { .. })
    )
}

fn attempt(
    request: &BootRequest<'_>,
    binary: &QemuBinary,
    mut record: Record,
    choice: AcceleratorChoice,
) -> Result<Record, VmError> {
    let keys = VmKeys::load_or_create(&request.files())?;
    let sockets = request.layout.sockets(&request.context.runtime_root, request.vm());
    if let Some(initramfs) = request.artifacts.image.as_ref().and_then(|(_, paths)| paths.initramfs.as_ref())
        && request.has_agent()
    {
        append_agent(initramfs, &request.files().initramfs())?;
    }
    forwards::check(request.vm(), &request.plan.definition.port_forwards, request.layout)?;
    request.report(Event::VmStarting { vm: request.vm().to_owned() });
    let started = Instant::now();
    let mut process = start(request, binary, &mut record, &choice, &sockets)?;
    let outcome = match (request.has_agent(), request.wait) {
        (false, _) | (true, WaitFor::Nothing) => Ok(()),
        (true, wait) => {
            let (vm, context) = (request.vm(), request.context);
            let watch = BootWatch::new(vm, choice.accelerator, started, wait, request.limit, context);
            watch
                .follow(&sockets, &keys, || process.is_alive())
                .map_err(|end| watch.explain(end, &request.files()))
        }
    };
    match outcome {
        Ok(()) => {}
        // Commands can run: what the services do is no reason to take the VM away.
        Err(error @ VmError::ServicesTimedOut { .. }) => {
            record.progress = Progress::Running;
            record.save(request.layout)?;
            return Err(error);
        }
        Err(error) => {
            process.kill();
            give_up(request, &mut record, &sockets);
            return Err(error);
        }
    }
    if !request.has_agent() || request.wait != WaitFor::Nothing {
        record.progress = Progress::Running;
    }
    if let Some(boot) =
        record.boot.as_mut().filter(|_| request.has_agent() && request.wait != WaitFor::Nothing)
    {
        boot.ready_ms = Some(millis(started.elapsed()));
    }
    if let Err(error) = record.save(request.layout) {
        process.kill();
        give_up(request, &mut record, &sockets);
        return Err(error);
    }
    Ok(record)
}

/// Starts QEMU with a free port for SSH; the record says `starting` before there is a process.
fn start(
    request: &BootRequest<'_>,
    binary: &QemuBinary,
    record: &mut Record,
    choice: &AcceleratorChoice,
    sockets: &SocketsLayout,
) -> Result<QemuProcess, VmError> {
    for last in (0..PORT_ATTEMPTS).map(|attempt| attempt + 1 == PORT_ATTEMPTS) {
        let ssh_port = if request.has_agent() { Some(free_port(request)?) } else { None };
        record.progress = Progress::Starting;
        record.boot = Some(boot_record(request, choice, ssh_port, sockets));
        record.save(request.layout)?;
        let spec = machine(request, choice, ssh_port);
        match launch(binary, &spec, sockets, &request.files().qemu_log(), &request.context.cancel) {
            Ok(process) => {
                if let Some(boot) = record.boot.as_mut() {
                    boot.qemu_version.clone_from(&process.version);
                }
                return Ok(process);
            }
            Err(error) if error.is_port_taken() && !last => {
                // A declared port that was taken meanwhile gets its own message here.
                forwards::check(request.vm(), &request.plan.definition.port_forwards, request.layout)?;
            }
            Err(error) => {
                give_up(request, record, sockets);
                return Err(error.into());
            }
        }
    }
    unreachable!("the last attempt returns")
}

fn free_port(request: &BootRequest<'_>) -> Result<u16, VmError> {
    forwards::free_port().map_err(|source| VmError::Disk {
        action: "find a free port for",
        path: request.files().directory().to_owned(),
        source,
    })
}

/// After a start that came to nothing. What went wrong is more worth telling than a record that cannot be written then:
/// the next look derives the right state without it.
fn give_up(request: &BootRequest<'_>, record: &mut Record, sockets: &SocketsLayout) {
    record.progress = Progress::Stopped;
    record.boot = None;
    clean_up(&request.files(), sockets);
    let _ = record.save(request.layout);
}

fn boot_record(
    request: &BootRequest<'_>,
    choice: &AcceleratorChoice,
    ssh_port: Option<u16>,
    sockets: &SocketsLayout,
) -> BootRecord {
    let definition = &request.plan.definition;
    BootRecord {
        started_unix_ms: millis(since_epoch()),
        accelerator: choice.clone(),
        qemu_version: String::new(),
        cpus: definition.cpus,
        memory_mib: definition.memory_bytes >> 20,
        ssh_port,
        port_forwards: definition.port_forwards.clone(),
        sockets: sockets.directory().to_owned(),
        ready_ms: None,
    }
}
