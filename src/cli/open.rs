//! `castra open`: shows a service of a VM in a browser.

use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::command::{Invocation, find_program, spawn_for_user};
use castra_engine::config::PortForward;
use castra_engine::context::Environment;
use castra_engine::error::Result;
use castra_engine::guest::{LiveForward, LiveState, Reach};
use castra_engine::sockets::Protocol;
use castra_engine::vm::{self, PortError, RecordError, VmError, VmStatus};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::OpenArgs;
use super::context::CommandContext;

/// The address that was opened.
#[derive(Serialize, JsonSchema)]
pub(super) struct Opened {
    /// The VM.
    vm: String,
    /// Address for a browser.
    url: String,
    /// Port on 127.0.0.1.
    host: u16,
    /// Port in the VM.
    guest: u16,
    /// True if a browser was started.
    opened: bool,
}

/// Ports of web servers, those that are most likely meant first.
const WEB_PORTS: [u16; 12] = [80, 443, 8080, 8443, 3000, 5173, 8000, 4200, 5000, 4000, 8888, 9000];

/// Ports of web servers that expect TLS.
const TLS_PORTS: [u16; 2] = [443, 8443];

/// Variables that name a display, without which no browser has a window.
const DISPLAYS: [&str; 2] = ["DISPLAY", "WAYLAND_DISPLAY"];

/// Program that opens an address in the user's browser.
const OPENER: &str = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };

/// Opens the address that leads to a port of a VM, and prints it.
pub(super) fn run(open: &OpenArgs, context: &CommandContext) -> Result<ExitCode> {
    let (vm, port) = meant(open);
    let vm = vm::running_vm(vm, context.project()?)?.name;
    let status = vm::status_of(&vm, context.layout()?)?;
    let status = status.ok_or_else(|| RecordError::unknown(&vm, &[] as &[&str]))?;
    let forwards = forwards(&status);
    let services = match port {
        Some(_) => Vec::new(),
        None => vm::services(&vm, context.project()?),
    };
    let alive: Vec<_> = forwards.iter().copied().filter(|it| !is_dead(it, &services)).collect();
    // A port that nothing listens on may be the right one all the same.
    let LiveForward { host, guest } = choose(&alive, port)
        .or_else(|| choose(&forwards, port))
        .ok_or_else(|| VmError::from(PortError::NotForwarded { vm: vm.clone(), guest: port }))?;
    let scheme = if TLS_PORTS.contains(&guest) { "https" } else { "http" };
    let url = format!("{scheme}://127.0.0.1:{host}/");
    let started = start_browser(&url, &context.runtime.environment);
    let opened = started.is_ok();
    context
        .printer
        .show(&Opened { vm, url: url.clone(), host, guest, opened }, &format!("{url}\n"))?;
    if let Err(reason) = started {
        context
            .printer
            .tip(&format!("No browser was started: {reason}. Open the address in yours."));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the VM and the port that are meant: a number alone is a port of the only VM.
fn meant(open: &OpenArgs) -> (Option<&str>, Option<u16>) {
    let vm = open.vm.as_deref();
    match vm.map(str::parse) {
        Some(Ok(port)) if open.port.is_none() => (None, Some(port)),
        _ => (vm, open.port),
    }
}

/// Returns the TCP ports of this machine that lead to a VM now.
fn forwards(status: &VmStatus) -> Vec<LiveForward> {
    let declared = status.port_forwards.iter().filter(|one| one.protocol == Protocol::Tcp);
    let declared = declared.map(|one| LiveForward { host: one.host, guest: one.guest });
    let live = status.live_ports.iter().filter(|one| one.state == Some(LiveState::Open));
    declared.chain(live.map(|one| one.forward)).collect()
}

/// Returns `true` if the guest's agent reports that nothing listens behind a forward.
fn is_dead(forward: &LiveForward, services: &[(PortForward, Reach)]) -> bool {
    let LiveForward { host, guest } = *forward;
    let forward = PortForward { host, guest, protocol: Protocol::Tcp };
    services.iter().any(|(of, reach)| *of == forward && *reach == Reach::Nothing)
}

/// Returns the forward to a port of the guest, else from one of this machine; without a port, that
/// to the likeliest web server.
fn choose(forwards: &[LiveForward], port: Option<u16>) -> Option<LiveForward> {
    let rank = |forward: &&LiveForward| {
        let place = WEB_PORTS.iter().position(|port| *port == forward.guest);
        (place.unwrap_or(WEB_PORTS.len()), forward.guest, forward.host)
    };
    let found = match port {
        None => forwards.iter().min_by_key(rank),
        Some(port) => forwards
            .iter()
            .find(|forward| forward.guest == port)
            .or_else(|| forwards.iter().find(|forward| forward.host == port)),
    };
    found.copied()
}

/// Starts the user's browser, without waiting for it. No shell is involved, and the address has
/// nothing of the guest's.
fn start_browser(url: &str, environment: &Environment) -> Result<(), String> {
    let invocation = browser(url, environment)?.environment(environment.clone());
    spawn_for_user(&invocation).map(drop).map_err(|error| error.to_string())
}

/// Returns the command of the browser.
fn browser(url: &str, environment: &Environment) -> Result<Invocation, &'static str> {
    let found = |name: &str| find_program(environment, name);
    // `$BROWSER` is a list of commands, with the address in place of `%s` or at the end.
    if let Some(browsers) = environment.text("BROWSER") {
        return browsers
            .split(':')
            .find_map(|command| of_command(command, url, found))
            .ok_or("no program of $BROWSER is installed");
    }
    if !cfg!(target_os = "macos") && DISPLAYS.iter().all(|name| environment.text(name).is_none()) {
        return Err("there is no display");
    }
    found(OPENER)
        .map(|program| Invocation::new(program).arg(url))
        .ok_or("xdg-open is not installed")
}

/// Returns an invocation of a command of `$BROWSER`, if its program is installed.
fn of_command(
    command: &str,
    url: &str,
    found: impl Fn(&str) -> Option<PathBuf>,
) -> Option<Invocation> {
    let mut words = command.split_whitespace();
    let mut invocation = Invocation::new(found(words.next()?)?);
    let mut has_url = false;
    for word in words {
        has_url |= word.contains("%s");
        invocation = invocation.arg(word.replace("%s", url));
    }
    Some(if has_url { invocation } else { invocation.arg(url) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn forward(host: u16, guest: u16) -> LiveForward {
        LiveForward { host, guest }
    }

    #[test]
    fn the_likeliest_web_server_is_meant() {
        let all = [forward(5432, 5432), forward(3000, 3000), forward(8443, 443), forward(8081, 80)];
        assert_eq!(choose(&all, None), Some(forward(8081, 80)));
        assert_eq!(choose(&all[..3], None), Some(forward(8443, 443)));
        assert_eq!(choose(&all[..1], None), Some(forward(5432, 5432)));
        assert_eq!(choose(&[], None), None);
        assert_eq!(choose(&all, Some(443)), Some(forward(8443, 443)));
        assert_eq!(choose(&all, Some(8081)), Some(forward(8081, 80)), "a port of this machine");
        assert_eq!(choose(&all, Some(1)), None);
    }

    #[test]
    fn a_forward_that_nothing_listens_behind_is_dead() {
        let services = [(80, Reach::Nothing), (3000, Reach::Network), (9000, Reach::Loopback)].map(
            |(guest, reach)| {
                (PortForward { host: guest + 1, guest, protocol: Protocol::Tcp }, reach)
            },
        );
        assert!(is_dead(&forward(81, 80), &services));
        assert!(!is_dead(&forward(8080, 80), &services), "another one");
        assert!(!is_dead(&forward(3001, 3000), &services));
        assert!(!is_dead(&forward(9001, 9000), &services), "a warning says that");
        assert!(!is_dead(&forward(5432, 5432), &services), "an unknown one");
    }

    #[test]
    fn the_users_browser_gets_the_address_as_one_word() {
        let (url, sh) = ("http://127.0.0.1:8080/", PathBuf::from("/bin/sh"));
        let of = |variables: &[(&str, &str)]| {
            browser(url, &Environment::of(variables.iter().copied()))
                .map(|invocation| (invocation.program, invocation.arguments))
        };
        let words = |words: &[&str]| words.iter().map(std::ffi::OsString::from).collect();
        assert_eq!(of(&[("BROWSER", "/bin/sh")]), Ok((sh.clone(), words(&[url]))));
        let listed = "/none -x:/bin/sh -c u=%s";
        let with_url = words(&["-c", "u=http://127.0.0.1:8080/"]);
        assert_eq!(of(&[("BROWSER", listed)]), Ok((sh, with_url)));
        assert_eq!(of(&[("BROWSER", "/none")]), Err("no program of $BROWSER is installed"));
        if !cfg!(target_os = "macos") {
            assert_eq!(of(&[("PATH", "/none")]), Err("there is no display"));
            let display = [("PATH", "/none"), ("DISPLAY", ":0")];
            assert_eq!(of(&display), Err("xdg-open is not installed"));
        }
    }
}
