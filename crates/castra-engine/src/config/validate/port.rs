//! `[[vms.port_forwards]]`: ports of the host that are forwarded to a VM.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use super::super::diagnostics::{Problem, Problems};
use super::super::project::PortForward;
use super::super::schema::{Fields, Key, Value, key, wrong_type};
use crate::sockets::Protocol;

use toml::de::DeValue;

const HOST: Key = key("host", "8080");
const GUEST: Key = key("guest", "80");
const PROTOCOL: Key = key("protocol", "\"tcp\"");
const PROTOCOLS: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];

/// A port that cannot be forwarded.
#[derive(Debug, thiserror::Error)]
pub(super) enum PortProblem {
    #[error("the {side} port is 0")]
    Zero { side: &'static str },
    #[error("the {side} port {port} does not exist")]
    OutOfRange { side: &'static str, port: i128 },
    #[error("the {side} port is a range")]
    Range { side: &'static str },
    #[error("`{0}` is not a port forward")]
    Word(String),
    #[error("{} port {} of the host is forwarded twice", name_of(.0.protocol), .0.host)]
    Taken(PortForward),
}

impl Problem for PortProblem {
    fn label(&self) -> String {
        match self {
            Self::Zero { .. } | Self::OutOfRange { .. } => "must be 1 to 65535".to_owned(),
            Self::Range { .. } => "must be one port".to_owned(),
            Self::Word(_) => "must be a table, or \"auto\"".to_owned(),
            Self::Taken(_) => "and again here".to_owned(),
        }
    }

    fn help(&self) -> String {
        match self {
            Self::Zero { side: "host" } => {
                "Choose the port to connect to on this machine, for instance `host = 8080`."
                    .to_owned()
            }
            Self::Zero { .. } => {
                "Write the port of the service in the VM, for instance `guest = 80`.".to_owned()
            }
            Self::OutOfRange { .. } => {
                "Choose one from 1 to 65535; ports below 1024 may need root.".to_owned()
            }
            Self::Range { .. } => {
                "Write one forward per port. `castra port add` takes ranges, for \
                a VM that runs, and `port_forwards = \"auto\"` forwards whatever listens."
                    .to_owned()
            }
            Self::Word(text) => {
                let (host, guest) = text
                    .split_once(':')
                    .and_then(|(host, guest)| Some((host.parse().ok()?, guest.parse().ok()?)))
                    .unwrap_or((8080_u16, 80_u16));
                format!(
                    "Write `{{ host = {host}, guest = {guest} }}`, or `\"auto\"` for whatever \
                    listens in the VM."
                )
            }
            Self::Taken(forward) => {
                format!(
                    "Give one of them another host port, for instance `host = {}`.",
                    neighbour(forward.host)
                )
            }
        }
    }
}

/// Word for forwards of whatever listens in the VM.
const AUTO: &str = "auto";

/// A forward, and the span of its host port.
pub(super) type SpannedForward = (PortForward, Range<usize>);

/// Reads a VM's forwards: a list of tables, `"auto"`, or a list that contains both. Returns the
/// tables, and `true` if whatever listens is forwarded.
pub(super) fn read(
    value: &Value<'_>,
    place: Key,
    vm: &str,
    problems: &mut Problems,
) -> (Vec<SpannedForward>, bool) {
    let elements = match value.get_ref() {
        DeValue::Array(elements) => &elements[..],
        DeValue::String(_) => std::slice::from_ref(value),
        other => {
            problems.error(value.span(), &wrong_type(place, "a list or \"auto\"", other));
            &[]
        }
    };
    let (mut forwards, mut is_auto) = (Vec::new(), false);
    for element in elements {
        match element.get_ref().as_str() {
            Some(AUTO) => is_auto = true,
            Some(word) => problems.error(element.span(), &PortProblem::Word(word.to_owned())),
            None => forwards.extend(read_forward(element, place, vm, problems)),
        }
    }
    (forwards, is_auto)
}

/// Reads one table; `None` if it cannot even be compared with others.
fn read_forward(
    value: &Value<'_>,
    place: Key,
    vm: &str,
    problems: &mut Problems,
) -> Option<SpannedForward> {
    let mut fields = Fields::of_element(value, place, format!("a port forward of {vm}"), problems)?;
    let host = read_port(&mut fields, HOST, "host", problems);
    let guest = read_port(&mut fields, GUEST, "guest", problems);
    let protocol =
        fields.word(PROTOCOL, &PROTOCOLS, problems).map_or(Protocol::Tcp, |word| *word.get_ref());
    let host_span = fields.value(HOST).map(Value::span);
    fields.warn_unknown(problems);
    Some((PortForward { host: host?, guest: guest?, protocol }, host_span?))
}

/// Reports host ports that two forwards claim, whichever VMs they belong to.
pub(super) fn check_host_ports<'f>(
    forwards: impl Iterator<Item = &'f SpannedForward>,
    problems: &mut Problems,
) {
    let mut taken: HashMap<(Protocol, u16), &Range<usize>> = HashMap::new();
    for (forward, span) in forwards {
        match taken.entry((forward.protocol, forward.host)) {
            Entry::Vacant(free) => drop(free.insert(span)),
            Entry::Occupied(there) => {
                let problem = PortProblem::Taken(*forward);
                problems.error_because_of(
                    span.clone(),
                    &problem,
                    (*there.get()).clone(),
                    "forwarded here",
                );
            }
        }
    }
}

fn read_port(
    fields: &mut Fields<'_>,
    key: Key,
    side: &'static str,
    problems: &mut Problems,
) -> Option<u16> {
    if !fields.has(key) {
        fields.missing(key, problems);
    }
    if let Some(value) = fields.value(key)
        && value.get_ref().as_str().is_some_and(is_range)
    {
        problems.error(value.span(), &PortProblem::Range { side });
        return None;
    }
    let port = fields.integer(key, problems)?;
    let problem = match u16::try_from(*port.get_ref()) {
        Ok(0) => PortProblem::Zero { side },
        Ok(number) => return Some(number),
        Err(_) => PortProblem::OutOfRange { side, port: *port.get_ref() },
    };
    problems.error(port.span(), &problem);
    None
}

/// Returns `true` for two numbers with a dash.
fn is_range(text: &str) -> bool {
    let is_number = |text: &str| text.trim().parse::<u32>().is_ok();
    text.split_once('-').is_some_and(|(first, last)| is_number(first) && is_number(last))
}

fn name_of(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}

fn neighbour(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(port - 1)
}
