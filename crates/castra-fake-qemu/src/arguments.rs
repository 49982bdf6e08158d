//! QEMU's command line, as far as this program needs it. An unknown option is an error of the test.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

/// Arguments from castra.
pub(crate) struct Arguments {
    pub(crate) name: String,
    pub(crate) pidfile: PathBuf,
    pub(crate) disk: PathBuf,
    /// Data disks: serial number and file.
    pub(crate) data_disks: Vec<(String, PathBuf)>,
    pub(crate) console: PathBuf,
    /// Kernel, and its command line.
    pub(crate) kernel: Option<(PathBuf, String)>,
    /// CPU model and flags.
    pub(crate) cpu: String,
    /// Files that memory is written to, with their size in bytes.
    pub(crate) memory: Vec<(PathBuf, u64)>,
    /// Protocol and port on 127.0.0.1.
    pub(crate) forwards: Vec<(String, u16)>,
    pub(crate) qmp: RawFd,
    pub(crate) control: RawFd,
    /// Numbers of the ports on the virtio-serial bus. Nothing answers on those for streams, whose
    /// sockets stay open all the same.
    pub(crate) serial_ports: Vec<u32>,
    /// Set if a saved state follows, instead of a boot.
    pub(crate) is_incoming: bool,
}

impl Arguments {
    pub(crate) fn of_process() -> Self {
        Self::of(std::env::args_os().skip(1).collect())
    }

    fn of(words: Vec<OsString>) -> Self {
        let values = |option: &'static str| {
            words.windows(2).filter(move |pair| pair[0] == option).map(|pair| pair[1].clone())
        };
        let all: Vec<Vec<(String, OsString)>> =
            ["-name", "-blockdev", "-chardev", "-object", "-netdev"]
                .into_iter()
                .flat_map(values)
                .map(pairs)
                .collect();
        let find = |key: &str, has: &str| {
            let group = all
                .iter()
                .find(|group| group.iter().any(|(name, value)| name == "id" && value == has));
            group.and_then(|group| value_of(group, key))
        };
        let any = |key: &str| all.iter().find_map(|group| value_of(group, key));
        let number = |value: Option<OsString>| {
            value.and_then(|value| value.to_str()?.parse().ok()).expect("a number")
        };
        let hostfwd = all.iter().flatten().filter(|(name, _)| name == "hostfwd");
        Self {
            name: any("guest").expect("-name").to_string_lossy().into_owned(),
            pidfile: values("-pidfile").next().expect("-pidfile").into(),
            disk: disk(&all).expect("-blockdev").into(),
            data_disks: data_disks(values("-device").map(pairs), &all),
            console: find("logfile", "console").expect("the console's chardev").into(),
            kernel: values("-kernel")
                .next()
                .zip(values("-append").next())
                .map(|(kernel, line)| (kernel.into(), line.to_string_lossy().into_owned())),
            cpu: values("-cpu").next().expect("-cpu").to_string_lossy().into_owned(),
            memory: memory(&all),
            forwards: hostfwd.map(|(_, value)| forward(&value.to_string_lossy())).collect(),
            qmp: number(find("fd", "qmp")),
            control: number(find("fd", "control")),
            serial_ports: serial_ports(values("-device").map(pairs), |chardev| {
                find("fd", chardev).is_some()
            }),
            is_incoming: words.iter().any(|word| word == "-incoming"),
        }
    }
}

/// Returns the numbers of the ports on the virtio-serial bus, as QEMU gives them out: the control
/// port, which comes first and names none, gets the first that is not reserved.
fn serial_ports(
    devices: impl Iterator<Item = Vec<(String, OsString)>>,
    is_chardev: impl Fn(&str) -> bool,
) -> Vec<u32> {
    /// Number of ports of a bus that does not say.
    const DEFAULT_PORTS: u32 = 31;
    let number = |value: OsString| value.to_str().and_then(|text| text.parse::<u32>().ok());
    let mut limit = DEFAULT_PORTS;
    let mut taken = Vec::new();
    for device in devices {
        match device[0].0.as_str() {
            "virtio-serial-pci" => {
                limit = value_of(&device, "max_ports").and_then(number).unwrap_or(DEFAULT_PORTS);
            }
            "virtserialport" => {
                let chardev = value_of(&device, "chardev").expect("a chardev");
                assert!(is_chardev(&chardev.to_string_lossy()), "no chardev {chardev:?}");
                let port = value_of(&device, "nr").map_or(Some(1), number).expect("a number");
                assert!(port < limit && !taken.contains(&port), "port {port} of {limit}");
                taken.push(port);
            }
            _ => {}
        }
    }
    taken
}

/// Returns the file that the VM writes to; those below it are only read.
fn disk(all: &[Vec<(String, OsString)>]) -> Option<OsString> {
    let is_disk = |group: &&Vec<(String, OsString)>| {
        value_of(group, "node-name").is_some_and(|name| name == "disk-file")
    };
    value_of(all.iter().find(is_disk)?, "filename")
}

/// Returns the disks that have a serial number, which is also the name of their node.
fn data_disks(
    devices: impl Iterator<Item = Vec<(String, OsString)>>,
    all: &[Vec<(String, OsString)>],
) -> Vec<(String, PathBuf)> {
    let text = |value: OsString| value.to_string_lossy().into_owned();
    let disk = |device: Vec<(String, OsString)>| {
        let serial = text(value_of(&device, "serial")?);
        let file = format!("{}-file", text(value_of(&device, "drive")?));
        let is_file = |group: &&Vec<(String, OsString)>| {
            value_of(group, "node-name").is_some_and(|name| text(name) == file)
        };
        let path = value_of(all.iter().find(is_file)?, "filename").expect("a file");
        Some((serial, path.into()))
    };
    devices.filter_map(disk).collect()
}

fn memory(all: &[Vec<(String, OsString)>]) -> Vec<(PathBuf, u64)> {
    let is_written = |group: &&Vec<(String, OsString)>| {
        value_of(group, "share").is_some_and(|share| share == "on")
    };
    let files = all.iter().filter(is_written).filter_map(|group| {
        let mib =
            value_of(group, "size")?.to_string_lossy().strip_suffix('M')?.parse::<u64>().ok()?;
        Some((value_of(group, "mem-path")?.into(), mib << 20))
    });
    files.collect()
}

/// Parses `tcp:127.0.0.1:8080-:80`.
fn forward(rule: &str) -> (String, u16) {
    let mut parts = rule.split(':');
    let protocol = parts.next().unwrap_or_default().to_owned();
    let port = parts
        .nth(1)
        .and_then(|port| port.strip_suffix('-')?.parse().ok())
        .expect("a forwarding rule");
    (protocol, port)
}

fn value_of(group: &[(String, OsString)], key: &str) -> Option<OsString> {
    group.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
}

/// Parses `driver=qcow2,path=/a,,b` into pairs; a doubled comma is part of the value.
fn pairs(list: OsString) -> Vec<(String, OsString)> {
    let mut parts = vec![Vec::new()];
    let mut bytes = list.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' if bytes.peek() == Some(&b',') => {
                parts.last_mut().expect("never empty").extend(bytes.next())
            }
            b',' => parts.push(Vec::new()),
            byte => parts.last_mut().expect("never empty").push(byte),
        }
    }
    let pair = |part: Vec<u8>| {
        let at = part.iter().position(|byte| *byte == b'=').unwrap_or(part.len());
        let value = part.get(at + 1..).unwrap_or_default().to_owned();
        (String::from_utf8_lossy(&part[..at]).into_owned(), OsString::from_vec(value))
    };
    parts.into_iter().map(pair).collect()
}
