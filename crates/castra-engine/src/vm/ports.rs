//! Ports of the host: free ones for SSH, and checks of declared ones before QEMU is started.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use castra_wire::{FIRST_RELAY_PORT, MAX_RELAYS, Relay};

use crate::config::PortForward;
use crate::guest::Companion;
use crate::layout::ProjectLayout;
use crate::qemu::{HostForward, qemu_of_process};
use crate::sockets::{PortOwner, Protocol, holder_of, sockets_on};
use crate::vm::error::{PortError, VmError};
use crate::vm::record::{BootRecord, Record, observe};

/// Port of a system's own SSH server.
pub const SYSTEM_SSH_PORT: u16 = 22;

/// Time for a companion's answer.
const LIVE_LIMIT: Duration = Duration::from_secs(1);

/// Chooses a port on 127.0.0.1 that is free at this moment: `last` if possible.
pub(in crate::vm) fn free_port(last: Option<u16>) -> io::Result<u16> {
    if let Some(port) = last.filter(|port| bind(*port, Protocol::Tcp).is_ok()) {
        return Ok(port);
    }
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A port of the host that leads to an SSH server of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vm) struct SshForward {
    pub(in crate::vm) host: u16,
    guest: u16,
}

impl SshForward {
    /// Returns the forward to the server of castra's agent, or else of the system itself.
    pub(in crate::vm) fn new(host: u16, has_agent: bool) -> Self {
        Self { host, guest: if has_agent { castra_wire::SSH_PORT } else { SYSTEM_SSH_PORT } }
    }
}

/// Returns QEMU's forwards: the port for SSH, and the declared ones. If the guest's agent relays, a
/// TCP port leads to the agent, which reaches the service even on the guest's loopback interface;
/// otherwise to the service's own port.
pub(in crate::vm) fn rules(
    ssh: Option<SshForward>,
    forwards: &[PortForward],
    is_relayed: bool,
) -> Vec<HostForward> {
    let ssh =
        ssh.map(|SshForward { host, guest }| HostForward { protocol: Protocol::Tcp, host, guest });
    let rule = |(forward, relay): (&PortForward, Option<Relay>)| HostForward {
        protocol: forward.protocol,
        host: forward.host,
        guest: relay.filter(|_| is_relayed).map_or(forward.guest, |relay| relay.port),
    };
    ssh.into_iter().chain(with_relays(forwards).map(rule)).collect()
}

/// Returns the relays of these forwards.
pub(in crate::vm) fn relays(forwards: &[PortForward]) -> Vec<Relay> {
    with_relays(forwards).filter_map(|(_, relay)| relay).collect()
}

/// Returns `true` if this forward, one of `forwards`, has a relay.
pub(in crate::vm) fn has_relay(forward: &PortForward, forwards: &[PortForward]) -> bool {
    with_relays(forwards).any(|(one, relay)| one == forward && relay.is_some())
}

/// Returns each forward with its relay: TCP ports have one, while there are any left. No relay
/// takes the port of a service.
fn with_relays(forwards: &[PortForward]) -> impl Iterator<Item = (&PortForward, Option<Relay>)> {
    let is_free = |port: &u16| !forwards.iter().any(|forward| forward.guest == *port);
    let mut ports = (FIRST_RELAY_PORT..).filter(is_free).take(MAX_RELAYS);
    forwards.iter().map(move |forward| {
        let port = if forward.protocol == Protocol::Tcp { ports.next() } else { None };
        (forward, port.map(|port| Relay { port, to: forward.guest }))
    })
}

/// Checks that every declared port is free.
///
/// # Errors
/// Returns [`PortError::Taken`] with the port's owner, or [`PortError::Forbidden`].
pub(in crate::vm) fn check(
    vm: &str,
    forwards: &[PortForward],
    layout: &ProjectLayout,
) -> Result<(), PortError> {
    for forward in forwards {
        let (port, protocol) = (forward.host, forward.protocol);
        match bind(port, protocol) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(PortError::Forbidden { port, protocol });
            }
            Err(_) => {
                let owner = owner(port, protocol, layout);
                return Err(PortError::Taken { vm: vm.to_owned(), port, protocol, owner });
            }
        }
    }
    Ok(())
}

/// Checks that a declared port is free, or that the VM has it already.
///
/// # Errors
/// Returns [`PortError::Taken`] with the port's owner, or [`PortError::Forbidden`].
pub fn check_port(vm: &str, forward: PortForward, layout: &ProjectLayout) -> Result<(), VmError> {
    match check(vm, &[forward], layout) {
        Err(PortError::Taken { owner: PortOwner::Vm { vm: owner, project: None }, .. })
            if owner == vm =>
        {
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Returns the owner of this port on 127.0.0.1, or `None` if it is free.
pub fn port_owner(port: u16, protocol: Protocol, layout: &ProjectLayout) -> Option<PortOwner> {
    match bind(port, protocol) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            Some(owner(port, protocol, layout))
        }
        _ => None,
    }
}

fn bind(port: u16, protocol: Protocol) -> io::Result<()> {
    let address = (Ipv4Addr::LOCALHOST, port);
    match protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    }
}

fn owner(port: u16, protocol: Protocol, layout: &ProjectLayout) -> PortOwner {
    if let Some(vm) = vm_on(port, protocol, layout) {
        return PortOwner::Vm { vm, project: None };
    }
    let sockets = sockets_on(port, protocol);
    let Some(holder) = holder_of(&sockets) else {
        let own = rustix::process::geteuid().as_raw();
        let is_others = sockets.iter().any(|socket| socket.user != own);
        return if is_others { PortOwner::OtherUser } else { PortOwner::Unknown };
    };
    match qemu_of_process(holder.pid) {
        Some(found) => {
            let project = (found.project != *layout).then(|| found.project.directory().to_owned());
            PortOwner::Vm { vm: found.vm, project }
        }
        None => PortOwner::Process { name: holder.name, pid: holder.pid },
    }
}

/// Returns the VM of this project that has the port, by its record.
fn vm_on(port: u16, protocol: Protocol, layout: &ProjectLayout) -> Option<String> {
    Record::names(layout).into_iter().find(|name| {
        let Ok(Some(record)) = Record::load(layout, name) else { return false };
        let (state, _) = observe(&record, &layout.vm(name));
        let Some(boot) = record.boot.filter(|_| state.is_alive()) else { return false };
        boot.port_forwards
            .iter()
            .any(|forward| forward.host == port && forward.protocol == protocol)
            || (protocol == Protocol::Tcp
                && (boot.ssh_port == Some(port)
                    || boot.added_forwards.iter().any(|added| added.host == port)
                    || is_live(port, &boot)))
    })
}

/// Returns `true` if the VM's companion has opened the port by itself.
fn is_live(port: u16, boot: &BootRecord) -> bool {
    let companion = Companion::connect(&boot.socket_paths());
    let known = companion.and_then(|mut companion| companion.ports(false, LIVE_LIMIT));
    known.is_ok_and(|known| known.ports.iter().any(|live| live.forward.host == port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_ports_lead_to_relays_as_long_as_there_are_any() {
        let forward = |host, protocol| PortForward { host, guest: host + 1, protocol };
        let forwards =
            [forward(80, Protocol::Tcp), forward(53, Protocol::Udp), forward(443, Protocol::Tcp)];
        let guests = |is_relayed| {
            rules(Some(SshForward::new(40_022, true)), &forwards, is_relayed)
                .iter()
                .map(|rule| rule.guest)
                .collect::<Vec<_>>()
        };
        assert_eq!(guests(false), [6022, 81, 54, 444]);
        assert_eq!(guests(true), [6022, 61_022, 54, 61_023]);
        assert_eq!(
            relays(&forwards),
            [Relay { port: 61_022, to: 81 }, Relay { port: 61_023, to: 444 }]
        );
        assert!(has_relay(&forwards[2], &forwards) && !has_relay(&forwards[1], &forwards));
        let many: Vec<_> = (1..=100).map(|host| forward(host, Protocol::Tcp)).collect();
        assert_eq!(relays(&many).len(), MAX_RELAYS);
        assert_eq!(rules(None, &many, true)[99].guest, 101);
    }

    #[test]
    fn a_taken_port_is_reported_with_its_owner_and_a_free_one_passes() {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = ProjectLayout::unchecked(directory.path().to_owned());
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let host = holder.local_addr().expect("an address").port();
        let forward = PortForward { host, guest: 80, protocol: Protocol::Tcp };
        let error = check("web", &[forward], &layout).expect_err("taken").to_string();
        assert!(error.starts_with(&format!(
            "port {host}/tcp of this machine, which VM `web` forwards, is in use"
        )));
        if cfg!(target_os = "linux") {
            assert!(error.ends_with(&format!("(process {})", std::process::id())), "{error}");
        }
        drop(holder);
        check("web", &[forward], &layout).expect("free again");
        assert_eq!(port_owner(host, Protocol::Tcp, &layout), None);
    }
}
