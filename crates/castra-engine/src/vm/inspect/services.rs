//! Services of a guest behind forwarded ports, as reported by its agent.

use std::time::{Duration, Instant};

use castra_wire::{AgentTask, GuestMessage, Listener, Reach, ServicePort, Transport};

use crate::config::PortForward;
use crate::files::Lock;
use crate::guest::{ControlPort, LiveForward};
use crate::sockets::Protocol;
use crate::trusted;
use crate::vm::ports::has_relay;
use crate::vm::project::ProjectRef;
use crate::vm::record::{BootRecord, Record, VmState, observe};

/// Time for an agent to answer, which it does within milliseconds unless it is busy.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Asks a running VM how far the services behind its forwarded ports can be reached. Returns
/// nothing without an agent or with an older one, and while the VM is busy or another castra works
/// on it.
pub fn services(vm: &str, project: ProjectRef<'_>) -> Vec<(PortForward, Reach)> {
    ask(vm, project).unwrap_or_default()
}

fn ask(vm: &str, project: ProjectRef<'_>) -> Option<Vec<(PortForward, Reach)>> {
    let record = Record::load(project.layout, vm).ok()??;
    let files = project.files(vm);
    let (state, qemu) = observe(&record, &files);
    let boot = record.boot.filter(BootRecord::has_agent)?;
    let forwards = forwards_of(&boot);
    if forwards.is_empty() {
        return None;
    }
    if state != VmState::Running || qemu?.is_frozen() {
        return None;
    }
    let _lock = Lock::try_hold(trusted::open(&files.lock()).ok()?, &files.lock()).ok()??;
    let deadline = Instant::now() + ANSWER_LIMIT;
    let control = boot.socket_paths().control();
    let mut port = ControlPort::connect(&control, deadline, project.cancel()).ok()?;
    // The agent also greets, by which the host learns that it listens.
    port.attach().ok()?;
    port.listeners(forwards.iter().map(|(forward, _)| port_of(forward)).collect()).ok()?;
    loop {
        match port.next(deadline).ok()? {
            GuestMessage::Listeners { listeners } => {
                let service = |(forward, reaches_loopback): &(PortForward, bool)| {
                    let reach = match reach_of(&listeners, port_of(forward))? {
                        Reach::Loopback if *reaches_loopback => Reach::Network,
                        reach => reach,
                    };
                    Some((*forward, reach))
                };
                return Some(forwards.iter().filter_map(service).collect());
            }
            GuestMessage::Failed { task: AgentTask::Protocol, .. } => return None,
            _ => {}
        }
    }
}

/// Returns a VM's forwards, declared and added ones. `true` marks those that reach a service on the
/// guest's loopback interface.
fn forwards_of(boot: &BootRecord) -> Vec<(PortForward, bool)> {
    let declared = boot
        .port_forwards
        .iter()
        .map(|forward| (*forward, boot.relayed && has_relay(forward, &boot.port_forwards)));
    let added = boot.added_forwards.iter().map(|LiveForward { host, guest }| {
        (PortForward { host: *host, guest: *guest, protocol: Protocol::Tcp }, true)
    });
    declared.chain(added).collect()
}

fn port_of(forward: &PortForward) -> ServicePort {
    let transport = match forward.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    };
    ServicePort { transport, port: forward.guest }
}

fn reach_of(listeners: &[Listener], port: ServicePort) -> Option<Reach> {
    listeners.iter().find(|listener| listener.port == port).map(|listener| listener.reach)
}
