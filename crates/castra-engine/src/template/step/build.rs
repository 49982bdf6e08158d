//! Makes a layer: a machine boots on the disk below, a step runs in it, it shuts down, and what it
//! has written is published.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cancel::Cancel;
use crate::command::Lifetime;
use crate::context::RuntimeContext;
use crate::failpoint::{self, Point};
use crate::files::{self, Lock};
use crate::hex::hex;
use crate::host::{millis, random_bytes, unix_time_ms};
use crate::layout::{CacheLayout, SocketsLayout, TemplateLayout};
use crate::qemu::{
    Disk, Launch, MachineSpec, Memory, QemuBinary, QemuProcess, Qmp, QmpError, create_overlay,
    launch, remove_sockets,
};
use crate::wait::WaitLimit;

use super::super::bake::{clear, clear_leftovers, machine_in, make_final, sync};
use super::super::error::{TemplateError, file_error};
use super::super::manifest::TemplateFile;
use super::manifest::{StepIngredients, StepManifest};
use super::store::{StepLayer, discard_step, remove_unfinished};

/// Time limit for QEMU to exit once its guest has shut down.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Time limit for QEMU to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Parameters of a layer to be made.
pub struct StepRequest<'a> {
    /// Ingredients, which determine the key.
    pub ingredients: StepIngredients,
    /// Number of the step, from 1.
    pub number: u64,
    /// The step as one short line.
    pub text: String,
    /// Machine, as the VM would run it, with the network of the step.
    pub spec: &'a MachineSpec,
    /// Writes the initramfs with the agent, and the kernel if it is the disk's own.
    pub provide_kernel: &'a dyn Fn(&TemplateLayout) -> Result<(), TemplateError>,
    /// Disk below.
    pub foundation: &'a Path,
    /// Path of that disk as seen from the layer's directory in a project.
    pub backing_file: &'a Path,
    /// QEMU that runs the guest.
    pub binary: &'a QemuBinary,
    /// Cache in which the layer is published. The caller holds its lock there.
    pub cache: &'a CacheLayout,
    /// Environment, directories and the like.
    pub context: &'a RuntimeContext,
    /// Returns `true` while the lock still excludes others: it is removed with the cache.
    pub is_alone: &'a dyn Fn() -> bool,
}

/// A machine in which a step is to run.
pub struct StepMachine<'a> {
    /// QEMU that runs it.
    pub process: &'a mut QemuProcess,
    /// Sockets of the machine.
    pub sockets: &'a SocketsLayout,
    /// Files of the machine.
    pub files: &'a TemplateLayout,
    /// Disk of the machine, with all that is below it.
    pub disk: &'a Disk,
    /// Time of its start.
    pub started: Instant,
}

/// Makes a layer and publishes it. `drive` runs the step, and returns once the guest has shut
/// down. After a failure, no file and no process is left of it.
///
/// # Errors
/// Those of `drive`, and any [`TemplateError`].
pub fn make_step<E: From<TemplateError>>(
    request: &StepRequest<'_>,
    drive: impl FnOnce(StepMachine<'_>) -> Result<(), E>,
) -> Result<StepLayer, E> {
    let key = request.ingredients.key();
    let attempt = Attempt::new(request, &key)?;
    let made = attempt.make(request, &key, drive);
    attempt.end(made.is_err())?;
    made
}

/// Runs the machine of a step as long as `drive` does, and discards what it has written.
///
/// # Errors
/// Those of `drive`, and any [`TemplateError`].
pub fn try_step<T, E: From<TemplateError>>(
    request: &StepRequest<'_>,
    drive: impl FnOnce(StepMachine<'_>) -> Result<T, E>,
) -> Result<T, E> {
    // Of its own: the layer may be in the making, in another machine.
    let random: Result<[u8; 16], _> = random_bytes();
    let key = hex(&random.map_err(file_error("read", Path::new("/dev/urandom")))?);
    let runtime_root = &request.context.runtime_root;
    remove_unfinished(request.cache, &request.cache.steps(), runtime_root)?;
    let path = request.cache.step_lock(&key);
    let lock = Lock::acquire(&path, &request.context.cancel, || ()).map_err(TemplateError::from)?;
    let attempt = Attempt::new(request, &key)?;
    let tried = attempt.run(request, Duration::ZERO, drive);
    attempt.end(true)?;
    // Of no use to any other, and one more with each machine.
    let _ = fs::remove_file(&path);
    drop(lock);
    tried
}

/// Files and sockets of a machine.
struct Attempt {
    work: TemplateLayout,
    sockets: SocketsLayout,
}

impl Attempt {
    /// Names those of a new machine. What a killed one has left under the same key is removed.
    fn new(request: &StepRequest<'_>, key: &str) -> Result<Self, TemplateError> {
        let steps = request.cache.steps();
        let random: Result<[u8; 6], _> = random_bytes();
        let attempt = hex(&random.map_err(file_error("read", Path::new("/dev/urandom")))?);
        let runtime_root = &request.context.runtime_root;
        clear_leftovers(&steps, key, Some(runtime_root))?;
        let (work, sockets) = (steps.work(key, &attempt), steps.sockets(runtime_root, &attempt));
        Ok(Self { work, sockets })
    }

    /// Runs the machine. It has `end_limit` to end by itself, once `drive` has succeeded.
    fn run<T, E: From<TemplateError>>(
        &self,
        request: &StepRequest<'_>,
        end_limit: Duration,
        drive: impl FnOnce(StepMachine<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let started = Instant::now();
        let (work, sockets) = (&self.work, &self.sockets);
        let (mut process, disk) = start(request, work, sockets)?;
        failpoint::reach(Point::StepBooting);
        let machine =
            StepMachine { process: &mut process, sockets, files: work, disk: &disk, started };
        let driven = drive(machine);
        process.end(if driven.is_ok() { end_limit } else { Duration::ZERO });
        driven
    }

    fn make<E: From<TemplateError>>(
        &self,
        request: &StepRequest<'_>,
        key: &str,
        drive: impl FnOnce(StepMachine<'_>) -> Result<(), E>,
    ) -> Result<StepLayer, E> {
        let started = Instant::now();
        self.run(request, END_LIMIT, drive)?;
        // While this attempt's directory exists: without it, the sockets of a castra that is killed
        // later could not be found.
        remove_sockets(&self.sockets);
        failpoint::reach(Point::StepEnded);
        Ok(publish(request, key, &self.work, started.elapsed())?)
    }

    /// Removes the sockets, and what is left of the files if nothing is to stay.
    fn end(&self, is_discarded: bool) -> Result<(), TemplateError> {
        remove_sockets(&self.sockets);
        if is_discarded { clear(&self.work) } else { Ok(()) }
    }
}

fn start(
    request: &StepRequest<'_>,
    work: &TemplateLayout,
    sockets: &SocketsLayout,
) -> Result<(QemuProcess, Disk), TemplateError> {
    files::create_private_directory(work.directory())
        .map_err(file_error("create", work.directory()))?;
    (request.provide_kernel)(work)?;
    files::create_private(&work.disk()).map_err(file_error("create", &work.disk()))?;
    create_overlay(&work.disk(), request.backing_file, request.ingredients.disk_bytes)?;
    let network = request.spec.network;
    let spec = machine_in(work, request.spec, request.foundation, Memory::Own, network)?;
    let launch_it = Launch {
        spec: &spec,
        sockets,
        log: &work.qemu_log(),
        incoming: None,
        lifetime: Lifetime::ThisThreads,
        cache: &request.context.cache,
    };
    let process = launch(request.binary, launch_it, &request.context.cancel)?;
    for log in [work.console_log(), work.qemu_log()] {
        request.context.log_watch.watch_file(&log);
    }
    if let Err(error) = end_at_reboot(sockets, &request.context.cancel) {
        process.kill();
        request.context.cancel.check()?;
        return Err(TemplateError::NotResponding(error));
    }
    Ok((process, spec.disk))
}

/// Has QEMU end when the guest reboots: the agent of another boot knows nothing of the step.
fn end_at_reboot(sockets: &SocketsLayout, cancel: &Cancel) -> Result<(), QmpError> {
    let mut qmp = Qmp::connect(&sockets.qmp(), WaitLimit::new(ANSWER_LIMIT, cancel))?;
    qmp.execute("set-action", json!({ "reboot": "shutdown" })).map(drop)
}

/// Publishes the layer: first the file, synced; then the directory under its name; the manifest
/// last.
fn publish(
    request: &StepRequest<'_>,
    key: &str,
    work: &TemplateLayout,
    took: Duration,
) -> Result<StepLayer, TemplateError> {
    for path in
        [work.pidfile(), work.console_log(), work.qemu_log(), work.initramfs(), work.kernel()]
    {
        // Needed only while the layer was made.
        let _ = fs::remove_file(path);
    }
    make_final(&work.disk(), 0o444)?;
    let sha256 = files::sha256(&work.disk(), &request.context.cancel)?;
    let disk =
        TemplateFile::new(&work.disk(), sha256).map_err(file_error("look at", &work.disk()))?;
    let manifest = StepManifest {
        key: key.to_owned(),
        ingredients: request.ingredients.clone(),
        number: request.number,
        text: request.text.clone(),
        castra_version: env!("CARGO_PKG_VERSION").to_owned(),
        made_unix_ms: unix_time_ms(),
        took_ms: millis(took),
        disk,
    };
    if !(request.is_alone)() {
        return Err(TemplateError::Disturbed);
    }
    let steps = request.cache.steps();
    discard_step(&steps, key)?;
    let layout = steps.template(key);
    fs::rename(work.directory(), layout.directory())
        .map_err(file_error("put in place", layout.directory()))?;
    failpoint::reach(Point::StepPublished);
    let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    files::write_atomically(&layout.step_manifest(), &text, 0o444)
        .map_err(file_error("write", &layout.step_manifest()))?;
    sync(steps.root())?;
    Ok(StepLayer { layout, manifest })
}
