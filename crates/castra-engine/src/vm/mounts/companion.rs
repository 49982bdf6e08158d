//! Starting a VM's companion, and giving it the mounts.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use crate::command::{Invocation, Lifetime, find_program, spawn_detached};
use crate::context::{Environment, RuntimeContext};
use crate::guest::{Companion, Mount, StreamPorts};
use crate::layout::SocketsLayout;
use crate::vm::error::MountError;
use crate::vm::project::ProjectRef;
use crate::vm::record::BootRecord;

use super::{NATIVE, check_recorded, own};

/// Time for a companion to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Interval of attempts to connect to it.
const POLL: Duration = Duration::from_millis(2);

/// Name of castra's program, for a library without one of its own.
const PROGRAM: &str = "castra";

/// Command of it that serves mounts.
const COMMAND: &str = "companion";

/// Mounts of a VM that are being made, by a companion that starts.
pub(in crate::vm) struct Attachment<'a> {
    vm: &'a str,
    boot: &'a BootRecord,
    project: ProjectRef<'a>,
    lifetime: Lifetime,
    started: Result<Option<Child>, io::Error>,
}

/// Starts the companion of a running VM, if it has none, without waiting for it.
pub(in crate::vm) fn attach<'a>(
    vm: &'a str,
    boot: &'a BootRecord,
    project: ProjectRef<'a>,
    lifetime: Lifetime,
) -> Attachment<'a> {
    Attachment { vm, boot, project, lifetime, started: start(boot, project.context, lifetime) }
}

impl Attachment<'_> {
    /// Mounts the directories of the record, and waits until they are mounted or cannot be. Returns
    /// the reasons why some are not.
    pub(in crate::vm) fn finish(self) -> Vec<MountError> {
        let (vm, mounts, project) = (self.vm, &self.boot.mounts, self.project);
        let lifetime = self.lifetime;
        match self.connect() {
            Ok(mut companion) => {
                // A record may have been written by another program.
                let mut mount_one = |mount| {
                    if lifetime == Lifetime::Own {
                        check_recorded(vm, mount, project)?;
                    }
                    mount_by(vm, &mut companion, mount, project)
                };
                mounts.iter().filter_map(|mount| mount_one(mount).err()).collect()
            }
            Err(error) => vec![error],
        }
    }

    /// Waits for the companion.
    fn connect(self) -> Result<Companion, MountError> {
        let failed = |what, source| MountError::Companion { vm: self.vm.to_owned(), what, source };
        let mut child = self.started.map_err(|source| failed("cannot be started", source))?;
        let connected =
            await_socket(&self.boot.socket_paths(), child.as_mut(), self.project.context);
        if let Some(mut child) = child {
            // It ends with QEMU, perhaps long before this process.
            thread::spawn(move || drop(child.wait()));
        }
        connected.map_err(|source| failed("did not start", source))
    }
}

/// Mounts a directory in a running VM.
pub(in crate::vm) fn mount_now(
    vm: &str,
    boot: &BootRecord,
    mount: &Mount,
    project: ProjectRef<'_>,
) -> Result<(), MountError> {
    if !boot.has_agent() {
        return Err(MountError::Unsupported { vm: vm.to_owned(), reason: NATIVE });
    }
    let mut companion = attach(vm, boot, project, Lifetime::Own).connect()?;
    mount_by(vm, &mut companion, mount, project)
}

/// Unmounts a directory in a running VM.
pub(in crate::vm) fn unmount_now(
    vm: &str,
    boot: &BootRecord,
    guest: &str,
) -> Result<(), MountError> {
    let connected = Companion::connect(&boot.socket_paths());
    let answer = connected.and_then(|mut companion| companion.unmount(guest));
    outcome(vm, "unmounted", guest, answer)
}

fn mount_by(
    vm: &str,
    companion: &mut Companion,
    mount: &Mount,
    project: ProjectRef<'_>,
) -> Result<(), MountError> {
    let answer = companion.mount(mount, own::directories(project));
    outcome(vm, "mounted", &mount.guest, answer)
}

/// Returns what a companion's answer means.
fn outcome(
    vm: &str,
    action: &'static str,
    guest: &str,
    answer: io::Result<Result<(), String>>,
) -> Result<(), MountError> {
    let (vm, guest) = (vm.to_owned(), guest.to_owned());
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(reason)) => Err(MountError::Refused { vm, action, guest, reason }),
        Err(source) => Err(MountError::Companion { vm, what: "does not answer", source }),
    }
}

/// Starts the VM's companion if there is none.
fn start(
    boot: &BootRecord,
    context: &RuntimeContext,
    lifetime: Lifetime,
) -> io::Result<Option<Child>> {
    if Companion::connect(&boot.socket_paths()).is_ok() {
        return Ok(None);
    }
    let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, what.to_owned());
    let ports = boot.stream_ports().filter(|_| boot.has_agent());
    let ports = ports.ok_or_else(|| missing("the VM has no stream ports"))?;
    let program = program(context).ok_or_else(|| missing("the program castra is not installed"))?;
    let log = OpenOptions::new().write(true).open("/dev/null")?;
    let started = spawn_detached(&invocation(program, &ports), log, &[], lifetime);
    started.map(Some).map_err(io::Error::other)
}

fn await_socket(
    sockets: &SocketsLayout,
    mut child: Option<&mut Child>,
    context: &RuntimeContext,
) -> io::Result<Companion> {
    let end = Instant::now() + START_LIMIT;
    loop {
        match Companion::connect(sockets) {
            Ok(companion) => return Ok(companion),
            Err(error) if Instant::now() > end => return Err(error),
            Err(error) => {
                let ended = child.as_mut().and_then(|child| child.try_wait().ok().flatten());
                // One that finds another one at work ends at once, without an error.
                if context.cancel.is_cancelled() || ended.is_some_and(|status| !status.success()) {
                    return Err(error);
                }
                thread::sleep(POLL);
            }
        }
    }
}

fn invocation(program: PathBuf, ports: &StreamPorts) -> Invocation {
    Invocation::new(program)
        .environment(Environment::default())
        .arg(COMMAND)
        .arg(ports.sockets.directory())
        .arg(ports.count.to_string())
}

/// Returns the program that serves mounts: this one, if it is castra.
fn program(context: &RuntimeContext) -> Option<PathBuf> {
    let own = context.companion.clone();
    own.filter(|program| fs::metadata(program).is_ok())
        .or_else(|| find_program(&context.environment, PROGRAM))
}
