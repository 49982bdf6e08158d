//! Benchmark beside quicksand, the other tool that runs Alpine under QEMU without KVM, a daemon or
//! root. Both take the QEMU that is first on the `PATH`, under TCG.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::common::Bench;
use super::table::{Row, median};
use crate::run::{root, run_command};

/// Package as pip names it. Its own QEMU, which another of its extras brings, needs a newer C
/// library than Debian 12 has.
const PACKAGE: &str = "quick-sandbox[alpine]==0.13.0";

/// Prints the seconds from a sandbox's creation to the output of its first command. Importing the
/// package is not counted.
const PROGRAM: &str = "
import asyncio, time
from quicksand import AlpineSandbox
async def main():
    started = time.monotonic()
    async with AlpineSandbox(accel='tcg') as sandbox:
        result = await sandbox.execute('cat /etc/alpine-release')
        assert result.stdout.strip(), result
        print(time.monotonic() - started)
asyncio.run(main())
";

/// Number of starts of each kind. One of quicksand takes half a minute.
const STARTS: usize = 10;

/// Time for what a start leaves to the system, which would slow down the next one.
const PAUSE: Duration = Duration::from_secs(2);

/// Measures fresh VMs of both by turns.
pub(super) fn measure() -> Result<Vec<Row>, String> {
    let packages = install()?;
    Bench::within("bench-quicksand", |bench| alternate(bench, &packages))
}

fn alternate(bench: &Bench, packages: &Path) -> Result<Vec<Row>, String> {
    // The first starts make castra's template and fill the caches of both.
    bench.castra.run(&["up"])?;
    bench.forget_vm()?;
    to_first_output(packages)?;
    let (mut theirs, mut ups, mut runs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        theirs.push(to_first_output(packages)?);
        sleep(PAUSE);
        let started = Instant::now();
        bench.castra.run(&["up"])?;
        bench.castra.run(&["exec", "--", "cat", "/etc/alpine-release"])?;
        ups.push(started.elapsed());
        bench.forget_vm()?;
        sleep(PAUSE);
        runs.push(bench.castra.time(&["run", "--", "cat", "/etc/alpine-release"])?);
    }
    let baseline = ("quicksand's first output in a fresh VM", median(theirs));
    let row = |what, times| Row::against(what, median(times), baseline, "at most 0.011");
    Ok(vec![
        row("`castra up` of a fresh VM and first output, both processes", ups),
        row("`castra run` and its output", runs),
    ])
}

/// Installs the package below `target/` and returns the directory.
fn install() -> Result<PathBuf, String> {
    let directory = root().join("target/quicksand").join(PACKAGE.replace(['[', ']', '='], "-"));
    if directory.exists() {
        return Ok(directory);
    }
    let unfinished = directory.with_extension("unfinished");
    let mut pip = Command::new("pip3");
    pip.args(["install", "--quiet", "--upgrade", "--target"]).arg(&unfinished).arg(PACKAGE);
    run_command(&mut pip)?;
    fs::rename(&unfinished, &directory).map_err(|error| error.to_string())?;
    Ok(directory)
}

fn to_first_output(packages: &Path) -> Result<Duration, String> {
    let mut python = Command::new("python3");
    python.args(["-c", PROGRAM]).env("PYTHONPATH", packages).stdin(Stdio::null());
    let output = python.output().map_err(|error| format!("python3: {error}"))?;
    let seconds = String::from_utf8_lossy(&output.stdout);
    let seconds = seconds.lines().last().and_then(|line| line.trim().parse().ok());
    seconds
        .filter(|_| output.status.success())
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("quicksand failed: {}", String::from_utf8_lossy(&output.stderr)))
}
