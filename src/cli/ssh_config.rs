//! `castra ssh-config`: prints the `Host` blocks by which other SSH clients log in.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use castra_engine::context::working_directory;
use castra_engine::error::Result;
use castra_engine::layout::ProjectLayout;
use castra_engine::sanitize::is_printable;
use castra_engine::vm::{self, ProjectRef, Record, VmError};
use schemars::JsonSchema;
use serde::Serialize;

use super::args::{Args, SshConfigArgs};
use super::context::CommandContext;
use super::error::CliError;

/// Prints what ssh needs to log in to running VMs: address, keys, and the host key, which is known
/// in advance.
pub(super) fn run(ssh_config: &SshConfigArgs, context: &CommandContext) -> Result<ExitCode> {
    check_user(&ssh_config.user)?;
    let layout = context.layout()?;
    let records = match ssh_config.proxy {
        true => records_with_agent(&ssh_config.vms, layout, context)?,
        false => records(&ssh_config.vms, layout, context)?,
    };
    let proxy = if ssh_config.proxy { Some(proxy_command(context.args)?) } else { None };
    let hosts = records
        .iter()
        .map(|record| host(record, &ssh_config.user, proxy.as_deref(), layout))
        .collect::<Result<Vec<_>, _>>()?;
    if hosts.is_empty() {
        context.printer.tip(match ssh_config.proxy {
            true => "No VM has been started here yet. `castra up` starts one.",
            false => "No VM is running here. `castra up` starts one.",
        });
    }
    // A path that cannot be written in ssh's configuration is no problem for programs that read
    // JSON.
    let texts: Vec<String> = if context.printer.is_json() {
        Vec::new()
    } else {
        hosts.iter().map(text).collect::<Result<_, _>>()?
    };
    let text = texts.join("\n");
    context.printer.show(&SshHosts { hosts }, &text)?;
    Ok(ExitCode::SUCCESS)
}

/// SSH access to running VMs.
#[derive(Serialize, JsonSchema)]
pub(super) struct SshHosts {
    /// Hosts, one per VM.
    hosts: Vec<SshHost>,
}

/// SSH access to one VM.
#[derive(Serialize, JsonSchema)]
struct SshHost {
    /// Name of the VM.
    vm: String,
    /// Address to connect to.
    address: String,
    /// Port of the VM's SSH server; the last one for a VM that does not run.
    port: u16,
    /// User in the guest.
    user: String,
    /// Private key that may log in.
    identity_file: PathBuf,
    /// File with the host key.
    known_hosts_file: PathBuf,
    /// Name of the host key in that file, at any port.
    host_key_alias: String,
    /// Command whose stdin and stdout are a connection to the VM, with --proxy.
    proxy_command: Option<Vec<String>>,
}

fn records(
    names: &[String],
    layout: &ProjectLayout,
    context: &CommandContext,
) -> Result<Vec<Record>, VmError> {
    if !names.is_empty() {
        return names
            .iter()
            .map(|name| vm::running_vm(Some(name), ProjectRef::new(layout, &context.runtime)))
            .collect();
    }
    let running = Record::all(layout).into_values().filter(Record::runs_commands);
    Ok(running.filter(|record| vm::state_of(record, layout).is_alive()).collect())
}

/// Returns the VMs that have had a port for SSH, running or not: the named ones, or all.
fn records_with_agent(
    names: &[String],
    layout: &ProjectLayout,
    context: &CommandContext,
) -> Result<Vec<Record>, VmError> {
    let has_agent = |record: &Record| vm::ssh_address(record).is_ok();
    if names.is_empty() {
        return Ok(Record::all(layout).into_values().filter(has_agent).collect());
    }
    let named = |name: &String| match vm::recorded_vm(Some(name), layout)? {
        record if has_agent(&record) => Ok(record),
        // Either the VM gets its keys when it is started, or it has no agent, which this call
        // reports.
        _ => vm::running_vm(Some(name), ProjectRef::new(layout, &context.runtime)),
    };
    names.iter().map(named).collect()
}

/// Returns the command by which ssh connects to VMs of this project from any directory, without the
/// VM's name at its end.
fn proxy_command(args: &Args) -> Result<Vec<String>> {
    let failed = |source| CliError::File { action: "find", path: PathBuf::from("castra"), source };
    let castra = std::env::current_exe().map_err(failed)?;
    let here = working_directory()?;
    let mut words = vec![writable(&castra)?, "--quiet".to_owned()];
    if let Some(config) = &args.config {
        words.extend(["--config".to_owned(), writable(&here.join(config))?]);
    }
    if args.skip_discovery {
        words.push("--skip-discovery".to_owned());
    }
    words.extend(["ssh-proxy".to_owned(), "--directory".to_owned(), writable(&here)?]);
    Ok(words)
}

/// Checks a user's name: ssh_config has no way to write some characters, and a line end would begin
/// another setting, `ProxyCommand` for instance.
fn check_user(user: &str) -> Result<(), CliError> {
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '@' | '+');
    if user.starts_with('-') || user.is_empty() || !user.chars().all(is_plain) {
        return Err(CliError::NotForSshConfig { what: "user", text: user.to_owned() });
    }
    Ok(())
}

/// Formats a path as a quoted argument, with each `%` doubled, since it begins a token. Fails if
/// the path cannot be written.
fn quoted(path: &Path) -> Result<String, CliError> {
    Ok(format!("\"{}\"", writable(path)?.replace('%', "%%")))
}

/// Returns the text of a path if ssh's configuration can hold it, in quotes of either kind.
fn writable(path: &Path) -> Result<String, CliError> {
    let refused =
        || CliError::NotForSshConfig { what: "path", text: path.to_string_lossy().into_owned() };
    let text = path.to_str().ok_or_else(refused)?;
    if !is_printable(text) || text.contains(['"', '\\']) || text.contains("${") {
        return Err(refused());
    }
    Ok(text.to_owned())
}

/// Formats a command for the user's shell, whichever that is: words in single quotes. ssh expands
/// tokens that begin with `%` first, so each `%` is doubled.
fn shell_line(words: &[String]) -> String {
    let quote = |word: &String| format!("'{}'", word.replace('\'', "'\\''").replace('%', "%%"));
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

fn host(
    record: &Record,
    user: &str,
    proxy: Option<&[String]>,
    layout: &ProjectLayout,
) -> Result<SshHost, VmError> {
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
        host_key_alias: vm::host_key_alias(&record.name),
        proxy_command: proxy.map(|words| [words, std::slice::from_ref(&record.name)].concat()),
    })
}

fn text(host: &SshHost) -> Result<String, CliError> {
    let SshHost { vm, address, port, user, host_key_alias, .. } = host;
    let way = match &host.proxy_command {
        Some(words) => format!("ProxyCommand {}", shell_line(words)),
        None => format!("HostName {address}\n  Port {port}"),
    };
    Ok(format!(
        "Host {vm}\n  {way}\n  User {user}\n  IdentityFile {}\n  IdentitiesOnly yes\n  \
        UserKnownHostsFile {}\n  \
        HostKeyAlias {host_key_alias}\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n",
        quoted(&host.identity_file)?,
        quoted(&host.known_hosts_file)?,
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
        for user in
            ["", "-oProxyCommand=x", "a\nProxyCommand x", "a b", "a\"b", "a#b", "%h", "a\u{202e}b"]
        {
            assert!(check_user(user).is_err(), "{user:?}");
        }
    }

    #[test]
    fn a_command_comes_through_ssh_and_every_shell_as_it_is() {
        let words = ["/opt/a b/castra", "100%", "it's", "$HOME;`x`"].map(str::to_owned);
        let line = shell_line(&words);
        assert_eq!(line, "'/opt/a b/castra' '100%%' 'it'\\''s' '$HOME;`x`'");
        let printed = std::process::Command::new("sh")
            .args(["-c", &format!("printf '%s|' {}", line.replace("%%", "%"))])
            .output()
            .expect("a shell");
        assert_eq!(String::from_utf8_lossy(&printed.stdout), words.join("|") + "|");
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
