//! Live forwards of a VM, as its companion opens them: those of its record, and those of whatever
//! listens in the guest.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use crate::command::Lifetime;
use crate::config::PortForward;
use crate::context::RuntimeContext;
use crate::guest::{
    AutoPlan, Companion, LiveForward, LiveOrigin, LivePort, LivePorts, LiveState, PortPlan,
    SSH_PORT,
};
use crate::report::{Event, Reporter};
use crate::sockets::Protocol;

use super::companion::start_companion;
use super::error::{CompanionError, PortError, VmError};
use super::ports;
use super::project::ProjectRef;
use super::record::BootRecord;

/// Time for a companion's answer.
const LIMIT: Duration = Duration::from_secs(1);

/// Interval of looks at the forwards of a throwaway VM.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Returns the open forwards of what listens in a guest.
pub(super) fn found_forwards(boot: &BootRecord) -> Vec<LiveForward> {
    if boot.auto_forwards.is_none() {
        return Vec::new();
    }
    let companion = Companion::connect(&boot.socket_paths());
    let known = companion.and_then(|mut companion| companion.ports(false, LIMIT));
    let ports = known.unwrap_or_default().ports.into_iter();
    ports.filter(|port| port.origin == LiveOrigin::Auto).map(|port| port.forward).collect()
}

/// Keeps the forwards of what listens in a guest that is to be suspended: it gets the same ports
/// again if they are free.
pub(super) fn remember(boot: &mut BootRecord) {
    let found = found_forwards(boot);
    if let Some(auto) = boot.auto_forwards.as_mut().filter(|_| !found.is_empty()) {
        auto.last = found;
    }
}

/// Announces forwards that have opened by themselves, each once.
pub(super) fn announce(vm: &str, boot: &BootRecord, context: &RuntimeContext) {
    if boot.auto_forwards.is_none() {
        return;
    }
    // Without a companion, nothing is forwarded.
    if let Ok(mut companion) = Companion::connect(&boot.socket_paths()) {
        let _ = announce_by(vm, &mut companion, &*context.reporter);
    }
}

fn announce_by(vm: &str, companion: &mut Companion, reporter: &dyn Reporter) -> io::Result<()> {
    for port in companion.ports(true, LIMIT)?.ports.into_iter().filter(|port| port.is_new) {
        let LiveForward { host, guest } = port.forward;
        reporter.report(&Event::PortForwarded { vm: vm.to_owned(), host, guest });
    }
    Ok(())
}

/// Announces the forwards of a throwaway VM as they open, until the returned channel is
/// dropped or the companion has ended. `None` if the VM has no such forwards.
pub(super) fn watch(vm: &str, boot: &BootRecord, context: &RuntimeContext) -> Option<Sender<()>> {
    boot.auto_forwards.as_ref()?;
    // Keeps working once the socket is removed.
    let mut companion = Companion::connect(&boot.socket_paths()).ok()?;
    let (end, is_over) = channel();
    let (vm, reporter) = (vm.to_owned(), Arc::clone(&context.reporter));
    let watch = move || {
        while is_over.recv_timeout(WATCH_INTERVAL) == Err(RecvTimeoutError::Timeout)
            && announce_by(&vm, &mut companion, &*reporter).is_ok()
        {}
    };
    // Without a thread, the ports are open all the same.
    thread::Builder::new().name("port-watch".to_owned()).spawn(watch).ok()?;
    Some(end)
}

/// Returns what a VM's companion shall forward.
fn plan_of(boot: &BootRecord) -> PortPlan {
    let auto = boot.auto_forwards.as_ref().map(|auto| {
        let own = [ports::SYSTEM_SSH_PORT, SSH_PORT];
        let relays = ports::relays(&boot.port_forwards);
        let is_tcp = |forward: &&PortForward| forward.protocol == Protocol::Tcp;
        let declared = boot.port_forwards.iter().filter(is_tcp).map(|forward| forward.guest);
        let skip = own.into_iter().chain(relays.iter().map(|relay| relay.port)).chain(declared);
        let skip = skip.chain(auto.closed.iter().copied()).collect();
        AutoPlan { skip, avoid: auto.avoid.clone(), last: auto.last.clone() }
    });
    PortPlan { added: boot.added_forwards.clone(), auto }
}

/// Has the companion of a running VM forward the ports of its record, and no others.
pub(super) fn forward_all(
    vm: &str,
    boot: &BootRecord,
    project: ProjectRef<'_>,
) -> Result<LivePorts, CompanionError> {
    let mut companion = start_companion(vm, boot, project.context, Lifetime::Own).connect()?;
    forward_by(vm, boot, &mut companion)
}

fn forward_by(
    vm: &str,
    boot: &BootRecord,
    companion: &mut Companion,
) -> Result<LivePorts, CompanionError> {
    companion
        .forward(&plan_of(boot))
        .map_err(|error| CompanionError::new(vm, "does not answer", error))
}

/// Has a companion forward the ports of a VM's record. Returns the reasons why some are not.
pub(super) fn forward_recorded(
    vm: &str,
    boot: &BootRecord,
    companion: &mut Companion,
) -> Vec<VmError> {
    if !boot.has_live_ports() {
        return Vec::new();
    }
    let refused = |port: LivePort| match port.state {
        LiveState::Open => None,
        LiveState::Failed(reason) => {
            let (vm, forward) = (vm.to_owned(), port.forward);
            Some(PortError::Refused { vm, forward, reason }.into())
        }
    };
    match forward_by(vm, boot, companion) {
        Ok(known) => known.ports.into_iter().filter_map(refused).collect(),
        Err(error) => vec![error.into()],
    }
}
