//! Reports of the TCP ports on which something in a guest listens.
//!
//! On the stream, a report is a byte, 1 if it is cut, the number of its ports, and the ports, both
//! as 16-bit numbers in network byte order.

use bytes::{Buf as _, BytesMut};

/// Maximum number of ports in a report.
pub const MAX_REPORTED_PORTS: usize = 256;

/// TCP ports of a guest on which something listens that a program of the guest can reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListenerReport {
    /// The ports; at most [`MAX_REPORTED_PORTS`].
    pub ports: Vec<u16>,
    /// There are more.
    pub is_cut: bool,
}

/// Error for bytes that are no report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a report of listeners")]
pub struct ListenerReportError;

impl ListenerReport {
    /// Returns a report of these ports, cut if there are too many.
    pub fn of(ports: impl IntoIterator<Item = u16>) -> Self {
        let mut ports = ports.into_iter();
        let reported = ports.by_ref().take(MAX_REPORTED_PORTS).collect();
        Self { ports: reported, is_cut: ports.next().is_some() }
    }

    /// Returns the report's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let ports = &self.ports[..self.ports.len().min(MAX_REPORTED_PORTS)];
        let mut bytes = vec![u8::from(self.is_cut)];
        bytes.extend((ports.len() as u16).to_be_bytes());
        bytes.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        bytes
    }
}

/// Decoder of reports. Keeps less than one of them.
#[derive(Debug, Default)]
pub struct ListenerReports {
    buffer: BytesMut,
}

impl ListenerReports {
    /// Takes bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes all reports that are complete, and returns the last one.
    ///
    /// # Errors
    /// The bytes are no report.
    pub fn newest(&mut self) -> Result<Option<ListenerReport>, ListenerReportError> {
        let mut newest = None;
        while let [cut, high, low, rest @ ..] = &self.buffer[..] {
            let count = usize::from(u16::from_be_bytes([*high, *low]));
            if *cut > 1 || count > MAX_REPORTED_PORTS {
                return Err(ListenerReportError);
            }
            let Some(ports) = rest.get(..2 * count) else { break };
            let ports = ports.chunks_exact(2).map(|port| u16::from_be_bytes([port[0], port[1]]));
            newest = Some(ListenerReport { ports: ports.collect(), is_cut: *cut == 1 });
            self.buffer.advance(3 + 2 * count);
        }
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_report_counts_however_it_arrives() {
        let (first, last) = (ListenerReport::of([80, 65_535]), ListenerReport::of(1..=300));
        assert!(last.is_cut && last.ports.len() == MAX_REPORTED_PORTS && !first.is_cut);
        let empty = ListenerReport::default();
        let mut reports = ListenerReports::default();
        let bytes = [first.encode(), empty.encode(), last.encode()].concat();
        for byte in &bytes[..bytes.len() - 1] {
            reports.push(&[*byte]);
        }
        assert_eq!(reports.newest(), Ok(Some(empty)));
        assert_eq!(reports.newest(), Ok(None));
        reports.push(&bytes[bytes.len() - 1..]);
        assert_eq!(reports.newest(), Ok(Some(last)));
        reports.push(&first.encode());
        assert_eq!(reports.newest(), Ok(Some(first)));
        assert_eq!(reports.newest(), Ok(None));
    }

    #[test]
    fn what_is_no_report_is_an_error() {
        for bytes in [[2, 0, 0], [0, 1, 1], [255, 255, 255]] {
            let mut reports = ListenerReports::default();
            reports.push(&bytes);
            assert_eq!(reports.newest(), Err(ListenerReportError), "{bytes:?}");
        }
    }
}
