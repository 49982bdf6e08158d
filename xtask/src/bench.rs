//! How fast Castra is: each figure a ratio to a baseline that is measured in the same run, taking turns with it.

mod plain;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::{cargo, root, run};
use crate::tools;

use plain::PlainBoot;

/// Cold boots of each kind. They take half a minute a pair.
const BOOTS: usize = 3;
/// Runs of commands that take milliseconds.
const QUICK_RUNS: usize = 50;

/// Measures everything and prints one table.
pub(crate) fn run_bench() -> Result<(), String> {
    tools::ensure_for_tests()?;
    run(&cargo(), &["build", "--release", "--locked"])?;
    let bench = Bench::new()?;
    let rows = bench.measure();
    bench.clean_up()?;
    print(&rows?);
    Ok(())
}

/// One line of the table.
struct Row {
    what: &'static str,
    measured: Duration,
    baseline: Option<(&'static str, Duration)>,
    target: &'static str,
}

struct Bench {
    castra: PathBuf,
    directory: PathBuf,
}

impl Bench {
    fn new() -> Result<Self, String> {
        let directory = root().join("target/bench");
        let bench = Self { castra: root().join("target/release/castra"), directory };
        if bench.directory.exists() {
            bench.clean_up()?;
        }
        fs::create_dir_all(&bench.directory).map_err(|error| error.to_string())?;
        Ok(bench)
    }

    fn measure(&self) -> Result<Vec<Row>, String> {
        // The first start fetches the image; what is measured has it.
        self.castra(&["up"])?;
        let plain = PlainBoot::like_the_running_vm(&self.directory)?;
        let status = self.median(QUICK_RUNS, &["status"])?;
        let version = self.median(QUICK_RUNS, &["--version"])?;
        self.forget_vm()?;
        let (mut plain_boots, mut ups) = (Vec::new(), Vec::new());
        for _ in 0..BOOTS {
            plain_boots.push(plain.to_last_getty()?);
            ups.push(self.up_and_first_command()?);
            self.forget_vm()?;
        }
        Ok(vec![
            Row {
                what: "cold `castra up` and first `exec -- true`",
                measured: median(ups),
                baseline: Some(("plain boot to the last getty", median(plain_boots))),
                target: "at most 0.40",
            },
            Row { what: "`castra status`", measured: status, baseline: None, target: "at most 20 ms" },
            Row { what: "`castra --version`", measured: version, baseline: None, target: "at most 5 ms" },
        ])
    }

    fn up_and_first_command(&self) -> Result<Duration, String> {
        let started = Instant::now();
        self.castra(&["up"])?;
        self.castra(&["exec", "--", "true"])?;
        Ok(started.elapsed())
    }

    /// Ends the VM and takes its disk away, so that the next boot is a first one.
    fn forget_vm(&self) -> Result<(), String> {
        self.castra(&["down", "--force"])?;
        let state = self.directory.join(".castra");
        let entries = fs::read_dir(&state).map_err(|error| error.to_string())?.flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "qcow2") {
                fs::remove_file(path).map_err(|error| error.to_string())?;
            }
        }
        fs::remove_dir_all(state.join("vms")).map_err(|error| error.to_string())
    }

    fn median(&self, runs: usize, arguments: &[&str]) -> Result<Duration, String> {
        let one = |_| {
            let started = Instant::now();
            self.castra(arguments).map(|()| started.elapsed())
        };
        (0..runs).map(one).collect::<Result<Vec<_>, _>>().map(median)
    }

    fn castra(&self, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new(&self.castra);
        command.args(arguments).current_dir(&self.directory).stdin(Stdio::null());
        let output = command.output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("castra {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
    }

    fn clean_up(&self) -> Result<(), String> {
        self.castra(&["down", "--force"])?;
        fs::remove_dir_all(&self.directory).map_err(|error| error.to_string())
    }
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    durations[durations.len() / 2]
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn print(rows: &[Row]) {
    println!("| What | Measured | Baseline | Ratio | Goal |\n| --- | --- | --- | --- | --- |");
    for row in rows {
        let (baseline, ratio) = match row.baseline {
            Some((name, time)) => {
                let ratio = row.measured.as_secs_f64() / time.as_secs_f64();
                (format!("{name}: {}", show(time)), format!("{ratio:.2}"))
            }
            None => ("-".into(), "-".into()),
        };
        println!("| {} | {} | {baseline} | {ratio} | {} |", row.what, show(row.measured), row.target);
    }
}

fn show(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// The only directory of this shape: `images/<id>/<version>`.
fn only_entry(directory: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut directories = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    let is_hidden =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    directories
        .find(|path| !is_hidden(path))
        .ok_or_else(|| format!("there is nothing in {}", directory.display()))
}
