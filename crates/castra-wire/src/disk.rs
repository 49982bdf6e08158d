//! Data disks that the agent mounts.

use serde::{Deserialize, Serialize};

/// Kernel command-line parameter that lists the disks to be mounted, for a guest that boots while
/// no host is attached: `castra.disk=NAME:PATH,…`, with `+` after the name of a disk that nothing
/// has been written to.
pub const DISKS_ON_COMMAND_LINE: &str = "castra.disk";

/// A data disk of the guest, and what the agent does with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskOrder {
    /// Serial number of the virtio disk, at most 20 bytes.
    pub name: String,
    /// Absolute path at which it is mounted, once a blank one is formatted; `None` for a disk that
    /// is the user's affair.
    #[serde(default)]
    pub guest: Option<String>,
    /// True if nothing has ever been written to the disk, as the host knows: only then is it
    /// formatted. Data may be in the middle of a disk whose ends look blank.
    #[serde(default)]
    pub is_unwritten: bool,
}

impl DiskOrder {
    /// Returns the order as a part of [`DISKS_ON_COMMAND_LINE`], with a comma at its end: the path
    /// is percent-encoded, so that it has neither spaces nor quotation marks. Empty for a disk that
    /// is not mounted.
    pub fn on_command_line(&self) -> String {
        let Some(guest) = &self.guest else { return String::new() };
        let mut text = format!("{}{}:", self.name, if self.is_unwritten { "+" } else { "" });
        for byte in guest.bytes() {
            match byte {
                b'/' | b'-' | b'_' | b'.' => text.push(byte.into()),
                byte if byte.is_ascii_alphanumeric() => text.push(byte.into()),
                byte => text.push_str(&format!("%{byte:02X}")),
            }
        }
        text.push(',');
        text
    }
}

/// A data disk that is not mounted as it was ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFault {
    /// Name of the disk.
    pub name: String,
    /// The reason. Completes "disk `data` …".
    pub reason: String,
}

/// Parses the orders on a kernel's command line. Skips malformed ones.
pub fn disks_on_command_line(line: &str) -> Vec<DiskOrder> {
    let order = |text: &str| {
        let (name, guest) = text.split_once(':')?;
        let guest = Some(decoded(guest)?).filter(|guest| guest.starts_with('/'));
        let (name, is_unwritten) = match name.strip_suffix('+') {
            Some(name) => (name, true),
            None => (name, false),
        };
        Some(DiskOrder { name: name.to_owned(), guest: Some(guest?), is_unwritten })
    };
    let mut words = line.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    let found = words.find(|(name, _)| *name == DISKS_ON_COMMAND_LINE);
    found.map_or("", |(_, orders)| orders).split(',').filter_map(order).collect()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        let order = |name: &str, guest: &str, is_unwritten| DiskOrder {
            name: name.to_owned(),
            guest: Some(guest.to_owned()),
            is_unwritten,
        };
        let orders = [order("data", "/data", false), order("b", "/srv/a b,\"ä%\"=:", true)];
        let text: String = orders.iter().map(DiskOrder::on_command_line).collect();
        assert!(text.starts_with("data:/data,b+:/srv/a%20b%2C%22"), "{text}");
        let line = format!("root=/dev/vda {DISKS_ON_COMMAND_LINE}={text} rw");
        assert_eq!(disks_on_command_line(&line), orders);
        let raw = DiskOrder { name: "raw".to_owned(), guest: None, is_unwritten: true };
        assert_eq!(raw.on_command_line(), "");
    }

    #[test]
    fn malformed_orders_are_skipped() {
        for line in ["", "castra.disk=", "castra.disk=a", "castra.disk=a:b", "castra.disk=a:/%2"] {
            assert_eq!(disks_on_command_line(line), [], "{line}");
        }
        let line = "castra.disk=a:/%zz,b:/%FF,c:/c";
        let guest = Some("/c".to_owned());
        let only = DiskOrder { name: "c".to_owned(), guest, is_unwritten: false };
        assert_eq!(disks_on_command_line(line), [only]);
    }
}
