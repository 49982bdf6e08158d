//! The network: up long before the image's own scripts get to it, and restored when they take it
//! down.
//!
//! The image's scripts must neither notice nor be affected. So the address has a prefix of 32 bits
//! (the kernel lets them add the same address with the network's own prefix), and the routes have a
//! metric that loses against any other. A DHCP client that flushes the interface before it asks for
//! an address would cut off every SSH session: what it removes is added again at once.
//!
//! Once the system has an address and a default route of its own, the agent withdraws its own, and
//! adds them again when the system loses either.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use castra_wire::{AgentTask, GATEWAY_ADDRESS, GUEST_ADDRESS, NETWORK_PREFIX_BITS, NetworkState};
use tokio::io::Interest;
use tokio::time::{sleep, timeout};

use crate::events::{EventSender, Milestone};
use crate::kernel_fs::KernelFs;
use crate::netlink::{Address, Link, Requests, Route, changes, forget_changes};
use crate::watch::watch;

/// Route metric that loses against every metric that scripts and DHCP clients use by themselves.
const METRIC: u32 = 60_000;

/// The agent's address and its prefix.
const OWN: (Address, u8) = (GUEST_ADDRESS, 32);

/// Index of `lo`, which is fixed (`LOOPBACK_IFINDEX` in the kernel).
const LOOPBACK: u32 = 1;

/// Time without an interface after which the host is informed; the agent keeps waiting.
const PATIENCE: Duration = Duration::from_secs(20);

/// Minimum time between two repairs, so that an image that insists on its own way does not keep the
/// CPU busy.
const BETWEEN_REPAIRS: Duration = Duration::from_millis(100);

/// Brings the network up as soon as there is an interface, and keeps repairing it.
pub(crate) async fn keep_up(kernel_fs: &KernelFs, events: &EventSender) -> io::Result<()> {
    let requests = Requests::open()?;
    let changes = watch(changes()?, Interest::READABLE)?;
    requests.set_up(LOOPBACK)?;
    let mut warned = false;
    let link = loop {
        if let Some(link) = network_card(kernel_fs, &requests)? {
            break link;
        }
        let change = async { changes.readable().await.map(|mut ready| ready.clear_ready()) };
        match timeout(if warned { Duration::MAX } else { PATIENCE }, change).await {
            Ok(change) => change?,
            Err(_) => events
                .failed(AgentTask::Network, "the guest's kernel shows no network interface yet"),
        }
        warned = true;
        forget_changes(changes.get_ref().as_fd())?;
    };
    requests.set_up(link.index)?;
    configure(&requests, link.index)?;
    events.reached(Milestone::Network);
    let mut index = link.index;
    loop {
        changes.readable().await?.clear_ready();
        forget_changes(changes.get_ref().as_fd())?;
        // While the interface is down or gone there is nothing to repair; its return is another
        // change.
        let _ = repair(kernel_fs, &requests, &mut index);
        sleep(BETWEEN_REPAIRS).await;
    }
}

/// Adds what the network card has lost, or removes what it no longer needs. A card that was set
/// down stays down; one that disappeared and came back counts as new and is set up.
fn repair(kernel_fs: &KernelFs, requests: &Requests, index: &mut u32) -> io::Result<()> {
    let Some(link) = network_card(kernel_fs, requests)? else { return Ok(()) };
    if link.index != *index {
        requests.set_up(link.index)?;
        *index = link.index;
    }
    configure(requests, link.index)
}

/// Returns the current state of the network as reported by the kernel.
pub(crate) fn state(kernel_fs: &KernelFs) -> io::Result<NetworkState> {
    let requests = Requests::open()?;
    let Some(link) = network_card(kernel_fs, &requests)? else {
        return Ok(NetworkState {
            interface: None,
            is_up: false,
            has_carrier: false,
            has_address: false,
            has_route: false,
        });
    };
    Ok(NetworkState {
        is_up: link.is_up,
        has_carrier: link.has_carrier,
        has_address: requests.has_address(GUEST_ADDRESS)?,
        has_route: requests.has_route(GATEWAY_ADDRESS)?,
        interface: Some(link.name),
    })
}

fn network_card(kernel_fs: &KernelFs, requests: &Requests) -> io::Result<Option<Link>> {
    Ok(requests.links()?.into_iter().find(|link| is_network_card(kernel_fs, link)))
}

/// Returns `true` for a real network card, which has a device behind it; bridges, tunnels and the
/// like have none.
fn is_network_card(kernel_fs: &KernelFs, link: &Link) -> bool {
    link.ethernet && kernel_fs.sys.has(&format!("class/net/{}/device", link.name))
}

/// Gives the network card the agent's address and routes; or takes them away, if the system has
/// given it the same address and a default route. So a system that manages its network finds it as
/// it left it, and one that stops managing it stays reachable.
fn configure(requests: &Requests, index: u32) -> io::Result<()> {
    let [a, b, c, _] = GUEST_ADDRESS;
    let on_link = Route {
        network: [a, b, c, 0],
        prefix_bits: NETWORK_PREFIX_BITS,
        gateway: None,
        source: GUEST_ADDRESS,
        metric: METRIC,
    };
    let default =
        Route { network: [0; 4], prefix_bits: 0, gateway: Some(GATEWAY_ADDRESS), ..on_link };
    let (addresses, routes) = (requests.addresses(index)?, requests.default_metrics(index)?);
    if is_managed(&addresses, &routes) {
        if routes.contains(&METRIC) {
            requests.remove_route(index, &default)?;
        }
        if addresses.contains(&OWN) {
            requests.remove_route(index, &on_link)?;
            requests.remove_address(index, OWN)?;
        }
        return Ok(());
    }
    requests.add_address(index, OWN)?;
    requests.add_route(index, &on_link)?;
    requests.add_route(index, &default)
}

/// Returns `true` if the system has set up the card with these addresses, and default routes of
/// these metrics.
fn is_managed(addresses: &[(Address, u8)], default_metrics: &[u32]) -> bool {
    addresses.iter().any(|own| own.0 == OWN.0 && *own != OWN)
        && default_metrics.iter().any(|metric| *metric != METRIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_that_has_address_and_route_manages_its_network() {
        let (by_system, other) = ((GUEST_ADDRESS, 24), ([192, 0, 2, 1], 24));
        assert!(is_managed(&[OWN, by_system], &[METRIC, 1024]));
        assert!(is_managed(&[by_system], &[0]));
        for (addresses, metrics) in [
            (vec![OWN], vec![METRIC]),
            (vec![OWN, other], vec![METRIC, 1024]),
            (vec![OWN, by_system], vec![METRIC]),
            (vec![by_system], vec![]),
            (vec![], vec![1024]),
        ] {
            assert!(!is_managed(&addresses, &metrics), "{addresses:?} {metrics:?}");
        }
    }
}
