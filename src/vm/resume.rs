//! Going on from what `suspend` has saved.
//!
//! The saved state is worth something until the machine runs. So the record says that it is being resumed while it is
//! loaded, and forgets the state the moment before the machine is told to go on: whatever happens before, the VM is
//! still suspended; whatever happens after, it is a VM that runs.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::command::Lifetime;
use crate::config::BootProfile;
use crate::context::RuntimeContext;
use crate::failpoint::{self, Point};
use crate::guest::{VmKeys, append_agent};
use crate::host::millis;
use crate::layout::ProjectLayout;
use crate::qemu::{Disk, Incoming, Launch, MachineSpec, QemuBinary, QemuError, launch, running_qemu};
use crate::report::Event;
use crate::wait::WaitLimit;

use super::disk::{Base, Image, check_overlay, confirm_place, ensure_base};
use super::error::VmError;
use super::monitor::{clean_up_run, to_leave_in_order, unanswered};
use super::plan::VmPlan;
use super::record::{BootRecord, Progress, Record, RecordedMachine, StartKind, SuspendRecord};
use super::start::{
    BootRequest, BootWatch, PORT_ATTEMPTS, boot_record, keep_timeline, machine, ports, ssh_port, tcg_cpu,
};
use super::timeline::{Phase, Stopwatch};
use super::up::{UpOptions, WaitFor};

/// How long a QEMU may take to end that has loaded a state and not run.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long QEMU may take to be able to go on, after a saving that was given up.
const CONT_LIMIT: Duration = Duration::from_secs(10);
/// How often it is asked.
const CONT_POLL: Duration = Duration::from_millis(20);

/// Lets a suspended VM go on. The caller holds its lock.
///
/// # Errors
/// [`VmError::NotResumable`] and those of a start: the VM is still suspended then. Those of the wait for the guest: the VM
/// runs then.
pub(super) fn resume(
    plan: &VmPlan,
    mut record: Record,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> Result<Record, VmError> {
    let vm = record.name.clone();
    let stopwatch = &Stopwatch::new(&vm, &context.reporter);
    stopwatch.begin(Phase::Image);
    let useless = || VmError::NotResumable { vm: vm.clone(), reason: "nothing is known of it".into() };
    let mut saved = record.suspended.clone().ok_or_else(useless)?;
    let binary = &QemuBinary::find(&context.environment)?;
    saved.open(&record, binary, layout, &context.cancel)?;
    record.suspended = Some(saved.clone());
    let base = ensure_base(plan, layout, Some(&record), context)?;
    stopwatch.begin(Phase::Overlay);
    confirm_place(&vm, &plan.definition.overlay)?;
    check_overlay(plan, &base, Some(&mut record), layout, context)?;
    let state = || saved.clone().open(&record, binary, layout, &context.cancel);
    let image = base.image.as_ref();
    let options = UpOptions { wait: WaitFor::Ready, ..options };
    let request = BootRequest { plan, image, binary, layout, context, options, stopwatch };
    context.reporter.report(&Event::VmResuming { vm: vm.clone() });
    warn_of_changes(&saved, plan, image, context);
    provide_initramfs(&request, &base)?;
    let started = Instant::now();
    stopwatch.begin_at(Phase::Qemu, started);
    let (accelerator, base) = (saved.boot.accelerator.accelerator, record.base.kind.clone());
    let resumed = let_go_on(&request, record.clone(), &saved, state, started);
    keep_timeline(&request, StartKind::Suspended, accelerator, &base, &resumed);
    resumed
}

/// Loads what was saved, and lets the machine run.
fn let_go_on(
    request: &BootRequest<'_>,
    record: Record,
    saved: &SuspendRecord,
    state: impl Fn() -> Result<fs::File, VmError>,
    started: Instant,
) -> Result<Record, VmError> {
    let (layout, context) = (request.layout, request.context);
    let mut record = load(request, record, saved, state)?;
    request.stopwatch.begin(Phase::Personality);
    failpoint::reach(Point::ResumeLoaded);
    record.progress = Progress::Starting;
    record.suspended = None;
    if let Err(error) = record.save(layout) {
        record.suspended = Some(saved.clone());
        let _ = put_back(record, layout);
        return Err(error.into());
    }
    failpoint::reach(Point::ResumeRecorded);
    let mut record = finish(record, layout, context)?;
    if let Some(boot) = record.boot.as_mut() {
        boot.ready_ms = Some(millis(started.elapsed()));
    }
    request.stopwatch.end();
    Ok(record)
}

/// What was saved has its own machine, whatever the definition says by now.
fn warn_of_changes(saved: &SuspendRecord, plan: &VmPlan, image: Option<&Image>, context: &RuntimeContext) {
    let (vm, boot) = (&plan.definition.name, &saved.boot);
    let now = tcg_cpu(&plan.definition, image);
    if let Some(cpu) = boot.emulated_cpu().filter(|cpu| **cpu != now) {
        let message = format!(
            "VM `{vm}` resumes with the CPU it was suspended with, `{cpu}`; it gets `{now}` after castra down {vm} and up"
        );
        context.reporter.report(&Event::Warning { message });
    }
    if boot.cpus != plan.definition.cpus || boot.memory_mib != plan.definition.memory_bytes >> 20 {
        let message = format!(
            "VM `{vm}` goes on with {} CPUs and {} MiB of memory, as it was suspended; what its definition says now takes \
             effect after castra down {vm} and up",
            boot.cpus, boot.memory_mib
        );
        context.reporter.report(&Event::Warning { message });
    }
}

/// For a guest that reboots later: QEMU reads it once, when it starts.
fn provide_initramfs(request: &BootRequest<'_>, base: &Base) -> Result<(), VmError> {
    let initramfs = base.image.as_ref().and_then(|(_, paths)| paths.initramfs.as_ref());
    match initramfs.filter(|_| request.plan.boot == BootProfile::Managed) {
        Some(initramfs) => Ok(append_agent(initramfs, &request.layout.vm(request.vm()).initramfs())?),
        None => Ok(()),
    }
}

/// Starts QEMU with the saved state, which then stands still. After a failure the VM is suspended as before.
fn load(
    request: &BootRequest<'_>,
    mut record: Record,
    saved: &SuspendRecord,
    state: impl Fn() -> Result<fs::File, VmError>,
) -> Result<Record, VmError> {
    let (layout, context, vm) = (request.layout, request.context, request.vm());
    let (files, declared) = (layout.vm(vm), &request.plan.definition.port_forwards);
    let sockets = layout.sockets(&context.runtime_root, vm);
    ports::check(vm, declared, layout)?;
    for attempt in 1..=PORT_ATTEMPTS {
        let ssh_port = saved.boot.ssh_port.map(|_| ssh_port(request, &record, attempt)).transpose()?;
        let spec = spec(request, saved, ssh_port)?;
        let mut boot =
            boot_record(request, &saved.boot.accelerator, ssh_port, &sockets, StartKind::Suspended, &spec);
        boot.qemu_version.clone_from(&saved.boot.qemu_version);
        boot.missing_modules.clone_from(&saved.boot.missing_modules);
        boot.relayed = saved.boot.relayed;
        record.progress = Progress::Resuming;
        request.stopwatch.set_qemu_start(boot.started_unix_ms);
        record.boot = Some(boot);
        record.ssh_port = ssh_port.or(record.ssh_port);
        record.save(layout)?;
        let launch_it = Launch {
            spec: &spec,
            sockets: &sockets,
            log: &files.qemu_log(),
            incoming: Some(Incoming::Machine(state()?)),
            lifetime: Lifetime::Own,
        };
        let error = match launch(request.binary, launch_it, &context.cancel) {
            Ok(process) => {
                request.stopwatch.begin_at(Phase::Load, process.greeted);
                return Ok(record);
            }
            Err(error) => error,
        };
        if error.is_port_taken() && attempt < PORT_ATTEMPTS {
            continue;
        }
        put_back(record, layout)?;
        return Err(match error {
            QemuError::Died { .. } if !error.is_port_taken() => {
                VmError::NotResumable { vm: vm.to_owned(), reason: format!("QEMU cannot load it ({error})") }
            }
            other => other.into(),
        });
    }
    unreachable!("the last attempt returns")
}

/// The machine that was saved, with the ports of now.
fn spec(
    request: &BootRequest<'_>,
    saved: &SuspendRecord,
    ssh_port: Option<u16>,
) -> Result<MachineSpec, QemuError> {
    let (files, boot) = (request.layout.vm(request.vm()), &saved.boot);
    let mut spec = machine(request.plan, request.image, &files, &boot.accelerator, ssh_port);
    spec.cpus = boot.cpus;
    spec.memory_mib = boot.memory_mib;
    if let Some(Ok(machine)) = boot.machine.as_ref().map(RecordedMachine::known) {
        spec.machine.clone_from(&machine.machine);
        spec.cpu.clone_from(&machine.cpu);
        spec.devices.clone_from(&machine.devices);
    }
    spec.disk = Disk::open(&spec.disk.path)?;
    spec.forwards = ports::rules(ssh_port, &request.plan.definition.port_forwards, boot.relayed);
    Ok(spec)
}

/// Ends a resume that was begun and never let the machine run: the VM is suspended as before.
///
/// # Errors
/// [`VmError::Unkillable`], [`VmError::Record`].
pub(super) fn put_back(mut record: Record, layout: &ProjectLayout) -> Result<Record, VmError> {
    let files = layout.vm(&record.name);
    if let Some(qemu) = running_qemu(&files.pidfile()) {
        qemu.kill()?;
        if !qemu.wait(END_LIMIT) {
            return Err(VmError::Unkillable { vm: record.name, pid: qemu.pid() });
        }
    }
    if let Some(boot) = record.boot.take() {
        clean_up_run(&files, &boot.socket_paths());
    }
    record.progress = Progress::Suspended;
    record.save(layout)?;
    Ok(record)
}

/// Lets a machine go on that stands still with all that it needs, and sees to it that commands can run in it, with the
/// clock and the keys right.
///
/// # Errors
/// Those of the wait for the guest. QEMU is left running: its memory is nowhere else.
pub(super) fn finish(
    mut record: Record,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<Record, VmError> {
    let vm = record.name.clone();
    let Some(boot) = record.boot.as_ref() else { return Ok(record) };
    let files = layout.vm(&vm);
    let mut qmp = to_leave_in_order(&vm, boot, &context.cancel)?;
    let wait = WaitLimit::to_leave_in_order(CONT_LIMIT, &context.cancel).begin();
    // For a moment after a saving that was given up, QEMU refuses.
    while let Err(error) = qmp.execute("cont", json!({})) {
        wait.sleep(CONT_POLL).map_err(|_| unanswered(&vm, error))?;
    }
    drop(qmp);
    if boot.has_agent() {
        wake(&record, boot, layout, context)?;
    }
    record.progress = Progress::Running;
    record.save(layout)?;
    // Of no use any more. What stays is written over by the next suspend.
    let _ = fs::remove_file(files.machine_state());
    Ok(record)
}

fn wake(
    record: &Record,
    boot: &BootRecord,
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<(), VmError> {
    let (vm, files, disk) = (&record.name, &layout.vm(&record.name), &record.overlay_path(layout));
    let keys = VmKeys::load_or_create(files)?;
    let stopwatch = &Stopwatch::going_on(vm, None, &context.reporter);
    let watch = BootWatch::of_running(vm, files, disk, boot, context, stopwatch);
    let is_alive = || running_qemu(&files.pidfile()).is_some();
    let woken = watch.wake(&boot.socket_paths(), &keys, is_alive);
    woken.map_err(|end| watch.explain(end, None))
}

/// Drops the memory of a suspended VM, as its user asks for. Its disk stays, as of the moment it was suspended.
///
/// # Errors
/// [`VmError::Record`].
pub(super) fn discard(record: Record, layout: &ProjectLayout) -> Result<Record, VmError> {
    let mut record = put_back(record, layout)?;
    record.progress = Progress::Stopped;
    record.suspended = None;
    record.save(layout)?;
    // What stays is written over by the next suspend.
    let _ = fs::remove_file(layout.vm(&record.name).machine_state());
    Ok(record)
}
