//! `castra exec` and `castra shell`: commands and login shells in a VM.
//!
//! A VM that is still starting is waited for. A guest that has rebooted has lost its keys: the
//! first login is refused, it gets its keys again, and the login is repeated once.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use castra_engine::Command;
use castra_engine::error::Result;
use castra_engine::guest::ssh::{self, ExecRequest, GuestExit, StartDirectory, Stdio, Target, Tty};
use castra_engine::vm::{self, Record, RecordError, UpOptions};

use super::args::{ExecArgs, GuestCommandArgs, ShellArgs};
use super::capture::Capture;
use super::context::CommandContext;
use super::error::CliError;
use super::exit;
use super::interrupt::install_signal_handlers;
use super::up;

/// Terminal type if the environment names none.
const DEFAULT_TERM: &str = "xterm";

/// Sets the directory in which a command or a run starts, which have the same methods.
macro_rules! with_directory {
    ($command:expr, $start_in:expr) => {
        match &$start_in.workdir {
            Some(directory) => $command.current_dir(directory),
            None => $command.in_corresponding_dir(),
        }
    };
}

/// Adds the settings of the command line to a command or a run.
macro_rules! with_settings {
    ($command:expr, $guest:expr, $context:expr) => {{
        let mut command = $command.user(&$guest.user).forward_signals();
        command = with_directory!(command, $guest.start_in);
        for (name, value) in &$guest.env {
            command = command.env(name, value);
        }
        if !$guest.no_stdin {
            command = command.inherit_stdin();
        }
        if $guest.tty {
            command = command.terminal($crate::cli::exec::terminal($context)?);
        }
        command
    }};
}
pub(super) use {with_directory, with_settings};

/// Runs a command in a VM. The exit code is the command's, or 255 if it could not be reached, as
/// with ssh.
pub(super) fn run(exec: &ExecArgs, context: &CommandContext) -> Result<ExitCode> {
    let mut capture = context.printer.is_json().then(|| capture(&exec.guest)).transpose()?;
    match attempt(exec, capture.as_mut(), context) {
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
    capture: Option<&mut Capture>,
    context: &CommandContext,
) -> Result<GuestExit> {
    let command = ssh::Command::Argv(exec.guest.command.clone());
    let command = Command::in_recorded(exec.vm.as_deref(), context.project()?, command);
    let command = with_settings!(command, &exec.guest, context);
    match capture {
        Some(capture) => command.stream(|stream, bytes| capture.take(stream, bytes)),
        None => command.status(),
    }
}

/// Returns a capture for `--json`, and refuses a command with a terminal, whose output is for eyes.
pub(super) fn capture(guest: &GuestCommandArgs) -> Result<Capture, CliError> {
    if guest.tty {
        return Err(CliError::NoJson { what: "a command with a terminal of its own" });
    }
    Ok(Capture::new())
}

/// Opens a login shell in a VM, and starts the VM first if it does not run.
pub(super) fn shell(shell: &ShellArgs, context: &CommandContext) -> Result<ExitCode> {
    if context.printer.is_json() {
        return Err(CliError::NoJson { what: "a shell" }.into());
    }
    if let Some(number) = shell.at_step {
        return at_step(number, shell, context);
    }
    start_if_stopped(shell.vm.as_deref(), context)?;
    let (vm, project) = (shell.vm.as_deref(), context.project()?);
    let command = Command::in_recorded(vm, project, ssh::Command::Shell);
    let mut command = command.user(&shell.user).inherit_stdin().forward_signals();
    command = with_directory!(command, shell.start_in);
    // Without a terminal (`castra shell < script`) the shell reads its commands from stdin.
    if io::stdin().is_terminal() {
        command = command.terminal(terminal(context)?);
    }
    let exit = command.status()?;
    vm::announce_ports(vm, project);
    Ok(ExitCode::from(exit.code()))
}

/// Opens a login shell in a machine that is thrown away, on the disk as a step finds it.
fn at_step(number: usize, shell: &ShellArgs, context: &CommandContext) -> Result<ExitCode> {
    let vm = the_only_one(shell.vm.as_deref(), context)?;
    let (config, project) = (context.config()?, context.project()?);
    let names = [vm.clone()];
    let records = Record::all(project.layout);
    let plan = vm::Plan::of_start(config, &names, project.layout, &records)?;
    let tty = io::stdin().is_terminal().then(|| terminal(context)).transpose()?;
    // Ctrl-C cancels a boot, but reaches the shell after it as a key.
    install_signal_handlers(&context.runtime.cancel);
    let open = |target: &Target| {
        context.printer.tip(&format!(
            "This is the disk of new VMs `{vm}` as step {number} finds it. Nothing that you do \
            here is kept."
        ));
        let request = ExecRequest {
            command: ssh::Command::Shell,
            tty: tty.clone(),
            environment: target.environment.clone(),
            directory: shell.start_in.workdir.clone().map(StartDirectory::Named),
            stdio: Stdio::inherit().map_err(CliError::Streams)?,
        };
        let target = Target { user: shell.user.clone(), ..target.clone() };
        Ok(ssh::exec(&context.runtime.cancel, &target, request)?)
    };
    let exit: Result<GuestExit> = vm::at_step(&plan.vms[0], number, project, &open)?;
    context.printer.tip("The machine and what was done in it are gone.");
    Ok(ExitCode::from(exit?.code()))
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
    Ok(vm::only_declared(context.silent_config()?)?.to_owned())
}

/// Returns the address and keys to log in to a running VM.
pub(super) fn target(vm: Option<&str>, user: &str, context: &CommandContext) -> Result<Target> {
    let project = context.project()?;
    let record = vm::running_vm(vm, project)?;
    Ok(vm::ssh_target(&record, user, project.layout)?)
}

/// Describes this process's terminal, so that the guest can provide one like it.
pub(in crate::cli) fn terminal(context: &CommandContext) -> Result<Tty> {
    let term = context.runtime.environment.text("TERM").unwrap_or(DEFAULT_TERM);
    let found = Tty::like(io::stdin(), term).or_else(|| Tty::like(io::stdout(), term));
    Ok(found.ok_or(CliError::NoTerminal)?)
}
