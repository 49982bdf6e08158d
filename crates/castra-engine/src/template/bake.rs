//! Makes a template: a boot that ends at rest instead of with a personality, and is then saved.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use castra_wire::{AgentTask, GuestMessage};
use serde_json::json;

use crate::cancel::Cancel;
use crate::command::Lifetime;
use crate::context::RuntimeContext;
use crate::failpoint::{self, Point};
use crate::files;
use crate::guest::{ControlError, ControlPort};
use crate::hex::hex;
use crate::host::{random_bytes, unix_time_ms};
use crate::layout::{CacheLayout, SocketsLayout, TemplateLayout, TemplatesLayout};
use crate::qemu::{
    Boot, Disk, DiskName, Launch, MachineSpec, MachineStatus, Memory, Network, QemuBinary, Qmp,
    QmpError, create_blank_disk, create_overlay, end_of_log, ignore_shared_memory, launch,
    remove_sockets, running_qemu, save_state,
};
use crate::wait::WaitLimit;

use super::error::{TemplateError, file_error};
use super::key::Ingredients;
use super::manifest::{TemplateFile, TemplateManifest};
use super::memory;
use super::shim;
use super::store::{Template, discard};

/// Time limit for an answer on QEMU's machine protocol.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for saving the state of the devices. Some 10 ms are usual.
const SAVE_LIMIT: Duration = Duration::from_secs(60);
/// Time limit for QEMU to exit after `quit`.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Interval at which the wait for the guest looks at its console.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Parameters of a template to be made.
pub struct BakeRequest<'a> {
    /// Ingredients, which determine the key.
    pub ingredients: Ingredients,
    /// Machine, as the VM would run it.
    pub spec: &'a MachineSpec,
    /// Writes the initramfs with the agent, and the kernel if it is the disk's own.
    pub provide_kernel: &'a dyn Fn(&TemplateLayout) -> Result<(), TemplateError>,
    /// Base image.
    pub base_disk: &'a Path,
    /// Path of that disk as seen from the template's directory in a project.
    pub backing_file: &'a Path,
    /// QEMU that runs the guest.
    pub binary: &'a QemuBinary,
    /// Cache in which the template is published. The caller holds its lock there.
    pub cache: &'a CacheLayout,
    /// Environment, directories and the like.
    pub context: &'a RuntimeContext,
    /// Returns `true` while the lock still excludes others: it is removed with the cache.
    pub is_alone: &'a dyn Fn() -> bool,
    /// Network that the guest can reach. Baking needs none, and an isolated VM must be isolated
    /// from its first instruction, which the template runs.
    pub network: Network,
    /// Time limit for the guest to come to rest.
    pub limit: Duration,
    /// Called with each message from the guest.
    pub on_message: &'a dyn Fn(&GuestMessage),
    /// Returns the reason why the guest will never come to rest, from its console and QEMU's log;
    /// `None` if it still may.
    pub has_failed: &'a dyn Fn(&Path, &Path) -> Option<String>,
}

/// Makes a template and publishes it. After a failure, no file and no process is left of it.
///
/// # Errors
/// Any [`TemplateError`].
pub fn bake(request: &BakeRequest<'_>) -> Result<Template, TemplateError> {
    let key = request.ingredients.key();
    let templates = request.cache.templates();
    let random: [u8; 6] = random_bytes().map_err(file_error("read", Path::new("/dev/urandom")))?;
    let attempt = hex(&random);
    let work = templates.work(&key, &attempt);
    let sockets = templates.sockets(&request.context.runtime_root, &attempt);
    clear_leftovers(&templates, &key, Some(&request.context.runtime_root))?;
    let made = make(request, &key, &templates, &work, &sockets);
    remove_sockets(&sockets);
    if made.is_err() {
        clear(&work)?;
    }
    made
}

/// Removes the remains of castras that were killed, including their sockets if the directory of
/// those is known. The caller holds the template's lock.
pub(super) fn clear_leftovers(
    templates: &TemplatesLayout,
    key: &str,
    runtime_root: Option<&Path>,
) -> Result<(), TemplateError> {
    let entries = files::readable_entries(templates.root());
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| TemplatesLayout::key_of_work(name) == Some(key)) {
        clear(&TemplateLayout::new(templates.root().join(&name)))?;
        if let (Some(root), Some(attempt)) = (runtime_root, TemplatesLayout::attempt_of_work(&name))
        {
            remove_sockets(&templates.sockets(root, attempt));
        }
    }
    Ok(())
}

/// Removes an unfinished template, its QEMU first.
pub(super) fn clear(work: &TemplateLayout) -> Result<(), TemplateError> {
    if let Some(qemu) = running_qemu(&work.pidfile()) {
        qemu.kill()?;
        qemu.wait(END_LIMIT);
    }
    match fs::remove_dir_all(work.directory()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(file_error("remove", work.directory())(error))
        }
        _ => Ok(()),
    }
}

fn make(
    request: &BakeRequest<'_>,
    key: &str,
    templates: &TemplatesLayout,
    work: &TemplateLayout,
    sockets: &SocketsLayout,
) -> Result<Template, TemplateError> {
    let (context, disk_bytes) = (request.context, request.ingredients.disk_bytes);
    files::create_private_directory(work.directory())
        .map_err(file_error("create", work.directory()))?;
    (request.provide_kernel)(work)?;
    shim::install(&request.spec.boot, work)?;
    files::create_private(&work.disk()).map_err(file_error("create", &work.disk()))?;
    create_overlay(&work.disk(), request.backing_file, disk_bytes)?;
    for (name, bytes) in &request.ingredients.data_disks {
        let path = work.data_disk(name.as_str());
        files::create_private(&path).map_err(file_error("create", &path))?;
        create_blank_disk(&path, *bytes)?;
    }
    let memory = Memory::Written(work.memory());
    let spec = machine_in(work, request.spec, request.base_disk, memory, request.network)?;
    make_memory_file(&work.memory(), spec.memory_mib)?;
    let started = Instant::now();
    let launch_it = Launch {
        spec: &spec,
        sockets,
        log: &work.qemu_log(),
        incoming: None,
        lifetime: Lifetime::ThisThreads,
        cache: &context.cache,
    };
    let process = launch(request.binary, launch_it, &context.cancel)?;
    for log in [work.console_log(), work.qemu_log()] {
        context.log_watch.watch_file(&log);
    }
    failpoint::reach(Point::BakeBooting);
    let saved = save(request, sockets, work, &spec.name, started).map_err(|error| match error {
        TemplateError::Control(ControlError::Closed) => {
            TemplateError::Died(end_of_log(&work.qemu_log()))
        }
        other => other,
    });
    process.end(if saved.is_ok() { END_LIMIT } else { Duration::ZERO });
    let boot = saved?;
    // While this attempt's directory exists: without it, the sockets of a castra that is killed
    // later could not be found.
    remove_sockets(sockets);
    failpoint::reach(Point::BakeSaved);
    publish(request, key, templates, work, boot)
}

/// Returns the VM's machine with files in this directory instead of the VM's, with a disk there
/// that is based on another one, and without forwarded ports.
pub(super) fn machine_in(
    work: &TemplateLayout,
    spec: &MachineSpec,
    base_disk: &Path,
    memory: Memory,
    network: Network,
) -> Result<MachineSpec, TemplateError> {
    let mut spec = spec.clone();
    spec.memory = memory;
    // Its header names the base as seen from a project.
    spec.disk = Disk::open(base_disk)?.under(work.disk());
    for disk in &mut spec.data_disks {
        disk.path = work.data_disk(disk.name.as_str());
    }
    spec.forwards = Vec::new();
    spec.network = network;
    spec.pidfile = work.pidfile();
    spec.console_log = work.console_log();
    if let Boot::Kernel { kernel, initramfs, .. } = &mut spec.boot {
        *initramfs = work.initramfs();
        if work.kernel().exists() {
            *kernel = work.kernel();
        }
    }
    Ok(spec)
}

/// Creates the file of the memory with its full length, as a single hole. Its mode stays writable
/// for its owner: QEMU 7.2 opens the file for writing even if it maps it privately.
fn make_memory_file(path: &Path, size_mib: u64) -> Result<(), TemplateError> {
    let failed = file_error("create", path);
    let file = files::create_private(path).map_err(&failed)?;
    file.set_len(size_mib << 20).map_err(&failed)
}

/// Waits until the guest is at rest, stops it and saves its devices. Returns the duration of the
/// boot.
fn save(
    request: &BakeRequest<'_>,
    sockets: &SocketsLayout,
    work: &TemplateLayout,
    vm: &str,
    started: Instant,
) -> Result<Duration, TemplateError> {
    let cancel = &request.context.cancel;
    let mut qmp = connect(sockets, cancel)?;
    // Before the boot: a QEMU that cannot do this fails at once.
    ignore_shared_memory(&mut qmp).map_err(unsupported)?;
    drop(qmp);
    // Connected until the end: a guest whose host leaves has work to do, and each VM of the
    // template would begin with that.
    let _control = bring_to_rest(request, sockets, work, started)?;
    let boot = started.elapsed();
    failpoint::reach(Point::BakeAtRest);
    let mut qmp = connect(sockets, cancel)?;
    qmp.execute("stop", json!({})).map_err(unsupported)?;
    let path = work.device_state();
    let file = files::create_private(&path).map_err(file_error("create", &path))?;
    save_state(vm, &mut qmp, &file, &WaitLimit::new(SAVE_LIMIT, cancel))?;
    // QEMU writes the rest of its disk cache when it exits.
    qmp.quit().map_err(unsupported)?;
    Ok(boot)
}

fn connect(sockets: &SocketsLayout, cancel: &Cancel) -> Result<Qmp, TemplateError> {
    Qmp::connect(&sockets.qmp(), WaitLimit::new(ANSWER_LIMIT, cancel)).map_err(unsupported)
}

/// Converts a refusal, which shows what QEMU cannot do; silence may have other reasons.
fn unsupported(error: QmpError) -> TemplateError {
    match error {
        QmpError::Refused { .. } => TemplateError::Unsupported(error),
        QmpError::Interrupted(interrupted) => interrupted.into(),
        other => TemplateError::NotResponding(other),
    }
}

/// Waits until the guest is at rest. Returns the connection over which it has said so.
fn bring_to_rest(
    request: &BakeRequest<'_>,
    sockets: &SocketsLayout,
    work: &TemplateLayout,
    started: Instant,
) -> Result<ControlPort, TemplateError> {
    let deadline = started + request.limit;
    let mut port = ControlPort::connect(&sockets.control(), deadline, &request.context.cancel)?;
    port.attach()?;
    port.settle()?;
    loop {
        let message = match port.next(deadline.min(Instant::now() + LOOK_EVERY)) {
            Err(ControlError::ReadTimeout)
                if MachineStatus::glance(sockets) == Some(MachineStatus::DiskFull) =>
            {
                return Err(TemplateError::DiskFull { directory: work.directory().to_owned() });
            }
            Err(ControlError::ReadTimeout) if Instant::now() < deadline => {
                match (request.has_failed)(&work.console_log(), &work.qemu_log()) {
                    Some(cause) => return Err(TemplateError::BootFailed { cause }),
                    None => continue,
                }
            }
            Err(ControlError::ReadTimeout) => {
                return Err(TemplateError::SettleTimeout { limit_secs: request.limit.as_secs() });
            }
            other => other?,
        };
        (request.on_message)(&message);
        match message {
            GuestMessage::Settled => return Ok(port),
            // A disk that did not grow would stay small in every VM; the network may still come up.
            GuestMessage::Failed { task, reason } if task != AgentTask::Network => {
                return Err(TemplateError::Guest {
                    task: format!("{task:?}").to_lowercase(),
                    reason,
                });
            }
            _ => {}
        }
    }
}

/// Publishes the template: first the files, each synced; then the directory under its name; the
/// manifest last.
fn publish(
    request: &BakeRequest<'_>,
    key: &str,
    templates: &TemplatesLayout,
    work: &TemplateLayout,
    boot: Duration,
) -> Result<Template, TemplateError> {
    let cancel = &request.context.cancel;
    let blank = |(name, _): &(DiskName, u64)| work.data_disk(name.as_str());
    let blanks = request.ingredients.data_disks.iter().map(blank);
    for path in [work.pidfile(), work.console_log(), work.qemu_log()].into_iter().chain(blanks) {
        // Needed only while the template was made.
        let _ = fs::remove_file(path);
    }
    let kernel = Some(work.kernel()).filter(|kernel| kernel.exists());
    for path in [work.disk(), work.device_state(), work.initramfs()].iter().chain(&kernel) {
        make_final(path, 0o444)?;
    }
    make_final(&work.memory(), 0o600)?;
    let whole = |path: PathBuf| {
        let sha256 = files::sha256(&path, cancel)?;
        TemplateFile::new(&path, sha256).map_err(file_error("look at", &path))
    };
    let memory_sha256 =
        memory::digest(&work.memory(), cancel).map_err(file_error("read", &work.memory()))?;
    let manifest = TemplateManifest {
        key: key.to_owned(),
        ingredients: request.ingredients.clone(),
        castra_version: env!("CARGO_PKG_VERSION").to_owned(),
        made_unix_ms: unix_time_ms(),
        boot_ms: u64::try_from(boot.as_millis()).unwrap_or(u64::MAX),
        disk: whole(work.disk())?,
        memory: TemplateFile::new(&work.memory(), memory_sha256)
            .map_err(file_error("look at", &work.memory()))?,
        device_state: whole(work.device_state())?,
        initramfs: whole(work.initramfs())?,
        kernel: kernel.map(whole).transpose()?,
    };
    if !(request.is_alone)() {
        return Err(TemplateError::Disturbed);
    }
    discard(templates, key)?;
    let published = templates.template(key);
    fs::rename(work.directory(), published.directory())
        .map_err(file_error("put in place", published.directory()))?;
    failpoint::reach(Point::BakePublished);
    let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    files::write_atomically(&published.manifest(), &text, 0o444)
        .map_err(file_error("write", &published.manifest()))?;
    sync(templates.root())?;
    match Template::open(templates, key) {
        Ok(Some(template)) => Ok(template),
        Ok(None) | Err(_) => {
            Err(file_error("find", published.directory())(io::ErrorKind::NotFound.into()))
        }
    }
}

pub(super) fn make_final(path: &Path, mode: u32) -> Result<(), TemplateError> {
    let finished = File::open(path).and_then(|file| {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    });
    finished.map_err(file_error("write", path))
}

pub(super) fn sync(directory: &Path) -> Result<(), TemplateError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(file_error("write", directory))
}
