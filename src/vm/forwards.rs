//! The host's ports: free ones are found, taken ones are named before QEMU is started.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use crate::config::{PortForward, Protocol};
use crate::layout::ProjectLayout;

use super::error::VmError;
use super::record::Record;
use super::state::observe;

/// A port of 127.0.0.1 that is free at this moment.
pub(super) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether every declared port can be taken.
///
/// # Errors
/// [`VmError::PortTaken`] with the VM of this project that has it, if it is one; [`VmError::PortForbidden`].
pub(super) fn check(vm: &str, forwards: &[PortForward], layout: &ProjectLayout) -> Result<(), VmError> {
    for forward in forwards {
        let (port, protocol) = (forward.host, forward.protocol);
        match bind(port, protocol) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(VmError::PortForbidden { port, protocol });
            }
            Err(_) => {
                let owner = owner(port, protocol, layout);
                return Err(VmError::PortTaken { vm: vm.to_owned(), port, protocol, owner });
            }
        }
    }
    Ok(())
}

/// As [`check`] for one port, which the VM itself may have already.
///
/// # Errors
/// Those of [`check`].
pub fn check_port(vm: &str, forward: PortForward, layout: &ProjectLayout) -> Result<(), VmError> {
    match check(vm, &[forward], layout) {
        Err(VmError::PortTaken { owner: Some(owner), .. }) if owner == vm => Ok(()),
        other => other,
    }
}

fn bind(port: u16, protocol: Protocol) -> io::Result<()> {
    let address = (Ipv4Addr::LOCALHOST, port);
    match protocol {
        Protocol::Tcp => TcpListener::bind(address).map(drop),
        Protocol::Udp => UdpSocket::bind(address).map(drop),
    }
}

fn owner(port: u16, protocol: Protocol, layout: &ProjectLayout) -> Option<String> {
    Record::names(layout).into_iter().find(|name| {
        let Ok(Some(record)) = Record::load(layout, name) else { return false };
        let (state, _) = observe(&record, &layout.vm(name));
        let Some(boot) = record.boot.filter(|_| state.is_alive()) else { return false };
        boot.port_forwards.iter().any(|forward| forward.host == port && forward.protocol == protocol)
            || (protocol == Protocol::Tcp && boot.ssh_port == Some(port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_and_a_free_one_passes() {
        let directory = tempfile::tempdir().expect("a directory");
        let layout = ProjectLayout::new(directory.path().to_owned());
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let host = holder.local_addr().expect("an address").port();
        let forward = PortForward { host, guest: 80, protocol: Protocol::Tcp };
        let error = check("web", &[forward], &layout).expect_err("taken");
        assert_eq!(
            error.to_string(),
            format!("port {host}/tcp of this machine, which VM `web` forwards, is taken")
        );
        drop(holder);
        check("web", &[forward], &layout).expect("free again");
    }
}
