//! Ports of this machine and their owners, as far as the kernel shows them below `/proc`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Protocol of a port.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Owner of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortOwner {
    /// A VM.
    Vm {
        /// Name of the VM.
        vm: String,
        /// Directory of its project, if that is another one.
        project: Option<PathBuf>,
    },
    /// A process of this user's.
    Process {
        /// Name, as `ps` shows it.
        name: String,
        /// Process ID.
        pid: i32,
    },
    /// A process of another user's.
    OtherUser,
    /// Not reported by the kernel.
    Unknown,
}

impl fmt::Display for PortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm { vm, project: None } => write!(f, "VM `{vm}`"),
            Self::Vm { vm, project: Some(project) } => {
                write!(f, "VM `{vm}` of {}", project.display())
            }
            Self::Process { name, pid } => write!(f, "`{name}` (process {pid})"),
            Self::OtherUser => f.write_str("a process of another user"),
            Self::Unknown => f.write_str("an unknown process"),
        }
    }
}

/// A socket that prevents binding a port of 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSocket {
    inode: u64,
    /// User ID of its owner.
    pub user: u32,
}

/// A process of this user's that holds a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Process ID.
    pub pid: i32,
    /// Name, as `ps` shows it.
    pub name: String,
}

/// Returns the sockets that prevent binding this port of 127.0.0.1.
pub fn sockets_on(port: u16, protocol: Protocol) -> Vec<PortSocket> {
    let tables = match protocol {
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => ["/proc/net/udp", "/proc/net/udp6"],
    };
    let text = tables.map(|table| fs::read_to_string(table).unwrap_or_default()).concat();
    parse(&text, port, protocol)
}

/// Returns the process of this user's that holds one of these sockets.
pub fn holder_of(sockets: &[PortSocket]) -> Option<Holder> {
    let links: Vec<String> =
        sockets.iter().map(|socket| format!("socket:[{}]", socket.inode)).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids {
        // Other users' processes do not show their descriptors.
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let is_it =
            |link: &Path| link.to_str().is_some_and(|link| links.iter().any(|one| one == link));
        if open.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|link| is_it(&link))) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some(Holder { pid, name: name.trim_end().to_owned() });
        }
    }
    None
}

/// Parses the kernel's table (`proc_pid_net(5)`): addresses in the machine's own byte order, in
/// hexadecimal.
fn parse(text: &str, port: u16, protocol: Protocol) -> Vec<PortSocket> {
    /// `TCP_LISTEN` of the kernel's `tcp_states.h`.
    const LISTENING: &str = "0A";
    let local = format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]));
    let mapped = format!("0000000000000000{:08X}{local}", u32::from_ne_bytes([0, 0, 0xff, 0xff]));
    let conflicts = |address: &str| {
        address == local || address == mapped || address.bytes().all(|byte| byte == b'0')
    };
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, number) = fields.get(1)?.split_once(':')?;
        let is_taken = protocol == Protocol::Udp || fields.get(3) == Some(&LISTENING);
        if !is_taken || !conflicts(address) || u16::from_str_radix(number, 16) != Ok(port) {
            return None;
        }
        Some(PortSocket { user: fields.get(7)?.parse().ok()?, inode: fields.get(9)?.parse().ok()? })
    };
    text.lines().filter_map(socket).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};

    #[test]
    fn this_process_is_found_by_its_sockets() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bound");
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bound");
        let port =
            |address: std::io::Result<std::net::SocketAddr>| address.expect("an address").port();
        for (port, protocol) in
            [(port(tcp.local_addr()), Protocol::Tcp), (port(udp.local_addr()), Protocol::Udp)]
        {
            let sockets = sockets_on(port, protocol);
            assert_eq!(holder_of(&sockets).expect("held").pid, pid, "{protocol}");
        }
        let free = port(tcp.local_addr());
        drop(tcp);
        assert_eq!(sockets_on(free, Protocol::Tcp), []);
    }

    #[test]
    fn other_addresses_are_in_nobodys_way() {
        let (line, port) = (u32::from_ne_bytes([10, 0, 0, 1]), 8080);
        let text = format!("0: {line:08X}:1F90 00000000:0000 0A 0:0 00:0 0 1000 0 7 1 0");
        assert_eq!(parse(&text, port, Protocol::Tcp), []);
        let mapped = Ipv6Addr::from([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1]);
        let words = mapped.octets().chunks_exact(4).fold(String::new(), |text, word| {
            format!("{text}{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
        });
        let text = format!("0: {words}:1F90 00000000:0000 0A 0:0 00:0 0 1000 0 7 1 0");
        assert_eq!(parse(&text, port, Protocol::Tcp), [PortSocket { inode: 7, user: 1000 }]);
        // A connection, not a listener.
        assert_eq!(parse(&text.replace(" 0A ", " 01 "), port, Protocol::Tcp), []);
    }
}
