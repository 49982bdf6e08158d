use std::path::{Path, PathBuf};
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Serialize;

use crate::context::RuntimeContext;
use crate::error::Result;
use crate::layout::ProjectLayout;
use crate::vm::{self, Record, VmError};

use super::args::{Args, SshConfig};
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
    let text = hosts.iter().map(text).collect::<Vec<_>>().join("\n");
    printer.show(&SshHosts { hosts }, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// How to log in to running VMs.
#[derive(Serialize, JsonSchema)]
pub(super) struct SshHosts {
    /// One a VM.
    hosts: Vec<SshHost>,
}

/// How to log in to one VM.
#[derive(Serialize, JsonSchema)]
struct SshHost {
    /// The VM.
    vm: String,
    /// The address to connect to.
    address: String,
    /// Its port.
    port: u16,
    /// The user of the guest.
    user: String,
    /// The private key that may log in.
    identity_file: PathBuf,
    /// Holds the host key.
    known_hosts_file: PathBuf,
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

fn host(record: &Record, user: &str, layout: &ProjectLayout) -> Result<SshHost, VmError> {
    let target = vm::ssh_target(record, user, layout)?;
    vm::write_known_hosts(record, layout)?;
    let files = layout.vm(&record.name);
    Ok(SshHost {
        vm: record.name.clone(),
        address: target.address.ip().to_string(),
        port: target.address.port(),
        user: user.to_owned(),
        identity_file: files.client_key(),
        known_hosts_file: files.known_hosts(),
    })
}

fn text(host: &SshHost) -> String {
    let SshHost { vm, address, port, user, identity_file, known_hosts_file } = host;
    let quoted = |path: &Path| format!("\"{}\"", path.display());
    format!(
        "Host {vm}\n  HostName {address}\n  Port {port}\n  User {user}\n  IdentityFile {}\n  IdentitiesOnly yes\n  \
         UserKnownHostsFile {}\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n",
        quoted(identity_file),
        quoted(known_hosts_file),
    )
}
