//! `castra port add` and `castra port rm`: ports that are forwarded to a VM while it runs.

use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::guest::{LiveForward, MAX_ADDED_FORWARDS};
use castra_engine::vm;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{PortArgs, PortCommand};
use super::context::CommandContext;

/// Ports of a VM that were added or removed.
#[derive(Serialize, JsonSchema)]
pub(super) struct ChangedPorts {
    /// The VM.
    vm: String,
    /// Ports that lead to the VM now, or no longer.
    ports: Vec<LiveForward>,
}

/// Ports of this machine, with those of the guest if they are named, as the command line describes
/// them: `8080:80`, `8080`, or ranges of the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortWord(Vec<(u16, Option<u16>)>);

/// Way out for UDP, to which a running VM's forwards do not extend.
const UDP: &str = "only TCP ports can be added to a running VM; declare UDP ports in castra.toml, \
    with `protocol = \"udp\"`, and restart the VM";

/// Parses `HOST[:GUEST]`, where each may be a range.
pub(super) fn parse(text: &str) -> Result<PortWord, String> {
    let ports = match text.rsplit_once('/') {
        None => text,
        Some((ports, "tcp")) => ports,
        Some((_, "udp")) => return Err(UDP.to_owned()),
        Some((_, other)) => return Err(format!("`{other}` is neither tcp nor udp")),
    };
    let (host, guest) = match ports.split_once(':') {
        Some((host, guest)) => (range(host)?, Some(range(guest)?)),
        None => (range(ports)?, None),
    };
    let Some(guest) = guest else {
        return Ok(PortWord(host.map(|port| (port, None)).collect()));
    };
    if host.clone().count() != guest.clone().count() {
        return Err("both ranges must have the same number of ports".to_owned());
    }
    Ok(PortWord(host.zip(guest).map(|(host, guest)| (host, Some(guest))).collect()))
}

/// Parses a port, or a range of them.
fn range(text: &str) -> Result<std::ops::RangeInclusive<u16>, String> {
    let port = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a port: write a number from 1 to 65535")),
        Ok(port) => Ok(port),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    match usize::from(last).checked_sub(usize::from(first)) {
        None => Err(format!("`{text}` ends before it begins")),
        Some(more) if more >= MAX_ADDED_FORWARDS => {
            Err(format!("`{text}` has more than {MAX_ADDED_FORWARDS} ports"))
        }
        Some(_) => Ok(first..=last),
    }
}

/// Runs one subcommand.
pub(super) fn run(port: &PortArgs, context: &CommandContext) -> Result<ExitCode> {
    match &port.command {
        PortCommand::Add { vm, ports } => add(vm, ports, context),
        PortCommand::Rm { vm, ports } => remove(vm, ports, context),
    }
}

fn add(vm: &str, ports: &[PortWord], context: &CommandContext) -> Result<ExitCode> {
    let all = ports.iter().flat_map(|word| &word.0);
    let forwards: Vec<LiveForward> = all
        .map(|(host, guest)| LiveForward { host: *host, guest: guest.unwrap_or(*host) })
        .collect();
    vm::add_forwards(vm, &forwards, context.project()?)?;
    for forward in &forwards {
        context.printer.success(&format!("VM `{vm}`: {forward}"));
    }
    context.printer.show(&ChangedPorts { vm: vm.to_owned(), ports: forwards }, "")?;
    Ok(ExitCode::SUCCESS)
}

fn remove(vm: &str, ports: &[PortWord], context: &CommandContext) -> Result<ExitCode> {
    let ports: Vec<_> = ports.iter().flat_map(|word| word.0.clone()).collect();
    let removed = vm::remove_forwards(vm, &ports, context.project()?)?;
    for LiveForward { host, .. } in &removed {
        context.printer.success(&format!("VM `{vm}`: 127.0.0.1:{host} is closed"));
    }
    context.printer.show(&ChangedPorts { vm: vm.to_owned(), ports: removed }, "")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges_are_parsed() {
        let word = |ports: &[(u16, Option<u16>)]| Ok(PortWord(ports.to_vec()));
        assert_eq!(parse("8080:80"), word(&[(8080, Some(80))]));
        assert_eq!(parse("3000"), word(&[(3000, None)]));
        assert_eq!(parse("65535:1/tcp"), word(&[(65535, Some(1))]));
        assert_eq!(parse("8000-8001:90-91"), word(&[(8000, Some(90)), (8001, Some(91))]));
        assert_eq!(parse("1-128").expect("a range").0.len(), 128);
    }

    #[test]
    fn a_bad_port_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "`` is not a port: write a number from 1 to 65535"),
            ("0:80", "`0` is not a port: write a number from 1 to 65535"),
            ("80:65536", "`65536` is not a port: write a number from 1 to 65535"),
            ("127.0.0.1:80", "`127.0.0.1` is not a port: write a number from 1 to 65535"),
            ("2-1", "`2-1` ends before it begins"),
            ("1-129", "`1-129` has more than 128 ports"),
            ("1-2:1-3", "both ranges must have the same number of ports"),
            ("53:53/udp", UDP),
            ("53:53/sctp", "`sctp` is neither tcp nor udp"),
        ] {
            assert_eq!(parse(text), Err(reason.to_owned()), "{text}");
        }
    }
}
