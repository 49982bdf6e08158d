//! The ports that lead into the guest. They are taken for real, so that castra finds them taken; nobody answers behind them.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;

use crate::behaviour::Behaviour;

/// Takes all ports, for as long as this process lives.
pub(crate) fn take(forwards: &[(String, u16)], start: u64, behaviour: &Behaviour) -> Result<(), String> {
    for (protocol, port) in forwards {
        let address = (Ipv4Addr::LOCALHOST, *port);
        let is_taken = match protocol.as_str() {
            "udp" => UdpSocket::bind(address).map(std::mem::forget).is_ok(),
            _ => {
                TcpListener::bind(address).map(|listener| answer_nothing(listener, behaviour.clone())).is_ok()
            }
        };
        if !is_taken || behaviour.is_port_taken(start) {
            return Err(format!(
                "-netdev user: Could not set up host forwarding rule '{protocol}:127.0.0.1:{port}'"
            ));
        }
    }
    Ok(())
}

/// Each connection is closed: an SSH client is told at once that nobody is there. Or it is kept, as QEMU keeps those that the
/// guest does not take.
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
