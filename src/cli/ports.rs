//! `castra ports`: lists forwarded ports, active and declared, and the processes that hold them.

use std::path::PathBuf;
use std::process::ExitCode;

use castra_engine::config::PortForward;
use castra_engine::error::Result;
use castra_engine::guest::{LiveForward, LiveOrigin, LiveState, Reach};
use castra_engine::layout::ProjectLayout;
use castra_engine::sockets::{PortOwner, Protocol};
use castra_engine::vm::{self, RecordError, SYSTEM_SSH_PORT, VmState, VmStatus};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::PortsArgs;
use super::context::CommandContext;
use super::table::table;

/// Ports of this machine, and the VMs they lead to.
#[derive(Serialize, JsonSchema)]
pub(super) struct PortList {
    /// Ports, by VM.
    ports: Vec<Port>,
}

/// A port of this machine that leads to a VM, or is declared to.
#[derive(Serialize, JsonSchema)]
struct Port {
    /// Name of the VM.
    vm: String,
    /// Protocol of both ports.
    protocol: Protocol,
    /// Port on 127.0.0.1.
    host: u16,
    /// Port in the guest.
    guest: u16,
    /// Purpose of the port.
    purpose: Purpose,
    /// True if the VM's definition declares the port now.
    declared: bool,
    /// True if the port leads to the VM now.
    active: bool,
    /// Owner of a declared or added port that is taken.
    taken_by: Option<Taken>,
    /// Service behind an active forward, if the guest's agent reports it.
    service: Option<Service>,
}

/// The service behind a port of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Service {
    /// No service listens on the port.
    None,
    /// The service listens only on a loopback address of the guest, which a forward does not reach.
    Unreachable,
    /// The forward reaches the service.
    Reachable,
}

/// Purpose of a port.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Purpose {
    /// Castra's own access to the guest.
    Ssh,
    /// Declared in castra.toml.
    Forward,
    /// Added while the VM runs, until it stops.
    Added,
    /// Forwarded as long as something in the VM listens.
    Auto,
}

/// Owner of a port.
#[derive(Serialize, JsonSchema)]
struct Taken {
    /// The owner in words.
    text: String,
    /// The VM, if the owner is one.
    vm: Option<String>,
    /// Directory of that VM's project, if it is another project.
    project: Option<PathBuf>,
    /// The process, if it belongs to this user and is not a VM.
    pid: Option<i32>,
}

/// Lists the ports of VMs, in use or only declared, and the owners of declared ports that are
/// taken.
pub(super) fn run(ports: &PortsArgs, context: &CommandContext) -> Result<ExitCode> {
    let layout = context.layout()?;
    let running: Vec<VmStatus> = vm::status(layout)
        .into_iter()
        .filter_map(|(_, status)| status.ok())
        .filter(|status| status.state.is_alive() && status.state != VmState::Stopping)
        .collect();
    // Without a readable configuration, no port is known to be declared.
    let config = context.silent_config().ok();
    let declared: Vec<(String, Vec<PortForward>)> = config
        .into_iter()
        .flat_map(|config| &config.vms)
        .map(|vm| (vm.name.clone(), vm.port_forwards.clone()))
        .collect();
    let names: Vec<&String> =
        declared.iter().map(|(name, _)| name).chain(running.iter().map(|vm| &vm.name)).collect();
    for name in ports.vms.iter().filter(|name| !names.contains(name)) {
        // A VM without ports is still a known VM.
        vm::recorded_vm(Some(name), layout).map_err(|error| match error {
            RecordError::Unknown { .. } => RecordError::unknown(name, &names),
            error => error,
        })?;
    }
    let mut content = PortList { ports: Vec::new() };
    let is_meant = |vm: &String| ports.vms.is_empty() || ports.vms.contains(vm);
    for status in running.iter().filter(|status| is_meant(&status.name)) {
        content.add_active(
            status,
            &declared,
            &vm::services(&status.name, vm::ProjectRef::new(layout, &context.runtime)),
            layout,
        );
    }
    declared.iter().for_each(|(vm, forwards)| content.add_declared(vm, forwards, layout));
    content.ports.retain(|port| is_meant(&port.vm));
    content.ports.sort_by(|one, other| one.vm.cmp(&other.vm));
    if content.ports.is_empty() {
        context.printer.tip("No VM is running here, and castra.toml declares no ports.");
    }
    let text = if content.ports.is_empty() { String::new() } else { content.text() };
    context.printer.show(&content, &text)?;
    for status in running.iter().filter(|status| is_meant(&status.name)) {
        let project = vm::ProjectRef::new(layout, &context.runtime);
        vm::acknowledge_ports(&status.name, project);
        for fault in status.companion_faults() {
            let (fault, way_out) = (fault.in_words(&status.name), fault.way_out(&status.name));
            context.printer.warning(&format!("{fault}. {way_out}"));
        }
        if let Some(trouble) = &status.port_trouble {
            let vm = &status.name;
            context.printer.warning(&format!("VM `{vm}`: not all is forwarded: {trouble}"));
        }
    }
    for port in content.ports.iter().filter(|port| port.service == Some(Service::Unreachable)) {
        context.printer.warning(&format!(
            "the service on port {}/{} of VM `{}` listens on 127.0.0.1 only, which the forward \
            from port {} cannot reach; make it listen on 0.0.0.0",
            port.guest, port.protocol, port.vm, port.host
        ));
    }
    Ok(ExitCode::SUCCESS)
}

impl PortList {
    fn add_active(
        &mut self,
        status: &VmStatus,
        declared: &[(String, Vec<PortForward>)],
        services: &[(PortForward, Reach)],
        layout: &ProjectLayout,
    ) {
        let wanted =
            declared.iter().find(|(vm, _)| *vm == status.name).map(|(_, forwards)| forwards);
        self.ports.extend(status.ssh_port.map(|host| Port {
            vm: status.name.clone(),
            protocol: Protocol::Tcp,
            host,
            guest: match status.native {
                Some(_) => SYSTEM_SSH_PORT,
                None => castra_engine::guest::SSH_PORT,
            },
            purpose: Purpose::Ssh,
            declared: false,
            active: true,
            taken_by: None,
            service: None,
        }));
        self.ports.extend(status.port_forwards.iter().map(|forward| Port {
            declared: wanted.is_some_and(|wanted| wanted.contains(forward)),
            active: true,
            service:
                services.iter().find(|(of, _)| of == forward).map(|(_, reach)| (*reach).into()),
            ..Port::new(&status.name, forward)
        }));
        self.ports.extend(status.live_ports.iter().map(|port| {
            let LiveForward { host, guest } = port.forward;
            let forward = PortForward { host, guest, protocol: Protocol::Tcp };
            let owner = match port.state {
                Some(LiveState::Failed(_)) => vm::port_owner(host, Protocol::Tcp, layout),
                _ => None,
            };
            Port {
                taken_by: owner.map(Taken::by),
                purpose: match port.origin {
                    LiveOrigin::Added => Purpose::Added,
                    LiveOrigin::Auto => Purpose::Auto,
                },
                declared: false,
                active: port.state == Some(LiveState::Open),
                service: services
                    .iter()
                    .find(|(of, _)| *of == forward)
                    .map(|(_, reach)| (*reach).into()),
                ..Port::new(&status.name, &forward)
            }
        }));
    }

    /// Adds declared ports that are not active, with the owner of each that is taken.
    fn add_declared(&mut self, vm: &str, forwards: &[PortForward], layout: &ProjectLayout) {
        for forward in forwards {
            let is_it = |port: &Port| {
                port.vm == vm
                    && (port.host, port.guest, port.protocol)
                        == (forward.host, forward.guest, forward.protocol)
            };
            if !self.ports.iter().any(|port| port.active && is_it(port)) {
                let owner = vm::port_owner(forward.host, forward.protocol, layout);
                self.ports.push(Port { taken_by: owner.map(Taken::by), ..Port::new(vm, forward) });
            }
        }
    }

    fn text(&self) -> String {
        let mut rows = vec![["VM", "HOST", "GUEST", "STATE", "FOR"].map(String::from)];
        rows.extend(self.ports.iter().map(|port| {
            let state = match (&port.taken_by, port.active, port.declared) {
                (Some(owner), ..) => format!("taken by {}", owner.text),
                (None, true, _) if port.purpose == Purpose::Auto => "active".into(),
                (None, true, false) if port.purpose != Purpose::Ssh => "active until down".into(),
                (None, true, _) => "active".into(),
                (None, false, _) if port.purpose == Purpose::Added => "not forwarded now".into(),
                (None, false, _) => "declared".into(),
            };
            let state = match port.service {
                Some(Service::None) => format!("{state}, nothing listens"),
                Some(Service::Unreachable) => format!("{state}, listens on 127.0.0.1 only"),
                Some(Service::Reachable) | None => state,
            };
            let purpose = match port.purpose {
                Purpose::Ssh => "castra shell, exec, cp",
                Purpose::Forward => "castra.toml",
                Purpose::Added => "castra port add",
                Purpose::Auto => "what listens in the VM",
            };
            let (host, guest) =
                (format!("127.0.0.1:{}", port.host), format!("{}/{}", port.guest, port.protocol));
            [port.vm.clone(), host, guest, state, purpose.into()]
        }));
        table(&rows)
    }
}

impl Port {
    /// Returns a declared port that is not active.
    fn new(vm: &str, forward: &PortForward) -> Self {
        let PortForward { host, guest, protocol } = *forward;
        let (purpose, vm) = (Purpose::Forward, vm.to_owned());
        Self {
            vm,
            protocol,
            host,
            guest,
            purpose,
            declared: true,
            active: false,
            taken_by: None,
            service: None,
        }
    }
}

impl From<Reach> for Service {
    fn from(reach: Reach) -> Self {
        match reach {
            Reach::Nothing => Self::None,
            Reach::Loopback => Self::Unreachable,
            Reach::Network => Self::Reachable,
        }
    }
}

impl Taken {
    fn by(owner: PortOwner) -> Self {
        let text = owner.to_string();
        match owner {
            PortOwner::Vm { vm, project } => Self { text, vm: Some(vm), project, pid: None },
            PortOwner::Process { pid, .. } => {
                Self { text, vm: None, project: None, pid: Some(pid) }
            }
            PortOwner::OtherUser | PortOwner::Unknown => {
                Self { text, vm: None, project: None, pid: None }
            }
        }
    }
}
