//! A running VM's companion, and everything that it does for the VM by its record.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::command::Lifetime;
use crate::context::RuntimeContext;
use crate::guest::{
    Companion, LiveForward, LiveOrigin, LivePort, LivePorts, LiveState, Mount, MountState,
};

use super::companion::{StartingCompanion, start_companion};
use super::error::{CompanionError, VmError, warn};
use super::live_ports;
use super::mounts;
use super::project::ProjectRef;
use super::record::{BootRecord, Record};

/// Time for a companion's answer, for `status`.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// Time for a guest that has just rebooted to have its mounts again. One that is still booting is
/// waited for later.
const SETTLE_LIMIT: Duration = Duration::from_secs(3);

/// Interval of looks at them.
const SETTLE_POLL: Duration = Duration::from_millis(20);

/// Time for it before the companion is replaced.
const PATIENCE: Duration = Duration::from_secs(4);

/// Companion of a VM that starts, and will do for the VM what its record says.
pub(super) struct Attachment<'a> {
    vm: &'a str,
    boot: &'a BootRecord,
    project: ProjectRef<'a>,
    lifetime: Lifetime,
    starting: StartingCompanion<'a>,
}

/// Starts the companion of a running VM if it needs one and has none, without waiting for it.
pub(super) fn attach<'a>(
    vm: &'a str,
    boot: &'a BootRecord,
    project: ProjectRef<'a>,
    lifetime: Lifetime,
) -> Option<Attachment<'a>> {
    boot.needs_companion().then(|| {
        let starting = start_companion(vm, boot, project.context, lifetime);
        Attachment { vm, boot, project, lifetime, starting }
    })
}

impl Attachment<'_> {
    /// Gives the companion its work, and waits until everything is done or cannot be. Returns the
    /// reasons why something is not.
    pub(super) fn finish(self) -> Vec<VmError> {
        let Self { vm, boot, project, lifetime, starting } = self;
        match starting.connect() {
            Ok(mut companion) => {
                // The guest is not needed for these.
                let mut errors = live_ports::forward_recorded(vm, boot, &mut companion);
                errors.extend(mounts::mount_recorded(vm, boot, &mut companion, project, lifetime));
                live_ports::announce(vm, boot, project.context);
                errors
            }
            Err(error) => vec![error.into()],
        }
    }

    /// Does as [`Self::finish`]. What is not done is a warning.
    pub(super) fn finish_or_warn(self) {
        let context = self.project.context;
        for error in self.finish() {
            warn(&error, context);
        }
    }
}

/// Ensures that a VM in which commands can run has its companion, which may have been killed. What
/// that cannot do is a warning.
pub(super) fn ensure(record: &Record, project: ProjectRef<'_>) {
    let Some(boot) = needing(record) else { return };
    let is_waiting = |(_, state): &(Mount, MountState)| *state == MountState::Waiting;
    let end = Instant::now() + SETTLE_LIMIT;
    loop {
        let Ok(mut companion) = Companion::connect(&boot.socket_paths()) else {
            return start(&record.name, boot, project);
        };
        match companion.list(LOOK_LIMIT) {
            Ok(known) if known.iter().any(is_waiting) => {}
            // It was killed a moment ago, and its socket is not closed yet.
            Err(error) if has_hung_up(&error) => {}
            _ => break,
        }
        if Instant::now() > end {
            break;
        }
        sleep(SETTLE_POLL);
    }
    live_ports::announce(&record.name, boot, project.context);
}

fn has_hung_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Ensures that a VM in which commands can run has everything that its companion does for it: what
/// has failed is tried again, and a companion that does not answer is replaced. What fails is a
/// warning.
pub(super) fn restore(record: &Record, project: ProjectRef<'_>) {
    let Some(boot) = needing(record) else { return };
    if let Ok(mut companion) = Companion::connect(&boot.socket_paths()) {
        match companion.list(PATIENCE) {
            Ok(known)
                if boot.mounts.iter().all(|mount| is_mounted(mount, &known))
                    && are_forwarded(boot, &mut companion) =>
            {
                return live_ports::announce(&record.name, boot, project.context);
            }
            Ok(_) => {}
            Err(_) => companion.kill(),
        }
    }
    start(&record.name, boot, project);
}

fn needing(record: &Record) -> Option<&BootRecord> {
    record.boot.as_ref().filter(|boot| boot.needs_companion())
}

fn start(vm: &str, boot: &BootRecord, project: ProjectRef<'_>) {
    attach(vm, boot, project, Lifetime::Own).into_iter().for_each(Attachment::finish_or_warn);
}

fn is_mounted(mount: &Mount, known: &[(Mount, MountState)]) -> bool {
    known.iter().any(|(other, state)| other == mount && state.is_mounted())
}

fn are_forwarded(boot: &BootRecord, companion: &mut Companion) -> bool {
    let is_open = |known: &[LivePort], forward| {
        let found = known.iter().find(|port| port.forward == forward);
        found.is_some_and(|port| port.state == LiveState::Open)
    };
    let known = companion.ports(false, PATIENCE);
    known.is_ok_and(|known| boot.added_forwards.iter().all(|added| is_open(&known.ports, *added)))
}

/// A live port of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedPort {
    /// The forward.
    pub forward: LiveForward,
    /// Origin of the forward.
    pub origin: LiveOrigin,
    /// State of the forward, if the companion reports it.
    pub state: Option<LiveState>,
}

/// State of what a companion does for a VM.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// Mounts, with their states if the companion says.
    pub(super) mounts: Vec<(Mount, Option<MountState>)>,
    /// Live ports.
    pub(super) ports: Vec<ObservedPort>,
    /// Reason why something that listens in the guest is not forwarded.
    pub(super) port_trouble: Option<String>,
    /// Pid of the companion, if there is one.
    pub(super) pid: Option<i32>,
}

/// Returns the state of what a VM's companion does for it by the record of its boot.
pub(super) fn observe(boot: &BootRecord) -> Observed {
    if !boot.needs_companion() {
        return Observed::default();
    }
    let mut companion = Companion::connect(&boot.socket_paths()).ok();
    let mounted = match companion.as_mut().map(|companion| companion.list(LOOK_LIMIT)) {
        Some(Ok(mounted)) => mounted,
        // It was killed a moment ago, and its socket was not closed yet.
        Some(Err(error)) if has_hung_up(&error) => {
            companion = None;
            Vec::new()
        }
        Some(Err(_)) | None => Vec::new(),
    };
    let pid = companion.as_ref().and_then(Companion::pid).map(|pid| pid.as_raw_nonzero().get());
    let mount = |mount: &Mount| {
        let found = mounted.iter().find(|(other, _)| other == mount);
        (mount.clone(), found.map(|(_, state)| state.clone()))
    };
    let known = companion.as_mut().and_then(|companion| companion.ports(false, LOOK_LIMIT).ok());
    let LivePorts { ports: known, trouble } = known.unwrap_or_default();
    let added = |forward: &LiveForward| {
        let found = known.iter().find(|port| port.forward == *forward);
        let (forward, origin) = (*forward, LiveOrigin::Added);
        ObservedPort { forward, origin, state: found.map(|port| port.state.clone()) }
    };
    let auto = known.iter().filter(|port| port.origin == LiveOrigin::Auto).map(|port| {
        let (forward, origin) = (port.forward, port.origin);
        ObservedPort { forward, origin, state: Some(port.state.clone()) }
    });
    Observed {
        mounts: boot.mounts.iter().map(mount).collect(),
        ports: boot.added_forwards.iter().map(added).chain(auto).collect(),
        port_trouble: trouble,
        pid,
    }
}

/// Has the guest's requests wait until the returned connection is dropped, since its machine is to
/// be saved. A companion that does not answer is ended: requests that it has not answered fail.
pub(super) fn drain(vm: &str, boot: &BootRecord, context: &RuntimeContext) -> Option<Companion> {
    if boot.mounts.is_empty() {
        return None;
    }
    let mut companion = Companion::connect(&boot.socket_paths()).ok()?;
    match companion.drain() {
        Ok(_) => Some(companion),
        Err(source) => {
            companion.kill();
            let what = "has not answered and is ended: what programs have open there is stale";
            warn(&CompanionError::new(vm, what, source), context);
            None
        }
    }
}
