//! `castra run`: one command in a fresh VM that is deleted afterwards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use castra_engine::command::Lifetime;
use castra_engine::config::{
    BaseImageSource, BootProfile, Bounds, ManagedImageSelection, ProjectConfig,
};
use castra_engine::context::RuntimeContext;
use castra_engine::error::{Kind, Result};
use castra_engine::files::create_private_directory;
use castra_engine::guest::ssh::{self, GuestExit, SshError};
use castra_engine::layout::{CacheLayout, ProjectLayout};
use castra_engine::managed::{Catalog, ManagedDiskKind};
use castra_engine::qemu::Network;
use castra_engine::report::{Event, Reporter};
use castra_engine::state_root::StateRoot;
use castra_engine::vm::{self, AccessError, Plan, Throwaway, UpOptions, VmError};

use super::args::{Reach, RunArgs};
use super::context::CommandContext;
use super::error::CliError;
use super::interrupt::install_signal_handlers;
use super::output::Verbosity;
use super::{exec, exit, image, project};

/// Exit code after the time limit, the same as that of `timeout(1)`.
const TIMED_OUT: u8 = 124;

/// Runs the command. The exit code is the command's, or 255 if it could not be reached.
pub(super) fn run(run: &RunArgs, context: &CommandContext) -> Result<ExitCode> {
    let capture = context.printer.is_json().then(|| exec::capture(&run.guest)).transpose()?;
    let request = exec::request(&run.guest, capture.as_ref(), context)?;
    let copies = run.cp.iter().map(|copy| split(copy)).collect::<Result<Vec<_>, _>>()?;
    let place = Place::of(&context.runtime)?;
    // Ctrl-C cancels a boot; later it reaches the command, and a second one ends castra and with it
    // the VM.
    install_signal_handlers(&context.runtime.cancel);
    // Starts the VM in this thread, since the VM ends with the thread that starts it.
    let ended = start(run, context, &place).and_then(|vm| {
        within(run.timeout, &vm, || {
            for (source, destination) in copies {
                let copied = ssh::upload_until(
                    &context.runtime.cancel,
                    &vm.target,
                    &source,
                    &destination,
                    &mut |_| (),
                )?;
                for state in &copied.states {
                    let state = state.display();
                    context.printer.warning(&format!(
                        "skipping {state}: it holds VM disks and keys (name it to copy it)"
                    ));
                }
                // The command must not run with only part of its files.
                if let Some(failure) = copied.failed.into_iter().next() {
                    return Err(failure.into());
                }
            }
            let ended = ssh::exec(&context.runtime.cancel, &vm.target, request);
            if let Err(SshError::Lost) = ended {
                vm.explain_silence()?;
            }
            Ok(ended?)
        })
    });
    if let (Some(capture), Ok(exit)) = (capture, &ended) {
        let captured = capture.finish(exit.as_ref(), TIMED_OUT);
        context.printer.json(&captured).map_err(CliError::from)?;
    }
    Ok(match ended {
        Ok(Some(exit)) => ExitCode::from(exit.code()),
        Ok(None) => {
            let secs = run.timeout.unwrap_or_default().as_secs_f64();
            context.printer.error(&CliError::TimedOut { secs }.into());
            ExitCode::from(TIMED_OUT)
        }
        Err(error) if error.kind() == Kind::Interrupted => return Err(error),
        // 255 sets the failure apart from an exit code of the command's own.
        Err(error) => {
            context.printer.error(&error);
            ExitCode::from(exit::UNREACHED)
        }
    })
}

/// Directory for the files of throwaway VMs.
struct Place {
    state_root: StateRoot,
    layout: ProjectLayout,
    /// Replacement for a cache that cannot be written to.
    _temporary: Option<tempfile::TempDir>,
}

impl Place {
    fn of(context: &RuntimeContext) -> Result<Self> {
        let state_root = StateRoot::of_runs(&context.cache);
        if create_private_directory(state_root.path()).is_ok() {
            return Ok(Self { layout: state_root.open(context)?, state_root, _temporary: None });
        }
        let directory = context.environment.temp_dir();
        let temporary = tempfile::Builder::new().prefix("castra-run-").tempdir_in(&directory);
        let failed = |source| CliError::File { action: "create", path: directory, source };
        let temporary = temporary.map_err(failed)?;
        let state_root = StateRoot::of_runs(&CacheLayout::new(temporary.path().to_owned()));
        Ok(Self { layout: state_root.open(context)?, state_root, _temporary: Some(temporary) })
    }
}

fn start(run: &RunArgs, context: &CommandContext, place: &Place) -> Result<Throwaway> {
    let config = configuration(run, context, place)?;
    let mut runtime = context.with_mirrors_of(&config);
    if context.args.verbosity() != Verbosity::Verbose {
        runtime.reporter = Arc::new(RoutineFilter(runtime.reporter));
    }
    let plan = Plan::new(&config, &[], &Catalog::builtin(), &BTreeMap::new())?;
    let options = UpOptions {
        lifetime: Lifetime::ThisThreads,
        network: match run.network {
            Reach::Full => Network::Full,
            Reach::Isolated => Network::Isolated,
        },
        ..UpOptions::default()
    };
    Ok(vm::start_throwaway(&plan.vms[0], &run.guest.user, &place.layout, &runtime, options)?)
}

/// Returns a project of one VM, from the options. A `castra.toml` only adds the images that can be
/// named.
fn configuration(run: &RunArgs, context: &CommandContext, place: &Place) -> Result<ProjectConfig> {
    let mut config = project::default_config(&context.runtime)?;
    let mut vm = config.vms.remove(0);
    let mut root = config.root.clone();
    vm.name = vm::throwaway_name()?;
    vm.cpus = run.cpus.unwrap_or(vm.cpus);
    vm.disk_bytes = run.disk.unwrap_or(vm.disk_bytes);
    if let Some(name) = &run.image {
        let declared = context.config()?;
        let spec = image::named(name, declared)?;
        if spec.profile.command_line.is_none() {
            return Err(VmError::from(AccessError::NoAgent { vm: spec.label().to_string() }).into());
        }
        vm.memory_bytes = vm.memory_bytes.max(spec.profile.min_memory_mib << 20);
        vm.boot_profile = BootProfile::Managed;
        vm.base_image = BaseImageSource::Managed(ManagedImageSelection::Exact {
            name: spec.id,
            version: spec.version,
            disk: ManagedDiskKind::Rootfs,
        });
        (config.images, config.mirrors) = (declared.images.clone(), declared.mirrors.clone());
        root.clone_from(&declared.root);
    }
    vm.memory_bytes = run.memory.unwrap_or(vm.memory_bytes);
    config.bounds = Arc::new(Bounds::of_cache(&root, &place.layout));
    vm.overlay = config.bounds.default_disk(&vm.name);
    config.state_root = place.state_root.clone();
    config.vms.push(vm);
    Ok(config)
}

/// Runs `work`, and returns `None` if it exceeds the limit: then the VM is ended, which ends the
/// work.
fn within(
    limit: Option<Duration>,
    vm: &Throwaway,
    work: impl FnOnce() -> Result<GuestExit>,
) -> Result<Option<GuestExit>> {
    let Some(limit) = limit else { return work().map(Some) };
    let is_late = &AtomicBool::new(false);
    let (done, is_done) = channel::<()>();
    let ended = thread::scope(|scope| {
        scope.spawn(move || {
            if is_done.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                is_late.store(true, Ordering::Relaxed);
                vm.end();
            }
        });
        let ended = work();
        // Wakes the thread above, whatever the work came to.
        drop(done);
        ended
    });
    match ended {
        Err(_) if is_late.load(Ordering::Relaxed) => Ok(None),
        other => other.map(Some),
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

/// Reporter that leaves out routine events, so that a command's own output stands out from what is
/// slow or goes wrong.
struct RoutineFilter(Arc<dyn Reporter>);

impl Reporter for RoutineFilter {
    fn report(&self, event: &Event) {
        let is_routine = match event {
            Event::ImageChosen { reason, .. } => reason.starts_with("cached"),
            Event::VmStarting { warm, .. } => *warm,
            Event::ImageCacheHit { .. }
            | Event::AcceleratorChosen { .. }
            | Event::OverlayCreated { .. }
            | Event::VmPhase { .. } => true,
            _ => false,
        };
        if !is_routine {
            self.0.report(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_a_source_and_a_destination() {
        let (source, destination) = split("a:b/c:/srv").expect("splits");
        assert_eq!((source.as_path(), destination.as_str()), (Path::new("a:b/c"), "/srv"));
        for bad in ["", "a", ":", "a:", ":/srv"] {
            assert!(matches!(split(bad), Err(CliError::NoDestination { .. })), "{bad}");
        }
    }
}
