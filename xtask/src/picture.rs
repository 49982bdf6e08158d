//! `cargo xtask picture`: records a real session and draws it for the README, light and dark.

mod svg;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::{cargo, root, run};
use crate::tools;

/// Directory of the session. It is in the picture, in the path of the VM's disk.
const DIRECTORY: &str = "/tmp/sandbox";
/// Lines that are typed, one after another.
const SESSION: [&str; 6] = [
    "castra up",
    "castra exec -- uname -sr",
    "castra suspend",
    "castra up",
    "castra run --network isolated -- sh -c 'echo \"hello from a throw-away VM\"'",
    "castra down",
];

/// A line that was typed, and its output.
pub(crate) struct Step {
    typed: String,
    /// Lines of output, each with the time since the command was started.
    output: Vec<(Duration, String)>,
    took: Duration,
}

/// Records the session in a project without any VM, on an image and a warm template that are
/// cached.
pub(crate) fn draw_picture() -> Result<(), String> {
    tools::ensure_runtime()?;
    run(&cargo(), &["build", "--locked"])?;
    let directory = Path::new(DIRECTORY);
    // Fills the cache, so that the picture shows a typical start and not the first one.
    let first = in_fresh_directory(directory, &["castra up", "castra down"]);
    first.and_then(|_| in_fresh_directory(directory, &SESSION)).and_then(|steps| {
        for theme in &svg::THEMES {
            let path = root().join(format!("docs/picture/{}.svg", theme.name));
            fs::write(&path, svg::draw(&steps, theme))
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        Ok(())
    })
}

/// Runs lines in a directory that is created for them and removed afterwards.
fn in_fresh_directory(directory: &Path, lines: &[&str]) -> Result<Vec<Step>, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", directory.display());
    fs::create_dir(directory).map_err(failed)?;
    let steps = lines.iter().map(|line| record(directory, line)).collect();
    // A VM that an earlier line left behind is stopped before its disk goes.
    record(directory, "castra --quiet down")?;
    fs::remove_dir_all(directory).map_err(failed)?;
    steps
}

/// Runs one line in a shell and records its output with times.
fn record(directory: &Path, line: &str) -> Result<Step, String> {
    let failed = |error: std::io::Error| format!("`{line}`: {error}");
    let own = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{own}", root().join("target/debug").display());
    let begun = Instant::now();
    let mut shell = Command::new("sh")
        .args(["-c", &format!("exec 2>&1; {line}")])
        .current_dir(directory)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut output = Vec::new();
    if let Some(stdout) = shell.stdout.take() {
        for text in BufReader::new(stdout).lines() {
            output.push((begun.elapsed(), text.map_err(failed)?));
        }
    }
    let status = shell.wait().map_err(failed)?;
    let took = begun.elapsed();
    if !status.success() {
        let said: Vec<String> = output.into_iter().map(|(_, text)| text).collect();
        return Err(format!("`{line}` failed ({status}):\n{}", said.join("\n")));
    }
    Ok(Step { typed: line.to_owned(), output, took })
}
