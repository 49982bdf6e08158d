//! `castra cp`: copies files and directories between this machine and one VM.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use castra_engine::cancel::Cancel;
use castra_engine::error::{Error, Kind, Result};
use castra_engine::guest::ssh::{self, Copied, SshError, Target};
use castra_engine::report::Event;
use castra_engine::sanitize::sanitize_text;
use schemars::JsonSchema;
use serde::Serialize;

use super::args::CpArgs;
use super::context::CommandContext;
use super::error::CliError;
use super::interrupt::install_signal_handlers;
use super::printer::Printer;
use super::{exec, exit};

/// Copies between this machine and one VM.
pub(super) fn run(cp: &CpArgs, context: &CommandContext) -> Result<ExitCode> {
    let job = Job::of(&cp.paths)?;
    let target = exec::target(job.vm.as_deref(), &cp.user, context)?;
    refuse_many_onto_a_file(&context.runtime.cancel, &job, &target)?;
    // An interrupted copy removes what it has begun.
    install_signal_handlers(&context.runtime.cancel);
    let (mut copies, mut failures) = (Vec::new(), Vec::new());
    for source in &job.sources {
        let shown = source.to_string_lossy().into_owned();
        match copy(&job, source, &target, context) {
            Ok((copied, bytes)) => {
                copies.push(Copy::of(shown, copied, bytes, &mut failures, context.printer))
            }
            Err(error) if job.sources.len() == 1 || ends_all(&error) => return Err(error.into()),
            Err(error) => failures.push(error.into()),
        }
    }
    context.printer.show(&Copies { copies }, "")?;
    failures.iter().for_each(|failure| context.printer.error(failure));
    Ok(failures.first().map_or(ExitCode::SUCCESS, |first| exit::of_kind(first.kind())))
}

/// Returns `true` for errors that every further source would meet too.
fn ends_all(error: &SshError) -> bool {
    use castra_engine::error::Explain as _;
    error.is_before_login() || matches!(error.kind(), Kind::Interrupted | Kind::Unavailable)
}

/// Outcome of all copies.
#[derive(Serialize, JsonSchema)]
pub(super) struct Copies {
    /// Copies, one per source.
    copies: Vec<Copy>,
}

/// Outcome of the copy of one source.
#[derive(Serialize, JsonSchema)]
struct Copy {
    /// Source, as it was given.
    source: String,
    /// Bytes of the source's files.
    bytes: u64,
    /// Entries left out because they are neither file, directory nor link.
    skipped: Vec<String>,
    /// Castra's state directories, which are left out.
    states: Vec<String>,
    /// Messages for the entries that could not be copied.
    failed: Vec<String>,
}

impl Copy {
    /// Returns the outcome of a copy, warns about what was left out, and moves the errors to
    /// `failures`, which are printed last.
    fn of(
        source: String,
        copied: Copied,
        bytes: u64,
        failures: &mut Vec<Error>,
        printer: &Printer,
    ) -> Self {
        let text = |path: &std::path::PathBuf| path.to_string_lossy().into_owned();
        let skipped: Vec<String> = copied.skipped.iter().map(text).collect();
        let states: Vec<String> = copied.states.iter().map(text).collect();
        for name in &skipped {
            // The guest chose the name.
            let name = sanitize_text(name);
            printer.warning(&format!("skipping {name}: not a file, directory or symbolic link"));
        }
        for name in &states {
            let name = sanitize_text(name);
            printer.warning(&format!(
                "skipping {name}: it holds VM disks and keys (name it to \
                copy it)"
            ));
        }
        for path in &copied.incomplete {
            printer.warning(&format!("{} is incomplete: copying it failed", path.display()));
        }
        let failed = copied.failed.iter().map(ToString::to_string).collect();
        failures.extend(copied.failed.into_iter().map(Error::from));
        if !skipped.is_empty() {
            failures.push(CliError::LeftOut { count: skipped.len(), tree: source.clone() }.into());
        }
        Self { source, bytes, skipped, states, failed }
    }
}

/// Sources, destination and direction of a copy.
#[derive(Debug, PartialEq, Eq)]
struct Job {
    direction: Direction,
    vm: Option<String>,
    sources: Vec<OsString>,
    destination: OsString,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    IntoVm,
    OutOfVm,
}

/// A path as it was written: on this machine, or in a VM.
enum Place<'a> {
    Here(&'a OsStr),
    InVm { vm: Option<&'a str>, path: &'a OsStr },
}

impl<'a> Place<'a> {
    /// Parses `VM:PATH` or `:PATH`. As in scp, a text with a `/` before its first colon is a path
    /// on this machine.
    fn of(text: &'a OsStr) -> Self {
        let bytes = text.as_bytes();
        let Some(colon) = bytes.iter().position(|byte| *byte == b':') else {
            return Self::Here(text);
        };
        let path = OsStr::from_bytes(&bytes[colon + 1..]);
        match std::str::from_utf8(&bytes[..colon]) {
            Ok("") => Self::InVm { vm: None, path },
            Ok(vm) if !vm.contains('/') => Self::InVm { vm: Some(vm), path },
            // No VM's name is anything but UTF-8.
            _ => Self::Here(text),
        }
    }
}

impl Job {
    fn of(paths: &[OsString]) -> Result<Self, CliError> {
        let text = || paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        let (sources, destination) = match paths {
            [sources @ .., destination] => (sources, destination),
            [] => return Err(CliError::NothingRemote { paths: Vec::new() }),
        };
        let too_many = || CliError::TooManyRemotes { paths: text() };
        let places: Vec<Place> = sources.iter().map(|source| Place::of(source)).collect();
        match Place::of(destination) {
            Place::InVm { vm, path } => {
                let here = |place: &Place| match place {
                    Place::Here(path) => Some((*path).to_owned()),
                    Place::InVm { .. } => None,
                };
                let sources =
                    places.iter().map(here).collect::<Option<_>>().ok_or_else(too_many)?;
                let vm = vm.map(str::to_owned);
                Ok(Self { direction: Direction::IntoVm, vm, sources, destination: path.to_owned() })
            }
            Place::Here(destination) => {
                let there = |place: &Place| match place {
                    Place::InVm { vm, path } => Some((vm.map(str::to_owned), (*path).to_owned())),
                    Place::Here(_) => None,
                };
                let remote: Vec<(Option<String>, OsString)> =
                    places.iter().filter_map(there).collect();
                let vm = remote.first().map(|(vm, _)| vm.clone());
                let vm = vm.ok_or_else(|| CliError::NothingRemote { paths: text() })?;
                if remote.len() < places.len() || remote.iter().any(|(other, _)| *other != vm) {
                    return Err(too_many());
                }
                let sources = remote.into_iter().map(|(_, path)| path).collect();
                Ok(Self {
                    direction: Direction::OutOfVm,
                    vm,
                    sources,
                    destination: destination.to_owned(),
                })
            }
        }
    }
}

/// Refuses several sources whose destination is not a directory: each would replace the one before.
fn refuse_many_onto_a_file(cancel: &Cancel, job: &Job, target: &Target) -> Result<()> {
    if job.sources.len() < 2 {
        return Ok(());
    }
    let is_directory = match job.direction {
        Direction::OutOfVm => Path::new(&job.destination).is_dir(),
        Direction::IntoVm => {
            let test = vec!["test".into(), "-d".into(), job.destination.clone()];
            ssh::capture(cancel, target, test, 0)?.exit.is_success()
        }
    };
    let path = || job.destination.to_string_lossy().into_owned();
    if is_directory { Ok(()) } else { Err(CliError::NotADirectory { path: path() }.into()) }
}

fn copy(
    job: &Job,
    source: &OsStr,
    target: &Target,
    context: &CommandContext,
) -> Result<(Copied, u64), SshError> {
    let path = source.to_string_lossy().into_owned();
    let mut done_bytes = 0;
    let mut progress = |bytes| {
        done_bytes += bytes;
        context.runtime.reporter.report(&Event::Copy { path: path.clone(), done_bytes });
    };
    let (cancel, destination) = (&context.runtime.cancel, &job.destination);
    let copied = match job.direction {
        Direction::IntoVm => {
            ssh::upload_until(cancel, target, Path::new(source), destination, &mut progress)
        }
        Direction::OutOfVm => {
            ssh::download_until(cancel, target, source, Path::new(destination), &mut progress)
        }
    };
    // This event removes the progress bar, so it is sent even after a failure, then without a
    // total.
    let total_bytes = copied.is_ok().then_some(done_bytes);
    context.runtime.reporter.report(&Event::CopyFinished { path, total_bytes });
    Ok((copied?, done_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(paths: &[&str]) -> Result<Job, CliError> {
        Job::of(&paths.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn paths_are_distinguished_as_scp_does() {
        let into = job(&["a", "./b:c", "web:/srv"]).expect("into a VM");
        assert_eq!((into.direction, into.vm.as_deref()), (Direction::IntoVm, Some("web")));
        assert_eq!(into.sources, ["a", "./b:c"]);
        let out = job(&[":/etc/hosts", ":/etc/motd", "."]).expect("out of the VM");
        assert_eq!(
            (out.direction, out.vm, out.destination.to_str()),
            (Direction::OutOfVm, None, Some("."))
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(matches!(job(&["a", "b"]), Err(CliError::NothingRemote { .. })));
        assert!(matches!(job(&["one:/a", "two:/b"]), Err(CliError::TooManyRemotes { .. })));
        assert!(matches!(job(&["one:/a", "two:/b", "."]), Err(CliError::TooManyRemotes { .. })));
        assert!(matches!(job(&["one:/a", "b", "."]), Err(CliError::TooManyRemotes { .. })));
    }
}
