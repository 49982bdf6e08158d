//! Resolves host names without libc: in a static binary, glibc's resolver would load shared
//! libraries.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

/// Time limit for one name server. `resolv.conf(5)` has 5 s, but a user waits for this forward.
const SERVER_LIMIT: Duration = Duration::from_secs(3);

/// Largest answer over UDP without extensions (RFC 1035, 2.3.4).
const ANSWER_BYTES: usize = 512;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// Returns the addresses of a host: a literal, `localhost`, `/etc/hosts`, else DNS.
///
/// # Errors
/// The name has no address, or no name server answers.
pub(crate) async fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let known = in_hosts(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), host);
    if !known.is_empty() {
        return Ok(known);
    }
    let configuration = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for server in name_servers(&configuration) {
        match ask(server, host).await {
            Ok(found) if !found.is_empty() => return Ok(found),
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn in_hosts(hosts: &str, host: &str) -> Vec<IpAddr> {
    hosts
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
        })
        .collect()
}

fn name_servers(configuration: &str) -> Vec<SocketAddr> {
    configuration
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
        .map(|address: IpAddr| SocketAddr::new(address, 53))
        .collect()
}

/// Queries both kinds of address at once; IPv4 comes first, since QEMU's network always carries it.
async fn ask(server: SocketAddr, host: &str) -> io::Result<Vec<IpAddr>> {
    let (v4, v6) = tokio::join!(ask_one(server, host, TYPE_A), ask_one(server, host, TYPE_AAAA));
    match (v4, v6) {
        (Err(error), Err(_)) => Err(error),
        (v4, v6) => Ok(v4.unwrap_or_default().into_iter().chain(v6.unwrap_or_default()).collect()),
    }
}

async fn ask_one(server: SocketAddr, host: &str, kind: u16) -> io::Result<Vec<IpAddr>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let query = query(u16::from_ne_bytes(id), host, kind).ok_or(io::ErrorKind::InvalidInput)?;
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&query).await?;
    let mut answer = [0; ANSWER_BYTES];
    let answered = async {
        loop {
            let length = socket.recv(&mut answer).await?;
            // Anything but the answer to this query is noise, or forged.
            if answer[..length].starts_with(&query[..2]) {
                return Ok::<_, io::Error>(length);
            }
        }
    };
    let length = tokio::time::timeout(SERVER_LIMIT, answered)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)??;
    Ok(parse(&answer[..length], kind).unwrap_or_default())
}

/// Returns a query with recursion desired (RFC 1035, 4.1), or `None` if the name cannot be encoded.
fn query(id: u16, host: &str, kind: u16) -> Option<Vec<u8>> {
    let mut query = Vec::with_capacity(host.len() + 18);
    query.extend(id.to_be_bytes());
    query.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in host.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        query.push(length);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend(1_u16.to_be_bytes());
    Some(query)
}

/// Returns the addresses in an answer, whatever alias they belong to: the server has followed the
/// aliases.
fn parse(answer: &[u8], wanted: u16) -> Option<Vec<IpAddr>> {
    let count = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let mut at = 12;
    for _ in 0..count(4)? {
        at = after_name(answer, at)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..count(6)? {
        at = after_name(answer, at)?;
        let (kind, length) = (count(at)?, usize::from(count(at + 8)?));
        let data = answer.get(at + 10..at + 10 + length)?;
        if kind == wanted {
            found.extend(address(data));
        }
        at += 10 + length;
    }
    Some(found)
}

fn address(data: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(data) {
        return Some(octets.into());
    }
    <[u8; 16]>::try_from(data).ok().map(IpAddr::from)
}

/// Returns the position after a name, which ends at its empty label or at a pointer to the rest of
/// it.
fn after_name(answer: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match answer.get(at)? {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            length => at += 1 + usize::from(*length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_servers_are_read() {
        let hosts = "127.0.0.1 localhost\n10.1.2.3\tbox.example Box # old\n# 1.1.1.1 box\n";
        assert_eq!(in_hosts(hosts, "BOX"), ["10.1.2.3".parse::<IpAddr>().expect("address")]);
        assert!(in_hosts(hosts, "old").is_empty());
        let servers = name_servers("search lan\nnameserver 10.0.2.3\n nameserver fd00::3\n");
        assert_eq!(
            servers,
            ["10.0.2.3:53".parse().expect("address"), "[fd00::3]:53".parse().expect("address")]
        );
    }

    #[test]
    fn an_answer_behind_an_alias_is_found() {
        let mut answer = query(7, "www.example.org", TYPE_A).expect("encodes");
        answer[7] = 2;
        answer.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 2, 0xc0, 16]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        assert_eq!(parse(&answer, TYPE_A), Some(vec!["192.0.2.1".parse().expect("address")]));
        assert_eq!(parse(&answer[..answer.len() - 1], TYPE_A), None, "truncated");
    }

    #[test]
    fn a_name_that_cannot_be_asked_for_is_refused() {
        assert_eq!(query(1, "a..b", TYPE_A), None);
        assert_eq!(query(1, &"x".repeat(64), TYPE_A), None);
    }
}
