//! `up`: from a plan to VMs in which commands can run.

use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::command::Lifetime;
use crate::config::BootProfile;
use crate::context::RuntimeContext;
use crate::error::Explain as _;
use crate::files;
use crate::guest::VmKeys;
use crate::layout::{ProjectLayout, SocketsLayout};
use crate::managed::ImageManager;
use crate::qemu::{MachineStatus, Network, QemuBinary, running_qemu, runs_elsewhere};
use crate::report::Event;
use crate::state_root;

use super::PerVm;
use super::disk::{
    check_boot_code, check_own_disk, confirm, ensure_base, ensure_vm_assets, remove_unfinished_clone,
};
use super::down::await_stop;
use super::error::VmError;
use super::journal;
use super::lock::{ensure_reachable, lock};
use super::monitor::{clean_up, ensure_not_stopped, let_recorded_run};
use super::plan::{BasePlan, Plan, VmPlan};
use super::projects;
use super::record::{BootRecord, MissingModules, Progress, Record, StartKind, VmState, crash, observe};
use super::resume::{discard, finish, put_back, resume};
use super::start::{BootRequest, BootWatch, Warming, accelerator, copied, predecessor, start};
use super::status::check_network;
use super::suspend::take_back;
use super::timeline::{Phase, Stopwatch, keep_if_new, of_start};

/// How long QEMU may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What `up` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitFor {
    /// Nothing: QEMU runs. The next command that needs the guest finishes the start.
    Nothing,
    /// Commands can run.
    Ready,
    /// The guest's own last service is up.
    Services,
}

/// How `up` is to behave.
#[derive(Debug, Clone, Copy)]
pub struct UpOptions {
    /// What to wait for.
    pub wait: WaitFor,
    /// How long a boot may take; nothing for a limit that fits the accelerator.
    pub boot_limit: Option<Duration>,
    /// Boot even where a warm template could be used or made.
    pub cold: bool,
    /// Drop the memory of a suspended VM, and boot it from its disk.
    pub discard_suspended: bool,
    /// How long QEMU may live.
    pub lifetime: Lifetime,
    /// What the guest can reach.
    pub network: Network,
}

impl Default for UpOptions {
    /// Until commands can run, with a limit that fits the accelerator, from a warm template, for good.
    fn default() -> Self {
        Self {
            wait: WaitFor::Ready,
            boot_limit: None,
            cold: false,
            discard_suspended: false,
            lifetime: Lifetime::Own,
            network: Network::Full,
        }
    }
}

/// What became of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpOutcome {
    /// Its record.
    pub record: Record,
    /// Whether it ran before.
    pub ran_already: bool,
}

/// Brings up all VMs of the plan side by side. One that fails keeps none of the others from coming up.
pub fn up(
    plan: &Plan,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> PerVm<UpOutcome> {
    if let Some(Err(problem)) = plan.vms.first().map(|vm| vm.definition.overlay.bounds().claim_state_root()) {
        let refused = |vm: &VmPlan| {
            let (vm, problem) = (vm.definition.name.clone(), Box::new(problem.clone()));
            (vm.clone(), Err(VmError::DiskOutOfBounds { vm, problem }))
        };
        return plan.vms.iter().map(refused).collect();
    }
    projects::note(layout, context);
    journal::keep("up", layout, context, |context| {
        thread::scope(|scope| {
            let workers: Vec<_> = plan
                .vms
                .iter()
                .map(|vm| (vm, scope.spawn(move || up_one(vm, layout, context, options))))
                .collect();
            let join = |(vm, worker): (&VmPlan, thread::ScopedJoinHandle<'_, _>)| {
                (
                    vm.definition.name.clone(),
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                )
            };
            workers.into_iter().map(join).collect()
        })
    })
}

fn up_one(
    plan: &VmPlan,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> Result<UpOutcome, VmError> {
    let vm = &plan.definition.name;
    for warning in &plan.warnings {
        context.reporter.report(&Event::Warning { message: warning.clone() });
    }
    check_wait(plan, options)?;
    let _lock = lock(vm, layout, context)?;
    // What cannot go is in nobody's way.
    let own = layout.vm(vm);
    for directory in [own.directory(), &own.boots()] {
        let _ = files::remove_leftovers(directory);
    }
    let mut record = Record::load(layout, vm)?;
    if let Some(unfinished) = record.take_if(|record| record.is_unfinished_clone()) {
        remove_unfinished_clone(&unfinished, &plan.definition.overlay, layout)?;
    }
    if record.is_none()
        && let Some(qemu) = running_qemu(&layout.vm(vm).pidfile())
    {
        return Err(VmError::Unrecorded { vm: vm.clone(), pid: qemu.pid() });
    }
    if let Some(record) = record {
        match observe(&record, &layout.vm(vm)).0 {
            VmState::Starting if is_stuck(&record, context) => end_stuck(&record, layout, context)?,
            VmState::Starting | VmState::Running | VmState::DiskFull => {
                return go_on(plan, record, layout, context, options);
            }
            // A `suspend` that was killed half-way: the VM stands still, and is to run.
            VmState::Suspending => {
                return go_on(plan, take_back(record, layout, context)?, layout, context, options);
            }
            VmState::Suspended | VmState::Resuming if options.discard_suspended => {
                drop(discard(record, layout)?);
            }
            VmState::Suspended | VmState::Resuming => {
                let record = put_back(record, layout)?;
                predecessor::refuse(vm, layout, context)?;
                let record = resume(plan, record, layout, context, options)?;
                return Ok(up_now(record, context));
            }
            VmState::Stopping => {
                if let Some(record) = await_stop(record, layout, context)? {
                    return go_on(plan, record, layout, context, options);
                }
            }
            VmState::Elsewhere => ensure_reachable(vm, layout)?,
            VmState::Crashed => recover(&record, layout, context),
            VmState::Copied => copied::prepare(&record, layout, context)?,
            VmState::Stopped => {}
        }
    }
    predecessor::refuse(vm, layout, context)?;
    Ok(up_now(bring_up(plan, layout, context, options)?, context))
}

/// Checks that what `up` is to wait for can be known: only the agent reports the guest's services.
///
/// # Errors
/// [`VmError::ServicesUnseen`].
pub fn check_wait(plan: &VmPlan, options: UpOptions) -> Result<(), VmError> {
    if plan.boot == BootProfile::Native && options.wait == WaitFor::Services {
        return Err(VmError::ServicesUnseen { vm: plan.definition.name.clone() });
    }
    Ok(())
}

fn up_now(record: Record, context: &RuntimeContext) -> UpOutcome {
    let boot_ms = record.boot.as_ref().and_then(|boot| boot.ready_ms);
    if record.progress == Progress::Running {
        tell_running(&record, boot_ms, context);
    }
    UpOutcome { record, ran_already: false }
}

fn tell_running(record: &Record, boot_ms: Option<u64>, context: &RuntimeContext) {
    let (vm, agent) = (record.name.clone(), record.has_agent());
    context.reporter.report(&Event::VmRunning { vm, agent, boot_ms });
}

/// Brings up a VM that does not run: QEMU's program, base image, warm template, disk, in this order, so that whatever is missing on
/// this machine is an error before any disk is made.
pub(super) fn bring_up(
    plan: &VmPlan,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> Result<Record, VmError> {
    let vm = &plan.definition.name;
    let stopwatch = &Stopwatch::new(vm, &context.reporter);
    stopwatch.begin(Phase::Image);
    let recorded = Record::load(layout, vm)?;
    // Before anything is downloaded: nobody wants to hear afterwards that QEMU is not installed.
    let binary = &QemuBinary::find(&context.environment)?;
    if let BasePlan::Path(path) = &plan.base {
        // Before it is hashed, which takes a while.
        check_own_disk(&plan.definition, path, context)?;
    }
    let mut base = ensure_base(plan, layout, recorded.as_ref(), context)?;
    let limit = options.boot_limit;
    stopwatch.begin(Phase::Accelerator);
    let choice = accelerator(plan, base.image.as_ref(), binary, layout, context)?;
    let warm = match base.image.as_ref().filter(|_| is_warm_wanted(plan, options)) {
        Some(image) => {
            stopwatch.begin(Phase::Template);
            Warming { plan, image, binary, choice: &choice, layout, context, limit }.template()?
        }
        None => None,
    };
    stopwatch.begin(Phase::Overlay);
    let is_native = plan.boot == BootProfile::Native;
    if is_native && base.image.is_some() && !plan.definition.overlay.exists() {
        check_boot_code(vm, &base.disk, context)?;
    }
    if warm.is_none() && !plan.definition.overlay.exists() {
        base = confirm(base, layout, context)?;
    }
    let layer = warm.as_ref().map(|warm| warm.layer.clone());
    let (artifacts, record) = ensure_vm_assets(plan, base, layer, layout, context)?;
    if is_native && !artifacts.is_new {
        check_boot_code(vm, &plan.definition.overlay, context)?;
    }
    let image = artifacts.image.as_ref();
    let request = BootRequest { plan, image, binary, layout, context, options, stopwatch };
    start(&request, record, choice, warm.as_ref().filter(|_| artifacts.is_new))
}

/// A template fits a disk that was never used only, and a guest with an agent. A disk that is there may have been used.
fn is_warm_wanted(plan: &VmPlan, options: UpOptions) -> bool {
    !options.cold && plan.boot == BootProfile::Managed && !plan.definition.overlay.exists()
}

/// A VM that runs already: what its image and its definition say by now is told, and a start that nobody finished, or a
/// guest that was rebooted and has lost its keys, is made ready.
fn go_on(
    plan: &VmPlan,
    record: Record,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> Result<UpOutcome, VmError> {
    if let BasePlan::Image(image) = &plan.base {
        let manager = ImageManager::new(layout);
        if manager.is_cached(image, context) {
            manager.ensure_image(image, context)?;
        }
    }
    if record.boot.as_ref().is_some_and(|boot| !boot.is_of(&plan.definition)) {
        let vm = &plan.definition.name;
        let message = format!(
            "the definition of VM `{vm}` has changed; that takes effect after castra down {vm} and up"
        );
        context.reporter.report(&Event::Warning { message });
    }
    attach(record, layout, context, options)
}

/// Sees to it that commands can run in a VM whose QEMU runs; one that is ready already says so in milliseconds.
///
/// # Errors
/// [`VmError::Frozen`]; [`VmError::NotRunning`] for a machine that a castra loaded and, killed, never let run, whose guest
/// nothing can wait for; those of the wait for the agent. QEMU is left running: another command may still be helped by it.
pub(super) fn attach(
    mut record: Record,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> Result<UpOutcome, VmError> {
    let vm = record.name.clone();
    ensure_not_stopped(&vm, running_qemu(&layout.vm(&vm).pidfile()).as_ref())?;
    if record.progress == Progress::Starting
        && record.boot.as_ref().is_some_and(|boot| boot.start == StartKind::Suspended)
    {
        let record = finish(record, layout, context)?;
        tell_running(&record, None, context);
        return Ok(UpOutcome { record, ran_already: true });
    }
    if record.progress == Progress::Starting && is_stuck(&record, context) {
        return Err(VmError::NotRunning { vm, state: VmState::Starting });
    }
    let_recorded_run(&record, layout, context)?;
    let has_agent = record.has_agent();
    let is_ready = record.progress == Progress::Running;
    let before = record.clone();
    let sockets = record.boot.as_ref().map(BootRecord::socket_paths);
    if let Some(gone) = sockets.filter(SocketsLayout::are_gone) {
        let gone = VmError::sockets_gone(&vm, "look into", &gone);
        if !is_ready {
            return Err(gone);
        }
        let hint = gone.hint().unwrap_or_default();
        context.reporter.report(&Event::Warning { message: format!("{gone}. {hint}") });
    } else if let Some(boot) = before.boot.as_ref().filter(|_| has_agent && options.wait != WaitFor::Nothing)
    {
        let missing = follow(&record, boot, layout, context, options)?;
        record.set_missing_modules(missing, context);
        if is_ready {
            check_network(&record, &context.cancel)?;
        }
    }
    let is_unfinished = has_agent && options.wait == WaitFor::Nothing;
    if !is_ready && !is_unfinished {
        record.progress = Progress::Running;
    }
    if record != before {
        record.save(layout)?;
    }
    tell_running(&record, None, context);
    Ok(UpOutcome { record, ran_already: true })
}

/// Waits for a guest whose QEMU runs, and returns its report about its kernel's modules. Its report about its boot goes to the
/// timeline of that.
fn follow(
    record: &Record,
    boot: &BootRecord,
    layout: &ProjectLayout,
    context: &RuntimeContext,
    options: UpOptions,
) -> Result<Option<MissingModules>, VmError> {
    let (vm, files, disk) = (&record.name, &layout.vm(&record.name), &record.overlay_path(layout));
    let sockets = boot.socket_paths();
    let keys = VmKeys::load_or_create(files)?;
    let kept = of_start(files, boot.started_unix_ms);
    let stopwatch = &Stopwatch::going_on(vm, kept.as_ref(), &context.reporter);
    let was_ready = record.progress == Progress::Running;
    let watch = BootWatch { was_ready, ..BootWatch::of_running(vm, files, disk, boot, context, stopwatch) };
    let watch = BootWatch { wait: options.wait, limit: options.boot_limit, ..watch };
    let is_alive = || running_qemu(&files.pidfile()).is_some();
    let followed = watch.follow(&sockets, &keys, is_alive);
    if let Some(kept) = kept {
        keep_if_new(stopwatch, kept, followed.is_ok(), files);
    }
    followed.map_err(|end| watch.explain(end, None))?;
    Ok(watch.missing_modules.take())
}

/// Whether a castra was killed before the machine that it started ran: a state that nobody loads, or that nobody lets run,
/// stays as it is for good. One that does not answer now is left to the usual wait.
fn is_stuck(record: &Record, context: &RuntimeContext) -> bool {
    let Some(boot) = record.boot.as_ref().filter(|boot| boot.start == StartKind::Template) else {
        return false;
    };
    let sockets = boot.socket_paths();
    MachineStatus::ask(&sockets, &context.cancel) == Some(MachineStatus::Paused)
}

/// Ends a machine that never ran. Its disk was made for a template's memory and not written to, so it boots.
fn end_stuck(record: &Record, layout: &ProjectLayout, context: &RuntimeContext) -> Result<(), VmError> {
    let files = layout.vm(&record.name);
    if let Some(qemu) = running_qemu(&files.pidfile()) {
        qemu.kill()?;
        qemu.wait(ANSWER_LIMIT);
    }
    clean_up(&files, &layout.sockets(&context.runtime_root, &record.name));
    Ok(())
}

fn recover(record: &Record, layout: &ProjectLayout, context: &RuntimeContext) {
    let vm = &record.name;
    let why = crash(record, &layout.vm(vm)).map_or(String::new(), |why| format!(" ({why})"));
    let message = format!("VM `{vm}` had crashed{why}; it boots from its disk as it was left");
    context.reporter.report(&Event::Warning { message });
    clean_up(&layout.vm(vm), &layout.sockets(&context.runtime_root, vm));
}
