use std::path::{Path, PathBuf};
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Serialize;

use crate::context::RuntimeContext;
use crate::error::Result;
use crate::harmless::is_harmless;
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
    check_user(&ssh_config.user)?;
    let layout = project::layout(args, context, printer)?;
    let hosts = records(&ssh_config.vms, &layout, context)?
        .iter()
        .map(|record| host(record, &ssh_config.user, &layout))
        .collect::<Result<Vec<_>, _>>()?;
    if hosts.is_empty() {
        printer.tip("No VM is running here. `castra up` starts one.");
    }
    // A path that ssh's configuration has no way to write is no problem for programs that read JSON.
    let texts: Vec<String> =
        if printer.is_json() { Vec::new() } else { hosts.iter().map(text).collect::<Result<_, _>>()? };
    let text = texts.join("\n");
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

/// What a user may be called there: ssh_config has no way to write some characters, and a line end would begin another
/// setting, `ProxyCommand` for instance.
fn check_user(user: &str) -> Result<(), CliError> {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | '+');
    if user.starts_with('-') || user.is_empty() || !user.chars().all(is_plain) {
        return Err(CliError::NotForSshConfig { what: "user", text: user.to_owned() });
    }
    Ok(())
}

/// A path as a quoted argument. `%` begins a token and is doubled; what cannot be written is refused.
fn quoted(path: &Path) -> Result<String, CliError> {
    let refused = || CliError::NotForSshConfig { what: "path", text: path.to_string_lossy().into_owned() };
    let text = path.to_str().ok_or_else(refused)?;
    if !is_harmless(text) || text.contains(['"', '\\']) || text.contains("${") {
        return Err(refused());
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
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

fn text(host: &SshHost) -> Result<String, CliError> {
    let SshHost { vm, address, port, user, identity_file, known_hosts_file } = host;
    Ok(format!(
        "Host {vm}\n  HostName {address}\n  Port {port}\n  User {user}\n  IdentityFile {}\n  IdentitiesOnly yes\n  \
         UserKnownHostsFile {}\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n",
        quoted(identity_file)?,
        quoted(known_hosts_file)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_adds_a_setting() {
        for user in ["root", "ada.l-1_x", "größe", "me@corp"] {
            assert!(check_user(user).is_ok(), "{user:?}");
        }
        for user in ["", "-oProxyCommand=x", "a\nProxyCommand x", "a b", "a\"b", "a#b", "%h", "a\u{202e}b"] {
            assert!(check_user(user).is_err(), "{user:?}");
        }
    }

    #[test]
    fn a_path_is_written_so_that_ssh_reads_the_same_or_not_at_all() {
        let written = quoted(Path::new("/home/me/a b, 100% 'x'/key")).expect("can be written");
        assert_eq!(written, "\"/home/me/a b, 100%% 'x'/key\"");
        for path in ["/a\"b", "/a\nb", "/a\\b", "/${HOME}/x", "/\u{9b}"] {
            assert!(quoted(Path::new(path)).is_err(), "{path:?}");
        }
    }
}
