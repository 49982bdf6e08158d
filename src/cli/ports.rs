use std::process::ExitCode;

use crate::context::RuntimeContext;
use crate::error::Result;
use crate::vm::{self, VmStatus};

use super::args::{Args, Ports};
use super::error::CliError;
use super::printer::Printer;
use super::project;
use super::table::table;

/// Shows the ports of running VMs.
pub(super) fn run(
    ports: &Ports,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<ExitCode> {
    let layout = project::layout(args, context, printer)?;
    for name in &ports.vms {
        vm::recorded_vm(Some(name), &layout)?;
    }
    let running: Vec<VmStatus> = vm::status(&layout)
        .into_iter()
        .filter(|(name, _)| ports.vms.is_empty() || ports.vms.contains(name))
        .filter_map(|(_, status)| status.ok())
        .filter(|status| status.state.is_alive())
        .collect();
    let mut rows = vec![["VM", "HOST", "GUEST", "FOR"].map(String::from)];
    for status in &running {
        rows.extend(status.ssh_port.map(|port| {
            let guest = format!("{}/tcp", castra_wire::SSH_PORT);
            [status.name.clone(), format!("127.0.0.1:{port}"), guest, "castra shell, exec, cp".into()]
        }));
        rows.extend(status.port_forwards.iter().map(|forward| {
            let guest = format!("{}/{}", forward.guest, forward.protocol);
            [status.name.clone(), format!("127.0.0.1:{}", forward.host), guest, "castra.toml".into()]
        }));
    }
    if rows.len() == 1 {
        printer.tip("No VM is running here, so no port is forwarded.");
        return Ok(ExitCode::SUCCESS);
    }
    printer.result(&table(&rows)).map_err(CliError::from)?;
    Ok(ExitCode::SUCCESS)
}
