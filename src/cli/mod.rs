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
mod consent;
mod console;
mod context;
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
mod limits;
mod list;
mod logs;
mod man;
mod mcp;
mod mount;
mod open;
mod outcome;
mod output;
mod plain;
mod port;
mod ports;
mod printer;
mod project;
mod resize;
mod restart;
mod run;
mod serve;
mod ssh_config;
mod ssh_proxy;
mod status;
mod sudo;
mod suspend;
mod table;
mod template;
mod terminal;
mod timeline;
mod trace;
mod units;
mod up;
mod usage;

use std::process::ExitCode;
use std::sync::Arc;

use castra_engine::cancel::Cancel;
use castra_engine::context::{Environment, RuntimeContext};
use castra_engine::error::{Kind, Result};

use args::{Args, Command};
use context::CommandContext;
use printer::Printer;

pub use json::schema as json_schema;

/// Runs the command that this process was started with.
pub fn main() -> ExitCode {
    outlive_file_size_limits();
    let environment = sudo::in_own_directories(Environment::of_process());
    if let Some(code) = completions::answer(&environment) {
        return code;
    }
    let args = match grammar::parse() {
        Ok(args) => args,
        Err(error) => return exit::of_clap(error),
    };
    let printer = Printer::new(args.verbosity(), args.json, &environment);
    trace::install(&environment, &printer);
    limits::expect_exhaustion();
    // A panic is a defect of Castra and has its own exit code; its message is on stderr by then.
    let run = std::panic::AssertUnwindSafe(|| run(&args, environment, &printer));
    let ended = std::panic::catch_unwind(run);
    let error = match (limits::exhaustion(), ended) {
        // Another thread may have panicked, too.
        (Some(error), _) => error.into(),
        (None, Err(_)) => return exit::of_kind(Kind::Internal),
        (None, Ok(Ok(code))) => return code,
        (None, Ok(Err(error))) => error,
    };
    printer.error(&error);
    args.command.code_of_failure(error.kind())
}

fn run(args: &Args, environment: Environment, printer: &Printer) -> Result<ExitCode> {
    // Commands that need no cache must not fail for lack of a home directory.
    match &args.command {
        Command::Completions(completions) => return completions::run(completions, printer),
        Command::Man(man) => return man::run(man, printer),
        Command::Companion(companion) => return mount::companion(companion),
        _ => {}
    }
    limits::raise()?;
    let cancel = Cancel::new();
    let mut runtime = RuntimeContext::new(environment, printer.reporter(), cancel)?;
    runtime.offline |= args.offline;
    runtime.companion = std::env::current_exe().ok();
    let context = CommandContext::new(args, runtime, printer);
    if args.command.heeds_interrupts() {
        interrupt::install_signal_handlers(&context.runtime.cancel);
    }
    match &args.command {
        Command::Init(init) => init::run(init, &context),
        Command::Up(up) => up::run(up, &context),
        Command::Down(down) => down::run(down, &context),
        Command::Adopt(adopt) => adopt::run(adopt, &context),
        Command::Clean(clean) => clean::run(clean, &context),
        Command::Restart(restart) => restart::run(restart, &context),
        Command::Suspend(suspend) => suspend::run(suspend, &context),
        Command::Clone(clone) => clone::run(clone, &context),
        Command::Status(status) => status::run(status, &context),
        Command::List => list::run(&context),
        Command::Shell(shell) => exec::shell(shell, &context),
        Command::Exec(exec) => exec::run(exec, &context),
        Command::Run(run) => run::run(run, &context),
        Command::Serve(serve) => serve::run(serve, &context),
        Command::Mcp(mcp) => mcp::run(mcp, &context),
        Command::Mount(mount) => mount::mount(mount, &context),
        Command::Umount(umount) => mount::umount(umount, &context),
        Command::Resize(resize) => resize::run(resize, &context),
        Command::Companion(companion) => mount::companion(companion),
        Command::Port(port) => port::run(port, &context),
        Command::Open(open) => open::run(open, &context),
        Command::Console(console) => console::run(console, &context),
        Command::Cp(cp) => cp::run(cp, &context),
        Command::Logs(logs) => logs::run(logs, &context),
        Command::Timeline(timeline) => timeline::run(timeline, &context),
        Command::Ports(ports) => ports::run(ports, &context),
        Command::Image(image) => image::run(image, &context),
        Command::Doctor(doctor) => doctor::run(doctor, &context),
        Command::Template(template) => template::run(template, &context),
        Command::Config(config) => config::run(config, &context),
        Command::Completions(completions) => completions::run(completions, printer),
        Command::Man(man) => man::run(man, printer),
        Command::SshConfig(ssh_config) => ssh_config::run(ssh_config, &context),
        Command::SshProxy(proxy) => ssh_proxy::run(proxy, &context),
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
