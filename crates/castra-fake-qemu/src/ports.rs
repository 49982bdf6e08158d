//! The ports that lead into the guest. They are really taken, so that castra finds them taken, but
//! have no service.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;

use crate::behaviour::Behaviour;

/// Takes all ports, for as long as this process lives.
pub(crate) fn take(
    forwards: &[(String, u16)],
    start: u64,
    behaviour: &Behaviour,
) -> Result<(), String> {
    for (protocol, port) in forwards {
        let address = (Ipv4Addr::LOCALHOST, *port);
        let is_taken = match protocol.as_str() {
            "udp" => UdpSocket::bind(address).map(std::mem::forget).is_ok(),
            _ => TcpListener::bind(address)
                .map(|listener| answer_nothing(listener, behaviour.clone()))
                .is_ok(),
        };
        if !is_taken || behaviour.is_port_taken(start) {
            return Err(format!(
                "-netdev user: Could not set up host forwarding rule '{protocol}:127.0.0.1:{port}'"
            ));
        }
    }
    Ok(())
}

/// Closes each connection, so that an SSH client learns immediately that there is no server; or
/// keeps it, as QEMU does if the guest does not accept it.
fn answer_nothing(listener: TcpListener, behaviour: Behaviour) {
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            if behaviour.has("ssh-silent") {
                kept.push(stream);
            }
        }
    });
}
