use std::io::{self, IsTerminal};
use std::process::ExitCode;

use crate::context::RuntimeContext;
use crate::error::Result;
use crate::guest::ssh::{self, Command, ExecRequest, GuestExit, SshError, Stdio, Target, Tty};
use crate::vm::{self, UpOptions, VmError};

use super::args::{Args, Exec, GuestCommand, Shell};
use super::capture::Capture;
use super::error::CliError;
use super::exit;
use super::printer::Printer;
use super::project;
use super::up;

/// What a terminal is called where the environment does not say.
const DEFAULT_TERM: &str = "xterm";

/// Runs a command in a VM. Its exit code is the command's; where the command could not be reached it is 255, as ssh has it.
pub(super) fn run(exec: &Exec, args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ExitCode> {
    let capture = printer.is_json().then(|| capture(&exec.guest)).transpose()?;
    match attempt(exec, capture.as_ref(), args, context, printer) {
        Ok(exit) => {
            if let Some(capture) = capture {
                let told = capture.finish(Some(&exit), exit::UNREACHED);
                printer.json(&told).map_err(CliError::from)?;
            }
            Ok(ExitCode::from(exit.code()))
        }
        Err(error) => {
            printer.error(&error);
            Ok(ExitCode::from(exit::UNREACHED))
        }
    }
}

fn attempt(
    exec: &Exec,
    capture: Option<&Capture>,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<GuestExit> {
    let target = target(exec.vm.as_deref(), &exec.guest.user, args, context, printer)?;
    let request = || request(&exec.guest, capture, context);
    match ssh::exec(&context.cancel, &target, request()?) {
        Err(error) if error.is_before_login() => {
            make_ready(exec.vm.as_deref(), args, context, printer)?;
            // Its agent has just said that commands can run.
            Ok(ssh::exec(&context.cancel, &target, request()?)
                .map_err(|error| error.of_ready_guest(&target))?)
        }
        Err(SshError::Lost) => {
            vm::explain_silence(exec.vm.as_deref(), &project::layout(args, context, printer)?)?;
            Err(SshError::Lost.into())
        }
        other => Ok(other?),
    }
}

/// What is asked of the guest: this process's streams, or those that are captured.
pub(super) fn request(
    guest: &GuestCommand,
    capture: Option<&Capture>,
    context: &RuntimeContext,
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

/// For `--json`: a terminal's output is for eyes.
pub(super) fn capture(guest: &GuestCommand) -> Result<Capture, CliError> {
    if guest.tty {
        return Err(CliError::NoJson { what: "a command with a terminal of its own" });
    }
    Capture::new().map_err(CliError::Streams)
}

/// A guest that was rebooted has lost its keys and gets them anew; one that is fine already is told nothing new.
fn make_ready(vm: Option<&str>, args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<()> {
    let layout = project::layout(args, context, printer)?;
    Ok(vm::make_ready(vm, &layout, context)?)
}

/// Opens a login shell, in a VM that is started first if it does not run.
pub(super) fn shell(
    shell: &Shell,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<ExitCode> {
    if printer.is_json() {
        return Err(CliError::NoJson { what: "a shell" }.into());
    }
    start_if_stopped(shell.vm.as_deref(), args, context, printer)?;
    let target = target(shell.vm.as_deref(), &shell.user, args, context, printer)?;
    let stdio = Stdio::inherit().map_err(CliError::Streams)?;
    // Without a terminal (`castra shell < script`) the shell reads its commands from stdin.
    let tty = if io::stdin().is_terminal() { Some(terminal(context)?) } else { None };
    let request = ExecRequest { command: Command::Shell, tty, environment: Vec::new(), stdio };
    Ok(ExitCode::from(ssh::exec(&context.cancel, &target, request)?.code()))
}

fn start_if_stopped(
    vm: Option<&str>,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<()> {
    let layout = project::layout(args, context, printer)?;
    let name = match vm::recorded_vm(vm, &layout) {
        Ok(record) if vm::state_of(&record, &layout).is_alive() => return Ok(()),
        Ok(record) => record.name,
        // Declared but never started, or nothing there at all: both are what `up` is for.
        Err(VmError::NoneYet | VmError::Unknown { .. }) => the_only_one(vm, args, context)?,
        Err(error) => return Err(error.into()),
    };
    // A boot heeds Ctrl-C; the shell behind it gets it as a key.
    super::heed_interrupts(&context.cancel);
    for (_, outcome) in up::bring_up(&[name], args, context, printer, UpOptions::default())? {
        outcome?;
    }
    Ok(())
}

/// The VM of this name, or the only one that is declared: nobody wants to boot all to look into one.
fn the_only_one(vm: Option<&str>, args: &Args, context: &RuntimeContext) -> Result<String> {
    if let Some(name) = vm {
        return Ok(name.to_owned());
    }
    let config = project::config(args, context, &Printer::quiet())?;
    match config.vms.as_slice() {
        [only] => Ok(only.name.clone()),
        several => {
            Err(VmError::Ambiguous { names: several.iter().map(|vm| vm.name.clone()).collect() }.into())
        }
    }
}

/// Where to log in.
pub(super) fn target(
    vm: Option<&str>,
    user: &str,
    args: &Args,
    context: &RuntimeContext,
    printer: &Printer,
) -> Result<Target> {
    let layout = project::layout(args, context, printer)?;
    let record = vm::running_vm(vm, &layout, context)?;
    Ok(vm::ssh_target(&record, user, &layout)?)
}

/// The terminal this process has, for the guest to have one like it.
pub(super) fn terminal(context: &RuntimeContext) -> Result<Tty> {
    let term = context.environment.text("TERM").unwrap_or(DEFAULT_TERM);
    let found = Tty::like(io::stdin(), term).or_else(|| Tty::like(io::stdout(), term));
    Ok(found.ok_or(CliError::NoTerminal)?)
}
