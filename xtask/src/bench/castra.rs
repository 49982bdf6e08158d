//! The measured program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::table::median;
use crate::run::root;

/// Interval at which a process's memory is read.
const LOOK: Duration = Duration::from_millis(2);

/// The `castra` of a release build, in some directory.
pub(super) struct Castra {
    directory: PathBuf,
    cache: Option<PathBuf>,
}

impl Castra {
    /// Returns a castra with this user's own cache.
    pub(super) fn in_directory(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), cache: None }
    }

    /// Gives it a cache of its own.
    pub(super) fn with_cache(mut self, cache: &Path) -> Self {
        self.cache = Some(cache.to_owned());
        self
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Result<(), String> {
        self.output(arguments).map(drop)
    }

    /// Runs a command and returns what it prints.
    pub(super) fn output(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(arguments).output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let command = arguments.get(..2).unwrap_or(arguments).join(" ");
        Err(format!("castra {command} failed: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Measures the duration of a command.
    pub(super) fn time(&self, arguments: &[&str]) -> Result<Duration, String> {
        let started = Instant::now();
        self.run(arguments).map(|()| started.elapsed())
    }

    pub(super) fn median(&self, runs: usize, arguments: &[&str]) -> Result<Duration, String> {
        (0..runs).map(|_| self.time(arguments)).collect::<Result<Vec<_>, _>>().map(median)
    }

    /// Returns the peak memory of the process itself, in bytes (`VmHWM` in `proc(5)`).
    pub(super) fn peak_memory(&self, arguments: &[&str]) -> Result<u64, String> {
        let mut command = self.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let status = PathBuf::from(format!("/proc/{}/status", child.id()));
        let mut peak = 0;
        loop {
            // The kernel keeps the maximum, so only the last reading matters.
            peak = peak.max(high_water(&status).unwrap_or(0));
            if let Some(ended) = child.try_wait().map_err(|error| error.to_string())? {
                return if ended.success() {
                    Ok(peak)
                } else {
                    Err(format!("castra failed: {ended}"))
                };
            }
            thread::sleep(LOOK);
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(root().join("target/release/castra"));
        command.args(arguments).current_dir(&self.directory).stdin(Stdio::null());
        command.envs(self.cache.as_ref().map(|cache| ("XDG_CACHE_HOME", cache)));
        command
    }
}

fn high_water(status: &Path) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
