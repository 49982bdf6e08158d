//! The ports that lead into the guest. They are taken for real, so that castra finds them taken; nobody answers behind them.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;

/// Takes all ports, for as long as this process lives.
pub(crate) fn take(forwards: &[(String, u16)], pretend_taken: bool) -> Result<(), String> {
    for (protocol, port) in forwards {
        let address = (Ipv4Addr::LOCALHOST, *port);
        let is_taken = match protocol.as_str() {
            "udp" => UdpSocket::bind(address).map(std::mem::forget).is_ok(),
            _ => TcpListener::bind(address).map(answer_nothing).is_ok(),
        };
        if !is_taken || pretend_taken {
            return Err(format!(
                "-netdev user: Could not set up host forwarding rule '{protocol}:127.0.0.1:{port}'"
            ));
        }
    }
    Ok(())
}

/// Each connection is closed: an SSH client is told at once that nobody is there.
fn answer_nothing(listener: TcpListener) {
    thread::spawn(move || listener.incoming().for_each(drop));
}
