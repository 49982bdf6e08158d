//! The subset of rtnetlink (`rtnetlink(7)`) that brings up an interface.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Kinds of messages, from `linux/netlink.h` and `linux/rtnetlink.h`.
mod kind {
    pub(super) const ERROR: u16 = 2;
    pub(super) const DONE: u16 = 3;
    pub(super) const NEW_LINK: u16 = 16;
    pub(super) const GET_LINK: u16 = 18;
    pub(super) const NEW_ADDRESS: u16 = 20;
    pub(super) const REMOVE_ADDRESS: u16 = 21;
    pub(super) const GET_ADDRESS: u16 = 22;
    pub(super) const NEW_ROUTE: u16 = 24;
    pub(super) const REMOVE_ROUTE: u16 = 25;
    pub(super) const GET_ROUTE: u16 = 26;
}

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const CREATE_ONLY: u16 = 0x600;

const HEADER_BYTES: usize = 16;

/// `IFF_UP`.
const UP: u32 = 1;
/// `IFF_LOWER_UP`: what `ip link` shows as a carrier.
const CARRIER: u32 = 0x1_0000;
/// `ARPHRD_ETHER`.
const ETHERNET: u16 = 1;
/// `AF_INET`.
const INET: u8 = 2;
/// `RT_TABLE_MAIN`, `RTPROT_BOOT`, `RTN_UNICAST`, `RT_SCOPE_LINK`, `RT_SCOPE_UNIVERSE`.
const TABLE_MAIN: u8 = 254;
const PROTOCOL_BOOT: u8 = 3;
const UNICAST: u8 = 1;
const SCOPE_LINK: u8 = 253;
const SCOPE_UNIVERSE: u8 = 0;

/// Multicast groups, as bits: changes of links, of IPv4 addresses and of IPv4 routes.
const LINKS: u32 = 0x1;
const INET_ADDRESSES: u32 = 0x10;
const INET_ROUTES: u32 = 0x40;

/// An IPv4 address.
pub(crate) type Address = [u8; 4];

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    /// Interface index, which survives renaming.
    pub(crate) index: u32,
    /// Current name.
    pub(crate) name: String,
    /// Set for an Ethernet interface.
    pub(crate) ethernet: bool,
    /// Set if the interface is up.
    pub(crate) is_up: bool,
    /// Set while the interface has a carrier.
    pub(crate) has_carrier: bool,
}

/// A route to add.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    /// Address of the network.
    pub(crate) network: [u8; 4],
    /// Prefix of the network, in bits; 0 makes this the default route.
    pub(crate) prefix_bits: u8,
    /// Next hop; without one the network is on the link.
    pub(crate) gateway: Option<[u8; 4]>,
    /// Source address of packets on this route.
    pub(crate) source: [u8; 4],
    /// Priority: the lowest metric wins.
    pub(crate) metric: u32,
}

/// A socket for requests, each answered before the next.
pub(crate) struct Requests(OwnedFd);

/// Opens a non-blocking socket that becomes readable when links, IPv4 addresses or routes
/// change.
pub(crate) fn changes() -> io::Result<OwnedFd> {
    let socket = open(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, LINKS | INET_ADDRESSES | INET_ROUTES))?;
    Ok(socket)
}

/// Discards all pending notifications. The current state is queried afterwards, so that no change
/// can be missed.
pub(crate) fn forget_changes(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = [0; 8192];
    loop {
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty()) {
            // More changed than the socket's queue could hold; the rest of the queue comes with
            // the next round.
            Ok(_) | Err(Errno::NOBUFS) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

impl Requests {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(open(SocketFlags::CLOEXEC)?))
    }

    /// Returns all interfaces, lowest index first.
    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.ask(kind::GET_LINK, DUMP, &link_body(0, 0, 0), |kind, body| {
            if kind == kind::NEW_LINK {
                links.extend(parse_link(body));
            }
        })?;
        links.sort_by_key(|link: &Link| link.index);
        Ok(links)
    }

    /// Sets an interface up.
    pub(crate) fn set_up(&self, index: u32) -> io::Result<()> {
        self.ask(kind::NEW_LINK, ACKNOWLEDGE, &link_body(index, UP, UP), |_, _| {})
    }

    /// Returns `true` if any interface has this IPv4 address.
    pub(crate) fn has_address(&self, address: [u8; 4]) -> io::Result<bool> {
        let mut has_it = false;
        // `struct ifaddrmsg`.
        let body = [INET, 0, 0, 0, 0, 0, 0, 0];
        self.ask(kind::GET_ADDRESS, DUMP, &body, |kind, body| {
            let mut local = attributes(body.get(8..).unwrap_or_default());
            let is_it =
                |(kind, value): (u16, &[u8])| kind == attribute::LOCAL_ADDRESS && value == address;
            has_it |= kind == kind::NEW_ADDRESS && local.any(is_it);
        })?;
        Ok(has_it)
    }

    /// Returns `true` if the kernel would route a packet for this address out of the machine, on
    /// any interface.
    pub(crate) fn has_route(&self, address: [u8; 4]) -> io::Result<bool> {
        let mut body = vec![INET, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        attribute(&mut body, attribute::DESTINATION, &address);
        let mut leads_out = false;
        let asked = self.ask(kind::GET_ROUTE, ACKNOWLEDGE, &body, |kind, body| {
            leads_out |= kind == kind::NEW_ROUTE && body.get(7) == Some(&UNICAST);
        });
        match asked {
            Ok(()) => Ok(leads_out),
            Err(error) if is_without_route(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns the IPv4 addresses of an interface, and their prefixes.
    pub(crate) fn addresses(&self, index: u32) -> io::Result<Vec<(Address, u8)>> {
        let mut found = Vec::new();
        // `struct ifaddrmsg`.
        let body = [INET, 0, 0, 0, 0, 0, 0, 0];
        self.ask(kind::GET_ADDRESS, DUMP, &body, |kind, body| {
            if kind == kind::NEW_ADDRESS && number_u32(body, 4) == Some(index) {
                let local = value(body.get(8..).unwrap_or_default(), attribute::LOCAL_ADDRESS);
                found.extend(local.and_then(|local| Some((local.try_into().ok()?, body[1]))));
            }
        })?;
        Ok(found)
    }

    /// Returns the metrics of the IPv4 default routes through an interface in the main table.
    pub(crate) fn default_metrics(&self, index: u32) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        // `struct rtmsg`.
        let body = [INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        self.ask(kind::GET_ROUTE, DUMP, &body, |kind, body| {
            let is_default = kind == kind::NEW_ROUTE
                && body.len() >= 12
                && (body[1], body[4], body[7]) == (0, TABLE_MAIN, UNICAST);
            let number = |name| number_u32(value(body.get(12..)?, name)?, 0);
            if is_default && number(attribute::INTERFACE) == Some(index) {
                found.push(number(attribute::PRIORITY).unwrap_or_default());
            }
        })?;
        Ok(found)
    }

    /// Gives an interface an IPv4 address; succeeds if the interface has it already.
    pub(crate) fn add_address(&self, index: u32, address: (Address, u8)) -> io::Result<()> {
        let body = address_body(index, address);
        settled(self.ask(kind::NEW_ADDRESS, ACKNOWLEDGE | CREATE_ONLY, &body, |_, _| {}))
    }

    /// Takes an IPv4 address from an interface.
    pub(crate) fn remove_address(&self, index: u32, address: (Address, u8)) -> io::Result<()> {
        self.ask(kind::REMOVE_ADDRESS, ACKNOWLEDGE, &address_body(index, address), |_, _| {})
    }

    /// Adds a route through an interface; succeeds if the route exists already.
    pub(crate) fn add_route(&self, index: u32, route: &Route) -> io::Result<()> {
        let body = route_body(index, route);
        settled(self.ask(kind::NEW_ROUTE, ACKNOWLEDGE | CREATE_ONLY, &body, |_, _| {}))
    }

    /// Removes a route through an interface; succeeds if there is no such route.
    pub(crate) fn remove_route(&self, index: u32, route: &Route) -> io::Result<()> {
        let removed =
            self.ask(kind::REMOVE_ROUTE, ACKNOWLEDGE, &route_body(index, route), |_, _| {});
        match removed {
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    /// Sends one request and passes each answer to `answer` until the kernel marks the last one.
    fn ask(
        &self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut answer: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let to_kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(
            &self.0,
            &message(kind, flags | REQUEST, body),
            SendFlags::empty(),
            &to_kernel,
        )?;
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let (length, _) =
                rustix::net::recv(self.0.as_fd(), &mut buffer[..], RecvFlags::empty())?;
            for (kind, body) in messages(&buffer[..length]) {
                match kind {
                    kind::ERROR => return outcome(body),
                    kind::DONE => return Ok(()),
                    _ => answer(kind, body),
                }
            }
        }
    }
}

/// Kinds of attributes; addresses, routes and links number theirs separately.
mod attribute {
    pub(super) const LINK_NAME: u16 = 3;
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const LOCAL_ADDRESS: u16 = 2;
    pub(super) const DESTINATION: u16 = 1;
    pub(super) const INTERFACE: u16 = 4;
    pub(super) const GATEWAY: u16 = 5;
    pub(super) const PRIORITY: u16 = 6;
    pub(super) const PREFERRED_SOURCE: u16 = 7;
}

fn open(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?)
}

/// Returns `true` if there is no route, or one that refuses: `blackhole`, `unreachable`, `prohibit`
/// (`fib_props` in the kernel).
fn is_without_route(error: &io::Error) -> bool {
    let kinds = [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::INVAL, Errno::ACCESS];
    kinds.iter().any(|kind| error.raw_os_error() == Some(kind.raw_os_error()))
}

fn settled(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Returns a `struct ifinfomsg`.
fn link_body(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(change.to_ne_bytes());
    body
}

/// Returns a `struct ifaddrmsg` with its attributes.
fn address_body(index: u32, (address, prefix_bits): (Address, u8)) -> Vec<u8> {
    let mut body = vec![INET, prefix_bits, 0, SCOPE_UNIVERSE];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, attribute::ADDRESS, &address);
    attribute(&mut body, attribute::LOCAL_ADDRESS, &address);
    body
}

/// Returns a `struct rtmsg` with its attributes.
fn route_body(index: u32, route: &Route) -> Vec<u8> {
    let scope = if route.gateway.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK };
    let mut body =
        vec![INET, route.prefix_bits, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, scope, UNICAST, 0, 0, 0, 0];
    if route.prefix_bits > 0 {
        attribute(&mut body, attribute::DESTINATION, &route.network);
    }
    if let Some(gateway) = route.gateway {
        attribute(&mut body, attribute::GATEWAY, &gateway);
    }
    attribute(&mut body, attribute::INTERFACE, &index.to_ne_bytes());
    attribute(&mut body, attribute::PRIORITY, &route.metric.to_ne_bytes());
    attribute(&mut body, attribute::PREFERRED_SOURCE, &route.source);
    body
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Splits a datagram into messages: kind and body. Stops at the first that does not fit.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(number_u32(rest, 0)?).ok()?;
        let kind = number_u16(rest, 4)?;
        let body = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// Splits the bytes after a body's fixed part into attributes: kind and value.
fn attributes(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = attributes;
    std::iter::from_fn(move || {
        let length = usize::from(number_u16(rest, 0)?);
        let kind = number_u16(rest, 2)?;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Returns the value of the first attribute of this kind.
fn value(attributes_of: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(attributes_of).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let ethernet = number_u16(body, 2)? == ETHERNET;
    let index = number_u32(body, 4)?;
    let flags = number_u32(body, 8)?;
    let (is_up, has_carrier) = (flags & UP != 0, flags & CARRIER != 0);
    let (_, name) = attributes(body.get(16..)?).find(|(kind, _)| *kind == attribute::LINK_NAME)?;
    let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
    Some(Link { index, name, ethernet, is_up, has_carrier })
}

/// Returns the result in a `struct nlmsgerr`, which begins with the negated error number; 0 is the
/// acknowledgement.
fn outcome(body: &[u8]) -> io::Result<()> {
    match number_u32(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::Error::other("the kernel's response is truncated")),
    }
}

fn number_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn number_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_understands_a_request() {
        let links =
            Requests::open().and_then(|requests| requests.links()).expect("the kernel answers");
        let lo = links.iter().find(|link| link.name == "lo").expect("there is always lo");
        assert!(!lo.ethernet);
        assert!(lo.index > 0);
    }

    #[test]
    fn the_kernel_reports_addresses_and_routes() {
        let requests = Requests::open().expect("opens");
        let links = requests.links().expect("the kernel answers");
        let lo = links.iter().find(|link| link.name == "lo").expect("there is always lo");
        let has_address = |address| requests.has_address(address).expect("the kernel answers");
        assert_eq!(has_address([127, 0, 0, 1]), lo.is_up);
        assert!(!has_address([192, 0, 2, 1]));
        // A machine's own addresses are not outside it.
        assert!(!requests.has_route([127, 0, 0, 1]).expect("the kernel answers"));
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        let requests = Requests::open().expect("opens");
        assert!(requests.set_up(u32::MAX >> 1).is_err());
    }

    #[test]
    fn cut_off_messages_end_the_datagram() {
        let whole = message(kind::NEW_LINK, 0, &link_body(3, 0, 0));
        assert_eq!(messages(&whole).count(), 1);
        for length in 0..whole.len() {
            assert_eq!(messages(&whole[..length]).count(), 0, "{length} bytes");
        }
        assert_eq!(messages(&[0; 64]).count(), 0);
    }
}
