//! Sockets of the guest that wait for connections or datagrams, as listed by the kernel
//! (`proc_net_tcp.rst`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use castra_flow::{Incoming, Outgoing, link};
use castra_wire::{GUEST_ADDRESS, Listener, ListenerReport, Reach, ServicePort, Transport};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::kernel_fs::KernelFs;

/// `TCP_LISTEN` and, of a UDP socket without a peer, `TCP_CLOSE` (`net/tcp_states.h`).
const LISTENING: &str = "0A";
const UNCONNECTED: &str = "07";

/// Maximum number of ports in one request.
const MAX_PORTS: usize = 1000;

/// Interval of looks at what listens, for the host's automatic forwards.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Returns for each port how far the services behind it can be reached.
pub(crate) fn listeners(ports: &[ServicePort], kernel_fs: &KernelFs) -> Vec<Listener> {
    let sockets = |transport| addresses(transport, kernel_fs);
    let (tcp, udp) = (sockets(Transport::Tcp), sockets(Transport::Udp));
    let reach = |asked: ServicePort| {
        let all = if asked.transport == Transport::Tcp { &tcp } else { &udp };
        let of_port =
            all.iter().filter(|(_, port)| *port == asked.port).map(|(address, _)| *address);
        Listener { port: asked, reach: widest(of_port) }
    };
    ports.iter().take(MAX_PORTS).copied().map(reach).collect()
}

/// Reports the TCP ports on which something listens, and each change, until the host ends the
/// stream.
pub(crate) async fn report(
    kernel_fs: &Arc<KernelFs>,
    incoming: link::Incoming,
    outgoing: link::Outgoing,
) {
    // Fails if the host is gone, as everything below then does.
    let _ = outgoing.opened();
    let (mut incoming, outgoing) = (Incoming::from(incoming), Outgoing::from(outgoing));
    let mut last = None;
    loop {
        let kernel_fs = Arc::clone(kernel_fs);
        // A guest with many connections has a long list.
        let found = spawn_blocking(move || reachable(&kernel_fs)).await.ok();
        if found.is_some() && found != last {
            let bytes = found.as_ref().map(ListenerReport::encode).unwrap_or_default();
            if outgoing.send(bytes.into()).await.is_err() {
                return;
            }
            last = found;
        }
        // The host sends nothing until it ends the stream.
        if timeout(REPORT_INTERVAL, incoming.next()).await.is_ok() {
            return;
        }
    }
}

/// Returns the TCP ports that programs of the guest reach at one of the addresses of
/// [`relay::connect`](crate::relay::connect).
fn reachable(kernel_fs: &KernelFs) -> ListenerReport {
    let is_reachable = |address: IpAddr| {
        let address = address.to_canonical();
        reach(address) == Reach::Network
            || address == IpAddr::V4(Ipv4Addr::LOCALHOST)
            || address == IpAddr::V6(Ipv6Addr::LOCALHOST)
    };
    let all = addresses(Transport::Tcp, kernel_fs).into_iter();
    let ports: BTreeSet<u16> =
        all.filter(|(address, _)| is_reachable(*address)).map(|(_, port)| port).collect();
    ListenerReport::of(ports)
}

/// Returns the farthest reach of any of these sockets.
fn widest(addresses: impl Iterator<Item = IpAddr>) -> Reach {
    addresses.map(reach).max().unwrap_or(Reach::Nothing)
}

fn reach(address: IpAddr) -> Reach {
    let guest = IpAddr::V4(Ipv4Addr::from(GUEST_ADDRESS));
    match address.to_canonical() {
        address if address.is_unspecified() || address == guest => Reach::Network,
        address if address.is_loopback() => Reach::Loopback,
        // A bridge of containers, for instance.
        _ => Reach::Nothing,
    }
}

fn addresses(transport: Transport, kernel_fs: &KernelFs) -> Vec<(IpAddr, u16)> {
    let (files, state) = match transport {
        Transport::Tcp => (["self/net/tcp", "self/net/tcp6"], LISTENING),
        Transport::Udp => (["self/net/udp", "self/net/udp6"], UNCONNECTED),
    };
    // A kernel without IPv6 has no list for it.
    let lists = files.iter().filter_map(|file| kernel_fs.proc.read(file).ok());
    lists.flat_map(|list| parse(&list, state)).collect()
}

/// Returns the local addresses of the listed sockets that are in this state.
fn parse(list: &str, state: &str) -> Vec<(IpAddr, u16)> {
    let socket = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (address, port) = fields.next()?.split_once(':')?;
        let is_meant = fields.nth(1)? == state;
        let port = u16::from_str_radix(port, 16).ok()?;
        is_meant.then_some((parse_address(address)?, port))
    };
    list.lines().skip(1).filter_map(socket).collect()
}

/// Parses an address of 32-bit words in the machine's byte order, as hexadecimal digits.
fn parse_address(digits: &str) -> Option<IpAddr> {
    let word = |start: usize| {
        let word = u32::from_str_radix(digits.get(start..start + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (place, start) in bytes.chunks_exact_mut(4).zip((0..32).step_by(8)) {
                place.copy_from_slice(&word(start)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 18 1 0
   2: 0F02000A:1786 0202000A:D2F6 01 00000000:00000000 00:00000000 00000000     0        0 19 1 0";
    const TCP6: &str = "\
  sl  local_address                        remote_address                       st tx_queue rx
 0: 00000000000000000000000001000000:1435 00000000000000000000000000000000:0000 0A 00000000:00000000
 1: 0000000000000000FFFF00000F02000A:1436 00000000000000000000000000000000:0000 0A 00000000:00000000";

    #[test]
    #[cfg(target_endian = "little")]
    fn listening_sockets_are_read_and_others_are_not() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(parse(TCP, LISTENING), [(address("127.0.0.1"), 8080), (address("0.0.0.0"), 80)]);
        assert_eq!(
            parse(TCP6, LISTENING),
            [(address("::1"), 5173), (address("::ffff:10.0.2.15"), 5174)]
        );
        assert_eq!(parse("sl\n 0: xx:1 00:0 0A\n 1: 0100007F:99999 0:0 0A\n\n 2:", LISTENING), []);
    }

    #[test]
    fn the_widest_reach_counts() {
        let of = |addresses: &[&str]| {
            widest(addresses.iter().map(|address| address.parse().expect("an address")))
        };
        assert_eq!(of(&[]), Reach::Nothing);
        assert_eq!(of(&["172.17.0.1"]), Reach::Nothing);
        assert_eq!(of(&["172.17.0.1", "::1", "127.0.0.53"]), Reach::Loopback);
        assert_eq!(of(&["127.0.0.1", "10.0.2.15"]), Reach::Network);
        for everywhere in ["0.0.0.0", "::", "::ffff:10.0.2.15"] {
            assert_eq!(of(&[everywhere]), Reach::Network, "{everywhere}");
        }
    }
}
