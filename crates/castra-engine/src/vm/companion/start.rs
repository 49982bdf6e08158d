//! Starting a VM's companion.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use crate::command::{Invocation, Lifetime, find_program, spawn_detached};
use crate::context::{Environment, RuntimeContext};
use crate::guest::{Companion, StreamPorts};
use crate::layout::SocketsLayout;
use crate::vm::error::CompanionError;
use crate::vm::record::BootRecord;

/// Time for a companion to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Interval of attempts to connect to it.
const POLL: Duration = Duration::from_millis(2);

/// Name of castra's program, for a library without one of its own.
const PROGRAM: &str = "castra";

/// Command of it that is a companion.
const COMMAND: &str = "companion";

/// A companion that starts.
pub(in crate::vm) struct StartingCompanion<'a> {
    vm: &'a str,
    boot: &'a BootRecord,
    context: &'a RuntimeContext,
    started: Result<Option<Child>, io::Error>,
}

/// Starts the companion of a running VM, if it has none, without waiting for it.
pub(in crate::vm) fn start_companion<'a>(
    vm: &'a str,
    boot: &'a BootRecord,
    context: &'a RuntimeContext,
    lifetime: Lifetime,
) -> StartingCompanion<'a> {
    StartingCompanion { vm, boot, context, started: start_process(boot, context, lifetime) }
}

impl StartingCompanion<'_> {
    /// Waits for the companion.
    ///
    /// # Errors
    /// The companion could not be started, or does not listen.
    pub(in crate::vm) fn connect(self) -> Result<Companion, CompanionError> {
        let mut child = self
            .started
            .map_err(|error| CompanionError::new(self.vm, "cannot be started", error))?;
        let connected = await_socket(&self.boot.socket_paths(), child.as_mut(), self.context);
        if let Some(mut child) = child {
            // It ends with QEMU, perhaps long before this process.
            thread::spawn(move || drop(child.wait()));
        }
        connected.map_err(|error| CompanionError::new(self.vm, "did not start", error))
    }
}

/// Starts the VM's companion if there is none.
fn start_process(
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

/// Returns the program of companions: this one, if it is castra.
fn program(context: &RuntimeContext) -> Option<PathBuf> {
    let own = context.companion.clone();
    own.filter(|program| fs::metadata(program).is_ok())
        .or_else(|| find_program(&context.environment, PROGRAM))
}
