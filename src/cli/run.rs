//! `castra run`: one command in a fresh VM that is deleted afterwards.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use castra_engine::error::{Error, Kind, Result};
use castra_engine::guest::Mount;
use castra_engine::qemu::Network;
use castra_engine::report::{Event, Reporter};
use castra_engine::{Castra, Run, TimedOut};

use super::args::{PortsToForward, Reach, RunArgs};
use super::context::CommandContext;
use super::error::CliError;
use super::exec::{with_directory, with_settings};
use super::interrupt::install_signal_handlers;
use super::output::Verbosity;
use super::{exec, exit};

/// Name of the VM in events.
const NAME_IN_EVENTS: &str = "run";

/// Exit code after the time limit, the same as that of `timeout(1)`.
const TIMED_OUT: u8 = 124;

/// Runs the command. The exit code is the command's, or 255 if it could not be reached.
pub(super) fn run(run: &RunArgs, context: &CommandContext) -> Result<ExitCode> {
    let mut capture = context.printer.is_json().then(|| exec::capture(&run.guest)).transpose()?;
    let task = task(run, context)?;
    // Ctrl-C cancels a boot; later it reaches the command, and a second one ends castra and with it
    // the VM.
    install_signal_handlers(&context.runtime.cancel);
    let ended = with_image(task, run, context).and_then(|task| match &mut capture {
        Some(capture) => task.stream(|stream, bytes| capture.take(stream, bytes)),
        None => task.status(),
    });
    let is_late = |error: &Error| error.downcast_ref::<TimedOut>().is_some();
    let exit = match &ended {
        Ok(exit) => Some(Some(exit)),
        Err(error) => is_late(error).then_some(None),
    };
    if let (Some(capture), Some(exit)) = (capture, exit) {
        let captured = capture.finish(exit, TIMED_OUT);
        context.printer.json(&captured).map_err(CliError::from)?;
    }
    match ended {
        Ok(exit) => Ok(ExitCode::from(exit.code())),
        Err(error) if error.kind() == Kind::Interrupted => Err(error),
        Err(error) => {
            context.printer.error(&error);
            // 255 sets the failure apart from an exit code of the command's own.
            Ok(ExitCode::from(if is_late(&error) { TIMED_OUT } else { exit::UNREACHED }))
        }
    }
}

/// Returns the run that the command line describes.
fn task(run: &RunArgs, context: &CommandContext) -> Result<Run> {
    let mut runtime = context.runtime.clone();
    let is_verbose = context.args.verbosity() == Verbosity::Verbose;
    runtime.reporter = Arc::new(RunReporter { inner: runtime.reporter, is_verbose });
    let mut sandbox = Castra::of(runtime).sandbox().network(network(run.network));
    for script in &run.provision {
        sandbox = sandbox.provision(script);
    }
    if let Some(reach) = run.provision_network {
        sandbox = sandbox.provision_network(network(reach));
    }
    if let Some(cpus) = run.cpus {
        sandbox = sandbox.cpus(cpus);
    }
    if let Some(bytes) = run.memory {
        sandbox = sandbox.memory_mib(bytes >> 20);
    }
    if let Some(bytes) = run.disk {
        sandbox = sandbox.disk_bytes(bytes);
    }
    if run.ports == Some(PortsToForward::Auto) {
        sandbox = sandbox.forward_listeners();
    }
    for word in &run.mount {
        let Mount { host, guest, read_only, .. } = word.resolve(NAME_IN_EVENTS)?;
        sandbox = match read_only {
            true => sandbox.mount_read_only(host, guest),
            false => sandbox.mount(host, guest),
        };
    }
    let mut task = with_settings!(sandbox.run(&run.guest.command), &run.guest, context);
    for copy in &run.cp {
        let (source, destination) = split(copy)?;
        task = task.copy_in(source, destination);
    }
    if let Some(limit) = run.timeout {
        task = task.timeout(limit);
    }
    Ok(task)
}

fn network(reach: Reach) -> Network {
    match reach {
        Reach::Full => Network::Full,
        Reach::Isolated => Network::Isolated,
    }
}

/// Parses `SRC:DST`. A source may have colons, a destination has none.
fn split(copy: &str) -> Result<(PathBuf, String), CliError> {
    match copy.rsplit_once(':') {
        Some((source, destination)) if !source.is_empty() && !destination.is_empty() => {
            Ok((Path::new(source).to_owned(), destination.to_owned()))
        }
        _ => Err(CliError::NoDestination { copy: copy.to_owned() }),
    }
}

/// Adds the image. A `castra.toml` only adds the images that can be named.
fn with_image(task: Run, run: &RunArgs, context: &CommandContext) -> Result<Run> {
    Ok(match &run.image {
        Some(name) => task.images_of(context.config()?).image(name),
        None => task,
    })
}

/// Reporter that leaves out routine events, so that a command's own output stands out from what is
/// slow or goes wrong, and the VM's name, which is of no use to anyone.
struct RunReporter {
    inner: Arc<dyn Reporter>,
    /// True if routine events are wanted.
    is_verbose: bool,
}

impl RunReporter {
    fn is_routine(event: &Event) -> bool {
        match event {
            Event::ImageChosen { reason, .. } => reason.starts_with("cached"),
            Event::VmStarting { warm, .. } => *warm,
            Event::ProvisionStep { cached, .. } => *cached,
            Event::ImageCacheHit { .. }
            | Event::AcceleratorChosen { .. }
            | Event::OverlayCreated { .. }
            | Event::VmPhase { .. } => true,
            _ => false,
        }
    }
}

impl Reporter for RunReporter {
    fn report(&self, event: &Event) {
        if !self.is_verbose && Self::is_routine(event) {
            return;
        }
        let mut event = event.clone();
        if let Some(vm) = event.vm_mut() {
            *vm = NAME_IN_EVENTS.to_owned();
        }
        if let Event::Warning { message } = &mut event {
            *message = without_name(message);
        }
        self.inner.report(&event);
    }
}

/// Returns a message that does not name the throwaway VM.
fn without_name(message: &str) -> String {
    let named = message.split_once("VM `run-");
    let parts = named.and_then(|(before, rest)| Some((before, rest.split_once('`')?.1)));
    parts.map_or_else(|| message.to_owned(), |(before, after)| format!("{before}the VM{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Heard(std::sync::Mutex<Vec<Event>>);

    impl Reporter for Heard {
        fn report(&self, event: &Event) {
            self.0.lock().expect("a list").push(event.clone());
        }
    }

    #[test]
    fn the_name_of_a_throwaway_vm_is_not_shown() {
        let heard = Arc::new(Heard::default());
        let reporter = RunReporter { inner: heard.clone(), is_verbose: false };
        let vm = "run-0123456789ab".to_owned();
        reporter.report(&Event::TemplateBaking { vm: vm.clone() });
        reporter.report(&Event::VmStarting { vm: vm.clone(), warm: true });
        let message = format!("VM `{vm}` boots without a warm template");
        reporter.report(&Event::Warning { message });
        let heard = heard.0.lock().expect("a list").clone();
        let message = "the VM boots without a warm template".to_owned();
        let shown = [Event::TemplateBaking { vm: "run".into() }, Event::Warning { message }];
        assert_eq!(heard, shown);
    }

    #[test]
    fn a_copy_has_a_source_and_a_destination() {
        let (source, destination) = split("a:b/c:/srv").expect("splits");
        assert_eq!((source.as_path(), destination.as_str()), (Path::new("a:b/c"), "/srv"));
        for bad in ["", "a", ":", "a:", ":/srv"] {
            assert!(matches!(split(bad), Err(CliError::NoDestination { .. })), "{bad}");
        }
    }
}
