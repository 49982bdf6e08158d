//! Resuming a suspended VM.
//!
//! The saved state is valid until the machine runs. So the record says that it is being resumed
//! while it is loaded, and drops the state the moment before the machine continues: before that,
//! the VM is still suspended; after it, it runs.

use std::fs;
use std::fs::File;
use std::time::Instant;

use crate::command::Lifetime;
use crate::context::RuntimeContext;
use crate::failpoint::{self, Point};
use crate::files::{self, Stamp};
use crate::host::millis;
use crate::qemu::{Disk, Incoming, Launch, MachineSpec, QemuBinary, QemuError, launch};
use crate::report::Event;
use crate::trusted;
use crate::vm::disk::{Image, check_overlay, confirm_place, data, ensure_base};
use crate::vm::error::{SuspendError, VmError};
use crate::vm::kernel;
use crate::vm::plan::VmPlan;
use crate::vm::ports;
use crate::vm::project::ProjectRef;
use crate::vm::record::{
    AutoForwards, Progress, Record, RecordedMachine, StartKind, SuspendRecord,
};
use crate::vm::start::{
    BootRequest, UpOptions, WaitFor, boot_record, cancel_resume, continue_vm, host_of,
    launch_on_free_port, machine, record_timeline, set_clock, tcg_cpu, warn_of_change,
};
use crate::vm::timeline::{Phase, Stopwatch};

/// Resumes a suspended VM. The caller holds its lock.
///
/// # Errors
/// Returns [`SuspendError::NotResumable`] and errors of a start, after which the VM is still
/// suspended, or errors of waiting for the guest, after which it runs.
pub(in crate::vm) fn resume(
    plan: &VmPlan,
    mut record: Record,
    project: ProjectRef<'_>,
    options: UpOptions,
) -> Result<Record, VmError> {
    let vm = record.name.clone();
    let _span = tracing::debug_span!("resume", %vm).entered();
    let stopwatch = &Stopwatch::new(&vm, &project.context.reporter);
    stopwatch.begin(Phase::Image);
    warn_of_other_disks(plan, &record, project.context);
    let mut plan = plan.clone();
    plan.definition.data_disks.clone_from(&record.data_disks);
    let plan = &plan;
    let useless =
        || SuspendError::NotResumable { vm: vm.clone(), reason: "it has no record".into() };
    let mut saved = record.suspended.clone().ok_or_else(useless)?;
    let binary = &QemuBinary::find(&project.context.environment)?;
    open_saved(&mut saved, &record, binary, project)?;
    record.suspended = Some(saved.clone());
    let base = ensure_base(plan, Some(&record), project)?;
    stopwatch.begin(Phase::Overlay);
    confirm_place(&vm, &plan.definition.overlay)?;
    check_overlay(plan, &base, Some(&mut record), project)?;
    let state = || open_saved(&mut saved.clone(), &record, binary, project);
    let image = base.image.as_ref();
    let options = UpOptions { wait: WaitFor::Ready, ..options };
    let boots = &kernel::of_saved(&plan.definition, image, &record, &saved.boot, project)?;
    let mounts = &saved.boot.mounts;
    let request = BootRequest { plan, image, boots, binary, project, options, mounts, stopwatch };
    project.report(&Event::VmResuming { vm: vm.clone() });
    warn_of_changes(&saved, plan, image, project.context);
    warn_of_change(plan, &record, project);
    // For a later reboot of the guest: QEMU reads it once, when it starts.
    boots.provide(&project.files(&vm), record.kept_kernel.as_ref(), project.context)?;
    let started = Instant::now();
    stopwatch.begin_at(Phase::Qemu, started);
    let (accelerator, base) = (saved.boot.accelerator.accelerator, record.base.kind.clone());
    let resumed = run_resumed(&request, record.clone(), &saved, state, started);
    record_timeline(&request, StartKind::Suspended, accelerator, &base, &resumed);
    resumed
}

/// Loads the saved state, and lets the machine run.
fn run_resumed(
    request: &BootRequest<'_>,
    record: Record,
    saved: &SuspendRecord,
    state: impl Fn() -> Result<fs::File, VmError>,
    started: Instant,
) -> Result<Record, VmError> {
    let project = request.project;
    let mut record = load(request, record, saved, state)?;
    request.stopwatch.begin(Phase::Personality);
    failpoint::reach(Point::ResumeLoaded);
    record.progress = Progress::Starting;
    record.suspended = None;
    if let Err(error) = record.save(project.layout) {
        record.suspended = Some(saved.clone());
        let _ = cancel_resume(record, project);
        return Err(error.into());
    }
    failpoint::reach(Point::ResumeRecorded);
    let mut record = continue_vm(record, project)?;
    // A native guest that had not let castra in before may do so now.
    let was_ready = saved.boot.has_agent() || saved.boot.ready_ms.is_some();
    if let Some(boot) = record.boot.as_mut().filter(|_| was_ready) {
        boot.ready_ms = Some(millis(started.elapsed()));
    }
    record.save(project.layout)?;
    if was_ready && !saved.boot.has_agent() {
        set_clock(&record, project);
    }
    request.stopwatch.end();
    Ok(record)
}

/// Opens the saved state if this VM can be resumed from it: the state is intact, its QEMU is still
/// installed, and its disk is unchanged. The record gets the new stamp of a file that turns out to
/// be a copy.
///
/// # Errors
/// Returns [`SuspendError::NotResumable`] with the reason, or [`VmError::File`] when interrupted.
fn open_saved(
    saved: &mut SuspendRecord,
    record: &Record,
    binary: &QemuBinary,
    project: ProjectRef<'_>,
) -> Result<File, VmError> {
    let useless = |reason: &str| {
        let (vm, reason) = (record.name.clone(), reason.to_owned());
        VmError::from(SuspendError::NotResumable { vm, reason })
    };
    let recorded = saved.boot.machine.as_ref().ok_or_else(|| useless("its machine is unknown"))?;
    let machine = recorded.known().map_err(|reason| {
        let path = project.files(&record.name).record();
        useless(&format!(
            "{} describes a machine that castra does not support: {reason}",
            path.display()
        ))
    })?;
    if machine.qemu != binary.identity {
        return Err(useless("it was saved by another QEMU, or with other extra arguments"));
    }
    if machine.host != host_of(saved.boot.accelerator.accelerator) {
        return Err(useless("it was saved on another machine, with another CPU"));
    }
    if !saved.recognises(&record.overlay_path(project.layout), project.cancel())? {
        return Err(useless("its disk has changed since"));
    }
    data::recognise(saved, record, project)?;
    let path = project.files(&record.name).machine_state();
    let file = match trusted::open(&path) {
        Err(error) if trusted::is_absence(&error) => {
            return Err(useless("its saved memory is gone"));
        }
        Err(error) => return Err(useless(&format!("its saved memory is not trusted: {error}"))),
        Ok(file) => file,
    };
    let metadata = file.metadata().map_err(|_| useless("its saved memory cannot be read"))?;
    // Hashing takes longer than loading; a file with an unchanged stamp was not written to.
    let stamp = Stamp::of(&metadata);
    if stamp != saved.stamp && files::sha256(&path, project.cancel())? != saved.sha256 {
        return Err(useless("its saved memory is damaged"));
    }
    saved.stamp = stamp;
    Ok(file)
}

/// Warns that a VM resumes with other data disks than those of its definition.
fn warn_of_other_disks(plan: &VmPlan, record: &Record, context: &RuntimeContext) {
    if plan.definition.data_disks == record.data_disks {
        return;
    }
    let vm = &plan.definition.name;
    let message = format!(
        "VM `{vm}` resumes with the disks that it was suspended with; `castra restart {vm}` \
        applies its current definition"
    );
    context.reporter.report(&Event::Warning { message });
}

/// Warns that the saved machine differs from the current definition, which does not apply to it.
fn warn_of_changes(
    saved: &SuspendRecord,
    plan: &VmPlan,
    image: Option<&Image>,
    context: &RuntimeContext,
) {
    let (vm, boot) = (&plan.definition.name, &saved.boot);
    let now = tcg_cpu(&plan.definition, image);
    if let Some(cpu) = boot.emulated_cpu().filter(|cpu| **cpu != now) {
        let message = format!(
            "VM `{vm}` resumes with the CPU it was suspended with, `{cpu}`; `castra restart {vm}` \
            applies `{now}`"
        );
        context.reporter.report(&Event::Warning { message });
    }
    if boot.cpus != plan.definition.cpus || boot.memory_mib != plan.definition.memory_bytes >> 20 {
        let message = format!(
            "VM `{vm}` resumes with {} CPUs and {} MiB of memory, as when it was suspended; \
            `castra restart {vm}` applies its current definition",
            boot.cpus, boot.memory_mib
        );
        context.reporter.report(&Event::Warning { message });
    }
}

/// Starts QEMU with the saved state and leaves the machine paused. After a failure the VM is
/// suspended as before.
fn load(
    request: &BootRequest<'_>,
    mut record: Record,
    saved: &SuspendRecord,
    state: impl Fn() -> Result<fs::File, VmError>,
) -> Result<Record, VmError> {
    let (project, vm) = (request.project, request.vm());
    let (files, declared) = (project.files(vm), &request.plan.definition.port_forwards);
    let sockets = project.sockets(vm);
    ports::check(vm, declared, project.layout)?;
    // A native boot of an earlier castra had none.
    let has_port = saved.boot.ssh_port.is_some();
    let launched = launch_on_free_port(request, &mut record, |record, port| {
        let ssh_port = has_port.then_some(port);
        let spec = spec(request, saved, ssh_port)?;
        let mut boot = boot_record(
            request,
            &saved.boot.accelerator,
            ssh_port,
            &sockets,
            StartKind::Suspended,
            &spec,
        );
        boot.qemu_version.clone_from(&saved.boot.qemu_version);
        boot.missing_modules.clone_from(&saved.boot.missing_modules);
        boot.relayed = saved.boot.relayed;
        boot.added_forwards.clone_from(&saved.boot.added_forwards);
        // One of them may be declared by now.
        boot.added_forwards.retain(|added| declared.iter().all(|one| one.host != added.host));
        let is_wanted = request.plan.definition.auto_forwards;
        let auto = saved.boot.auto_forwards.as_ref();
        if let Some(auto) = auto.filter(|auto| auto.requested || is_wanted) {
            let avoid = request.plan.ports_of_others.clone();
            boot.auto_forwards = Some(AutoForwards { avoid, ..auto.clone() });
        }
        boot.native.clone_from(&saved.boot.native);
        record.progress = Progress::Resuming;
        request.stopwatch.set_qemu_start(boot.started_unix_ms);
        record.boot = Some(boot);
        record.ssh_port = ssh_port.or(record.ssh_port);
        record.save(project.layout)?;
        let launch_it = Launch {
            spec: &spec,
            sockets: &sockets,
            log: &files.qemu_log(),
            incoming: Some(Incoming::Machine(state()?)),
            lifetime: Lifetime::Own,
            cache: &project.context.cache,
        };
        Ok(launch(request.binary, launch_it, project.cancel()))
    });
    let error = match launched {
        Ok(Ok(process)) => {
            request.stopwatch.begin_at(Phase::Load, process.greeted);
            return Ok(record);
        }
        Ok(Err(error @ QemuError::Died { .. })) if !error.is_port_taken() => {
            let reason = format!("QEMU cannot load it ({error})");
            SuspendError::NotResumable { vm: vm.to_owned(), reason }.into()
        }
        Ok(Err(error)) => error.into(),
        Err(error) => error,
    };
    cancel_resume(record, project)?;
    Err(error)
}

/// Returns the machine that was saved, with the current ports.
fn spec(
    request: &BootRequest<'_>,
    saved: &SuspendRecord,
    ssh_port: Option<u16>,
) -> Result<MachineSpec, QemuError> {
    let (files, boot) = (request.project.files(request.vm()), &saved.boot);
    let mut spec =
        machine(request.plan, request.image, request.boots, &files, &boot.accelerator, ssh_port);
    spec.cpus = boot.cpus;
    spec.memory_mib = boot.memory_mib;
    if let Some(Ok(machine)) = boot.machine.as_ref().map(RecordedMachine::known) {
        spec.machine.clone_from(&machine.machine);
        spec.cpu.clone_from(&machine.cpu);
        spec.devices.clone_from(&machine.devices);
        spec.stream_ports = machine.stream_ports;
        spec.announcement = machine.announcement;
    }
    spec.disk = Disk::open(&spec.disk.path)?;
    let ssh = ssh_port.map(|host| ports::SshForward::new(host, boot.has_agent()));
    spec.forwards = ports::rules(ssh, &request.plan.definition.port_forwards, boot.relayed);
    Ok(spec)
}
