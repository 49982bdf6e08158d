//! `castra console`: connects this terminal, or a pipe, to a VM's serial console.

use std::io;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use castra_engine::error::Result;
use castra_engine::guest::{ConsoleEnd, converse};
use castra_engine::size::ByteSize;
use castra_engine::vm;

use super::args::ConsoleArgs;
use super::context::CommandContext;
use super::error::CliError;

/// Connects this terminal, or a script's pipes, to the serial console of a running VM.
pub(super) fn run(console: &ConsoleArgs, context: &CommandContext) -> Result<ExitCode> {
    if context.printer.is_json() {
        return Err(CliError::NoJson { what: "a console" }.into());
    }
    let layout = context.layout()?;
    let record = vm::recorded_vm(console.vm.as_deref(), layout)?;
    let vm = &record.name;
    let streams = || {
        Ok((io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?))
    };
    let (stdin, stdout) = streams().map_err(CliError::Streams)?;
    let opened = vm::open_console(&record, layout)?;
    let has_keys = rustix::termios::isatty(&stdin);
    if has_keys {
        context.printer.tip(&format!(
            "Connected to the console of `{vm}`. Press Enter for a prompt, Ctrl-] \
                to disconnect."
        ));
    }
    let outcome =
        converse(opened.stream, stdin, stdout, console.linger).map_err(CliError::Streams)?;
    if has_keys {
        // The guest may have left the cursor anywhere on the line.
        context.printer.tip("");
    }
    if outcome.dropped_bytes > 0 {
        let dropped = ByteSize(outcome.dropped_bytes);
        context.printer.warning(&format!(
            "{dropped} skipped because stdout was blocked; `castra logs {vm}` has everything"
        ));
    }
    match outcome.end {
        ConsoleEnd::GuestGone => context.printer.tip(&format!("VM `{vm}` has stopped.")),
        ConsoleEnd::Left => context.printer.tip(&format!(
            "Disconnected from the console of \
            `{vm}`, which keeps running."
        )),
        ConsoleEnd::InputEnded | ConsoleEnd::OutputClosed => {}
        // 128 plus the signal, as shells report it.
        ConsoleEnd::Signal(signal) => {
            return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)));
        }
    }
    Ok(ExitCode::SUCCESS)
}
