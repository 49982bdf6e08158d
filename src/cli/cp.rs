use std::path::Path;
use std::process::ExitCode;

use schemars::JsonSchema;
use serde::Serialize;

use crate::context::RuntimeContext;
use crate::error::Result;
use crate::guest::ssh::{self, Copied, Target};
use crate::harmless::harmless_text;
use crate::report::Event;

use super::args::{Args, Cp};
use super::error::CliError;
use super::exec;
use super::printer::Printer;

/// Copies between this machine and one VM.
pub(super) fn run(cp: &Cp, args: &Args, context: &RuntimeContext, printer: &Printer) -> Result<ExitCode> {
    let job = Job::of(&cp.paths)?;
    let target = exec::target(job.vm.as_deref(), &cp.user, args, context, printer)?;
    refuse_many_onto_a_file(&job, &target)?;
    let mut copies = Vec::new();
    for source in &job.sources {
        let (copied, bytes) = copy(&job, source, &target, context)?;
        let skipped: Vec<String> =
            copied.skipped.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        for name in &skipped {
            // A name that the guest chose.
            let name = harmless_text(name);
            printer.warning(&format!("{name} is neither file, directory nor link: left out"));
        }
        copies.push(Copy { source: source.clone(), bytes, skipped });
    }
    printer.show(&Copies { copies }, "")?;
    Ok(ExitCode::SUCCESS)
}

/// What was copied.
#[derive(Serialize, JsonSchema)]
pub(super) struct Copies {
    /// One a source.
    copies: Vec<Copy>,
}

/// One source and what came of it.
#[derive(Serialize, JsonSchema)]
struct Copy {
    /// As it was named.
    source: String,
    /// Bytes of its files.
    bytes: u64,
    /// What is neither file, directory nor link, and was left out.
    skipped: Vec<String>,
}

/// What is to be copied where.
#[derive(Debug, PartialEq, Eq)]
struct Job {
    direction: Direction,
    vm: Option<String>,
    sources: Vec<String>,
    destination: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    IntoVm,
    OutOfVm,
}

/// A path as it was written: of this machine, or of a VM.
enum Place<'a> {
    Here(&'a str),
    InVm { vm: Option<&'a str>, path: &'a str },
}

impl<'a> Place<'a> {
    /// `VM:PATH` or `:PATH`; whatever has a `/` before its first colon is a path of this machine, as scp has it.
    fn of(text: &'a str) -> Self {
        match text.split_once(':') {
            Some(("", path)) => Self::InVm { vm: None, path },
            Some((vm, path)) if !vm.contains('/') => Self::InVm { vm: Some(vm), path },
            _ => Self::Here(text),
        }
    }
}

impl Job {
    fn of(paths: &[String]) -> Result<Self, CliError> {
        let (sources, destination) = match paths {
            [sources @ .., destination] => (sources, destination),
            [] => return Err(CliError::NothingRemote { paths: Vec::new() }),
        };
        let too_many = || CliError::TooManyRemotes { paths: paths.to_vec() };
        let places: Vec<Place> = sources.iter().map(|source| Place::of(source)).collect();
        match Place::of(destination) {
            Place::InVm { vm, path } => {
                let here = |place: &Place| match place {
                    Place::Here(path) => Some((*path).to_owned()),
                    Place::InVm { .. } => None,
                };
                let sources = places.iter().map(here).collect::<Option<_>>().ok_or_else(too_many)?;
                let vm = vm.map(str::to_owned);
                Ok(Self { direction: Direction::IntoVm, vm, sources, destination: path.to_owned() })
            }
            Place::Here(destination) => {
                let there = |place: &Place| match place {
                    Place::InVm { vm, path } => Some((vm.map(str::to_owned), (*path).to_owned())),
                    Place::Here(_) => None,
                };
                let remote: Vec<(Option<String>, String)> = places.iter().filter_map(there).collect();
                let vm = remote.first().map(|(vm, _)| vm.clone());
                let vm = vm.ok_or_else(|| CliError::NothingRemote { paths: paths.to_vec() })?;
                if remote.len() < places.len() || remote.iter().any(|(other, _)| *other != vm) {
                    return Err(too_many());
                }
                let sources = remote.into_iter().map(|(_, path)| path).collect();
                Ok(Self { direction: Direction::OutOfVm, vm, sources, destination: destination.to_owned() })
            }
        }
    }
}

/// Several sources need a directory to go into: onto one file, each would replace the one before.
fn refuse_many_onto_a_file(job: &Job, target: &Target) -> Result<()> {
    if job.sources.len() < 2 {
        return Ok(());
    }
    let is_directory = match job.direction {
        Direction::OutOfVm => Path::new(&job.destination).is_dir(),
        Direction::IntoVm => {
            let test = ["test", "-d", &job.destination].map(Into::into).to_vec();
            ssh::capture(target, test, 0)?.exit.is_success()
        }
    };
    if is_directory { Ok(()) } else { Err(CliError::NotADirectory { path: job.destination.clone() }.into()) }
}

fn copy(job: &Job, source: &str, target: &Target, context: &RuntimeContext) -> Result<(Copied, u64)> {
    let mut done_bytes = 0;
    let mut progress = |bytes| {
        done_bytes += bytes;
        context.reporter.report(&Event::Copy { path: source.to_owned(), done_bytes });
    };
    let copied = match job.direction {
        Direction::IntoVm => ssh::upload(target, Path::new(source), &job.destination, &mut progress),
        Direction::OutOfVm => ssh::download(target, source, Path::new(&job.destination), &mut progress),
    };
    // Takes a bar away, so it comes first; what is told of a failure is not that it finished.
    let total_bytes = copied.is_ok().then_some(done_bytes);
    context.reporter.report(&Event::CopyFinished { path: source.to_owned(), total_bytes });
    Ok((copied?, done_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(paths: &[&str]) -> Result<Job, CliError> {
        Job::of(&paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn paths_are_told_apart_as_scp_does() {
        let into = job(&["a", "./b:c", "web:/srv"]).expect("into a VM");
        assert_eq!((into.direction, into.vm.as_deref()), (Direction::IntoVm, Some("web")));
        assert_eq!(into.sources, ["a", "./b:c"]);
        let out = job(&[":/etc/hosts", ":/etc/motd", "."]).expect("out of the VM");
        assert_eq!((out.direction, out.vm, out.destination.as_str()), (Direction::OutOfVm, None, "."));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(matches!(job(&["a", "b"]), Err(CliError::NothingRemote { .. })));
        assert!(matches!(job(&["one:/a", "two:/b"]), Err(CliError::TooManyRemotes { .. })));
        assert!(matches!(job(&["one:/a", "two:/b", "."]), Err(CliError::TooManyRemotes { .. })));
        assert!(matches!(job(&["one:/a", "b", "."]), Err(CliError::TooManyRemotes { .. })));
    }
}
