//! The command line: parses arguments, builds the context, runs one command, and turns its outcome
//! into an exit code.
//!
//! clap and the progress library are used below this module only. One file per command.

mod adopt;
mod args;
mod capture;
mod clean;
mod clone;
mod completions;
mod config;
mod console;
mod cp;
mod doctor;
mod down;
mod error;
mod exec;
mod exit;
mod grammar;
mod image;
mod init;
mod interrupt;
mod json;
mod list;
mod logs;
mod man;
mod outcome;
mod output;
mod plain;
mod ports;
mod printer;
mod project;
mod restart;
mod run;
mod ssh_config;
mod ssh_proxy;
mod status;
mod suspend;
mod table;
mod template;
mod terminal;
mod timeline;
mod units;
mod up;
mod usage;

use std::process::ExitCode;
use std::sync::Arc;

use clap::FromArgMatches as _;

use crate::cancel::Cancel;
use crate::context::{Environment, RuntimeContext};
use crate::error::{Kind, Result};
use crate::sudo;

pub use json::schema as json_schema;

use args::{Args, Command};
use printer::Printer;

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    outlive_file_size_limits();
    let environment = sudo::in_own_directories(Environment::of_process());
    if let Some(code) = completions::answer(&environment) {
        return code;
    }
    let args = grammar::grammar().try_get_matches().and_then(|words| Args::from_arg_matches(&words));
    let args = match args {
        Ok(args) => args,
        Err(error) => return exit::of_clap(error),
    };
    let printer = Arc::new(Printer::new(args.verbosity(), args.json, &environment));
    // A panic is a defect of Castra and has its own exit code; its message is on stderr by then.
    let run = std::panic::AssertUnwindSafe(|| run(&args, environment, &printer));
    match std::panic::catch_unwind(run) {
        Err(_) => exit::of_kind(Kind::Internal),
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            printer.error(&error);
            exit::of_kind(error.kind())
        }
    }
}

fn run(args: &Args, environment: Environment, printer: &Arc<Printer>) -> Result<ExitCode> {
    // Commands that need no cache must not fail for lack of a home directory.
    match &args.command {
        Command::Completions(completions) => return completions::run(completions, printer),
        Command::Man(man) => return man::run(man, printer),
        _ => {}
    }
    let cancel = Cancel::new();
    let mut context = RuntimeContext::new(environment, printer.reporter(), cancel)?;
    context.offline |= args.offline;
    if args.command.heeds_interrupts() {
        interrupt::install_signal_handlers(&context.cancel);
    }
    match &args.command {
        Command::Init(init) => init::run(init, args, &context, printer),
        Command::Up(up) => up::run(up, args, &context, printer),
        Command::Down(down) => down::run(down, args, &context, printer),
        Command::Adopt(adopt) => adopt::run(adopt, args, &context, printer),
        Command::Clean(clean) => clean::run(clean, args, &context, printer),
        Command::Restart(restart) => restart::run(restart, args, &context, printer),
        Command::Suspend(suspend) => suspend::run(suspend, args, &context, printer),
        Command::Clone(clone) => clone::run(clone, args, &context, printer),
        Command::Status(status) => status::run(status, args, &context, printer),
        Command::List => list::run(&context, printer),
        Command::Shell(shell) => exec::shell(shell, args, &context, printer),
        Command::Exec(exec) => exec::run(exec, args, &context, printer),
        Command::Run(run) => run::run(run, args, &context, printer),
        Command::Console(console) => console::run(console, args, &context, printer),
        Command::Cp(cp) => cp::run(cp, args, &context, printer),
        Command::Logs(logs) => logs::run(logs, args, &context, printer),
        Command::Timeline(timeline) => timeline::run(timeline, args, &context, printer),
        Command::Ports(ports) => ports::run(ports, args, &context, printer),
        Command::Image(image) => image::run(image, args, &context, printer),
        Command::Doctor(doctor) => doctor::run(doctor, args, &context, printer),
        Command::Template(template) => template::run(template, &context, printer),
        Command::Config(config) => config::run(config, args, &context, printer),
        Command::Completions(completions) => completions::run(completions, printer),
        Command::Man(man) => man::run(man, printer),
        Command::SshConfig(ssh_config) => ssh_config::run(ssh_config, args, &context, printer),
        Command::SshProxy(proxy) => ssh_proxy::run(proxy, args, &context, printer),
    }
}

/// Turns the limit on file sizes (`SIGXFSZ`) into an I/O error instead of the end of this process.
/// A handler does that rather than ignoring the signal, since a handler does not survive exec: QEMU
/// and the helpers have the default again.
fn outlive_file_size_limits() {
    let heard = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // Registration fails only for signals that cannot be caught, and this one can.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, heard);
}
