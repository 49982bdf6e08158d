//! The network: up long before the image's own scripts get to it, and restored when they take it
//! down.
//!
//! The image's scripts must neither notice nor be affected. So the address has a prefix of 32 bits
//! (the kernel lets them add the same address with the network's own prefix), and the routes have a
//! metric that loses against any other. A DHCP client that flushes the interface before it asks for
//! an address would cut off every SSH session: what it removes is added again at once.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use castra_wire::{
    AgentTask, DNS_ADDRESS, GATEWAY_ADDRESS, GUEST_ADDRESS, NETWORK_PREFIX_BITS, NetworkState,
};
use tokio::io::Interest;
use tokio::time::{sleep, timeout};

use crate::events::{EventSender, Milestone};
use crate::kernel_fs::KernelFs;
use crate::netlink::{Link, Requests, Route, changes, forget_changes};
use crate::watch::watch;

/// Route metric that loses against every metric that scripts and DHCP clients use by themselves.
const METRIC: u32 = 60_000;

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

/// Adds the addresses and routes that the network card has lost. A card that was set down stays
/// down; one that disappeared and came back counts as new and is set up.
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

/// Names QEMU's DNS forwarder if the image names no server of its own. Leaves a symbolic link
/// alone, because it means that a service of the image maintains the file.
pub(crate) fn provide_dns(resolv_conf: &Path) -> io::Result<()> {
    let usable = match fs::symlink_metadata(resolv_conf) {
        Ok(metadata) if metadata.is_symlink() => true,
        Ok(_) => names_a_server(&fs::read_to_string(resolv_conf)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if usable {
        return Ok(());
    }
    let [a, b, c, d] = DNS_ADDRESS;
    fs::write(resolv_conf, format!("nameserver {a}.{b}.{c}.{d}\n"))
}

fn names_a_server(resolv_conf: &str) -> bool {
    resolv_conf.lines().any(|line| line.split_whitespace().next() == Some("nameserver"))
}

fn network_card(kernel_fs: &KernelFs, requests: &Requests) -> io::Result<Option<Link>> {
    Ok(requests.links()?.into_iter().find(|link| is_network_card(kernel_fs, link)))
}

/// Returns `true` for a real network card, which has a device behind it; bridges, tunnels and the
/// like have none.
fn is_network_card(kernel_fs: &KernelFs, link: &Link) -> bool {
    link.ethernet && kernel_fs.sys.has(&format!("class/net/{}/device", link.name))
}

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
    requests.add_address(index, GUEST_ADDRESS, 32)?;
    requests.add_route(index, &on_link)?;
    requests.add_route(index, &default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_is_provided_only_where_there_is_none() {
        let directory = std::env::temp_dir().join(format!("castra-dns-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("resolv.conf");
        provide_dns(&file).expect("writes");
        assert_eq!(fs::read_to_string(&file).expect("reads"), "nameserver 10.0.2.3\n");
        fs::write(&file, "# none\nsearch example\n").expect("writes");
        provide_dns(&file).expect("writes");
        assert_eq!(fs::read_to_string(&file).expect("reads"), "nameserver 10.0.2.3\n");
        fs::write(&file, "nameserver 192.0.2.1\n").expect("writes");
        provide_dns(&file).expect("leaves it");
        assert_eq!(fs::read_to_string(&file).expect("reads"), "nameserver 192.0.2.1\n");
        fs::remove_dir_all(&directory).expect("tidies up");
    }

    #[test]
    fn a_link_to_a_file_that_is_not_there_yet_is_left_alone() {
        let link = std::env::temp_dir().join(format!("castra-dns-link-{}", std::process::id()));
        std::os::unix::fs::symlink("/nonexistent/stub-resolv.conf", &link).expect("links");
        provide_dns(&link).expect("leaves it");
        assert!(fs::symlink_metadata(&link).expect("is there").is_symlink());
        fs::remove_file(&link).expect("tidies up");
    }
}
