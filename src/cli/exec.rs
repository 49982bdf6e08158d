//! `castra exec` and `castra shell`: commands and login shells in a VM, over SSH.
//!
//! A VM that is still starting is waited for. A guest that has rebooted has lost its keys: the
//! first login is refused, it gets its keys again, and the login is repeated once.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::guest::ssh::{
    self, Command, ExecRequest, GuestExit, SshError, Stdio, Target, Tty,
};
use castra_engine::vm::{self, RecordError, UpOptions};

use super::args::{ExecArgs, GuestCommandArgs, ShellArgs};
use super::capture::Capture;
use super::context::CommandContext;
use super::error::CliError;
use super::exit;
use super::interrupt::install_signal_handlers;
use super::up;

/// Terminal type if the environment names none.
const DEFAULT_TERM: &str = "xterm";

/// Runs a command in a VM. The exit code is the command's, or 255 if it could not be reached, as
/// with ssh.
pub(super) fn run(exec: &ExecArgs, context: &CommandContext) -> Result<ExitCode> {
    let capture = context.printer.is_json().then(|| capture(&exec.guest)).transpose()?;
    match attempt(exec, capture.as_ref(), context) {
        Ok(exit) => {
            if let Some(capture) = capture {
                let captured = capture.finish(Some(&exit), exit::UNREACHED);
                context.printer.json(&captured).map_err(CliError::from)?;
            }
            Ok(ExitCode::from(exit.code()))
        }
        Err(error) => {
            context.printer.error(&error);
            Ok(ExitCode::from(exit::UNREACHED))
        }
    }
}

fn attempt(
    exec: &ExecArgs,
    capture: Option<&Capture>,
    context: &CommandContext,
) -> Result<GuestExit> {
    let target = target(exec.vm.as_deref(), &exec.guest.user, context)?;
    let request = || request(&exec.guest, capture, context);
    match ssh::exec(&context.runtime.cancel, &target, request()?) {
        Err(error) if error.is_before_login() => {
            make_ready(exec.vm.as_deref(), context)?;
            // The agent has just reported that commands can run.
            Ok(ssh::exec(&context.runtime.cancel, &target, request()?)
                .map_err(|error| error.of_ready_guest(&target))?)
        }
        Err(SshError::Lost) => {
            vm::explain_silence(exec.vm.as_deref(), context.layout()?)?;
            Err(SshError::Lost.into())
        }
        other => Ok(other?),
    }
}

/// Returns the request to the guest, with this process's streams or those of `capture`.
pub(super) fn request(
    guest: &GuestCommandArgs,
    capture: Option<&Capture>,
    context: &CommandContext,
) -> Result<ExecRequest> {
    let own = if guest.no_stdin { Stdio::without_stdin() } else { Stdio::inherit() };
    let stdio = own.and_then(|own| match capture {
        Some(capture) => capture.stdio(own.stdin),
        None => Ok(own),
    });
    Ok(ExecRequest {
        command: Command::Argv(guest.command.clone()),
        tty: if guest.tty { Some(terminal(context)?) } else { None },
        environment: guest.env.clone(),
        stdio: stdio.map_err(CliError::Streams)?,
    })
}

/// Returns a capture for `--json`, and refuses a command with a terminal, whose output is for eyes.
pub(super) fn capture(guest: &GuestCommandArgs) -> Result<Capture, CliError> {
    if guest.tty {
        return Err(CliError::NoJson { what: "a command with a terminal of its own" });
    }
    Capture::new().map_err(CliError::Streams)
}

/// Prepares a guest for commands: one that was rebooted has lost its keys and gets them again, one
/// that is ready is left alone.
fn make_ready(vm: Option<&str>, context: &CommandContext) -> Result<()> {
    let layout = context.layout()?;
    Ok(vm::make_ready(vm, layout, &context.runtime)?)
}

/// Opens a login shell in a VM, and starts the VM first if it does not run.
pub(super) fn shell(shell: &ShellArgs, context: &CommandContext) -> Result<ExitCode> {
    if context.printer.is_json() {
        return Err(CliError::NoJson { what: "a shell" }.into());
    }
    start_if_stopped(shell.vm.as_deref(), context)?;
    let target = target(shell.vm.as_deref(), &shell.user, context)?;
    let stdio = Stdio::inherit().map_err(CliError::Streams)?;
    // Without a terminal (`castra shell < script`) the shell reads its commands from stdin.
    let tty = if io::stdin().is_terminal() { Some(terminal(context)?) } else { None };
    let request = ExecRequest { command: Command::Shell, tty, environment: Vec::new(), stdio };
    Ok(ExitCode::from(ssh::exec(&context.runtime.cancel, &target, request)?.code()))
}

fn start_if_stopped(vm: Option<&str>, context: &CommandContext) -> Result<()> {
    let layout = context.layout()?;
    let name = match vm::recorded_vm(vm, layout) {
        Ok(record) if vm::state_of(&record, layout).is_alive() => return Ok(()),
        Ok(record) => record.name,
        // Declared but never started, or nothing at all yet: `up` handles both.
        Err(RecordError::NoneYet | RecordError::Unknown { .. }) => the_only_one(vm, context)?,
        Err(error) => return Err(error.into()),
    };
    // Ctrl-C cancels a boot, but reaches the shell after it as a key.
    install_signal_handlers(&context.runtime.cancel);
    for (_, outcome) in up::bring_up(&[name], context, UpOptions::default())? {
        outcome?;
    }
    Ok(())
}

/// Returns the VM of this name, or the only one that is declared: opening one shell is no reason to
/// boot several VMs.
fn the_only_one(vm: Option<&str>, context: &CommandContext) -> Result<String> {
    if let Some(name) = vm {
        return Ok(name.to_owned());
    }
    let config = context.silent_config()?;
    match config.vms.as_slice() {
        [only] => Ok(only.name.clone()),
        several => Err(RecordError::Ambiguous {
            names: several.iter().map(|vm| vm.name.clone()).collect(),
        }
        .into()),
    }
}

/// Returns the address and keys to log in to a running VM.
pub(super) fn target(vm: Option<&str>, user: &str, context: &CommandContext) -> Result<Target> {
    let layout = context.layout()?;
    let record = vm::running_vm(vm, layout, &context.runtime)?;
    Ok(vm::ssh_target(&record, user, layout)?)
}

/// Describes this process's terminal, so that the guest can provide one like it.
pub(super) fn terminal(context: &CommandContext) -> Result<Tty> {
    let term = context.runtime.environment.text("TERM").unwrap_or(DEFAULT_TERM);
    let found = Tty::like(io::stdin(), term).or_else(|| Tty::like(io::stdout(), term));
    Ok(found.ok_or(CliError::NoTerminal)?)
}
