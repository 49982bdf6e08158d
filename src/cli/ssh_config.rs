use std::process::ExitCode;

use crate::context::RuntimeContext;
use crate::error::Result;
use crate::layout::ProjectLayout;
use crate::vm::{self, Record, VmError};

use super::args::{Args, SshConfig};
use super::error::CliError;
use super::printer::Printer;
use super::project;

/// Prints what ssh needs to log in to running VMs: address, keys, and the host key that is known beforehand.
pub(super) fn run(
    ssh_config: &SshConfig,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<ExitCode> {
    let layout = project::layout(args, context, printer)?;
    let hosts = records(&ssh_config.vms, &layout, context)?
        .iter()
        .map(|record| host(record, &ssh_config.user, &layout))
        .collect::<Result<Vec<_>, VmError>>()?;
    if hosts.is_empty() {
        printer.tip("No VM is running here. `castra up` starts one.");
    }
    printer.result(&hosts.join("\n")).map_err(CliError::from)?;
    Ok(ExitCode::SUCCESS)
}

fn records(
    names: &[String],
    layout: &ProjectLayout,
    context: &RuntimeContext,
) -> Result<Vec<Record>, VmError> {
    if !names.is_empty() {
        return names.iter().map(|name| vm::running_vm(Some(name), layout, context)).collect();
    }
    let has_agent = |record: &Record| record.boot.as_ref().is_some_and(|boot| boot.ssh_port.is_some());
    let running = project::records(layout).into_values().filter(has_agent);
    Ok(running.filter(|record| vm::state_of(record, layout).is_alive()).collect())
}

fn host(record: &Record, user: &str, layout: &ProjectLayout) -> Result<String, VmError> {
    let target = vm::ssh_target(record, user, layout)?;
    vm::write_known_hosts(record, layout)?;
    let files = layout.vm(&record.name);
    let quoted = |path: std::path::PathBuf| format!("\"{}\"", path.display());
    Ok(format!(
        "Host {}\n  HostName {}\n  Port {}\n  User {user}\n  IdentityFile {}\n  IdentitiesOnly yes\n  \
         UserKnownHostsFile {}\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n",
        record.name,
        target.address.ip(),
        target.address.port(),
        quoted(files.client_key()),
        quoted(files.known_hosts()),
    ))
}
