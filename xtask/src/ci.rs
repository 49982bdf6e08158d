//! Checks that must pass before a change is good.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::disks;
use crate::docs;
use crate::newer_qemu;
use crate::prose;
use crate::run::{cargo, root, run, run_command};
use crate::tools;

/// Filter of the test runner for the tests that run a real QEMU.
const OF_VMS: &str = "binary(vm) or (binary(faults) and test(/^attacks::/))";
/// Arguments of the test runner for the tests of disks that are not in every run.
const OF_ALL_DISKS: [&str; 4] =
    ["--run-ignored", "only", "-E", "binary(vm) and test(/^real_disks::/)"];
/// Feature that tests need and users do not.
const FOR_TESTS: &str = "castra/fail-points";
/// Variable with the number of tests that run at once, one per core by default.
const TEST_THREADS: &str = "NEXTEST_TEST_THREADS";
/// Variable with the path of the file to which a test that cannot run here adds a line:
/// `crates/castra-test-support/src/skip.rs`.
const SKIPPED_TESTS: &str = "CASTRA_SKIPPED_TESTS";

/// Runs all checks, quickest first; the tests last, so that the runner's summary ends the output. A
/// skipped test is a failure here, because it would check nothing.
pub(crate) fn run_checks() -> Result<(), String> {
    let cargo = cargo();
    run(&cargo, &["fmt", "--all", "--check"])?;
    prose::check()?;
    let lint = ["clippy", "--workspace", "--all-targets", "--features", FOR_TESTS, "--locked"];
    run(&cargo, &[lint.as_slice(), &["--", "-D", "warnings"]].concat())?;
    tools::ensure_deny()?;
    run(&cargo, &["deny", "check", "bans", "licenses", "sources"])?;
    let mut doc = Command::new(&cargo);
    doc.args(["doc", "--workspace", "--no-deps", "--locked"]).env("RUSTDOCFLAGS", "-D warnings");
    run_command(doc.current_dir(root()))?;
    docs::build_book()?;
    refuse_skipped(&run_tests(&[], None)?)
}

/// Runs all checks, those of all disks, too, and repeats the tests that run a real QEMU under a
/// newer one.
pub(crate) fn run_all_checks() -> Result<(), String> {
    run_checks()?;
    disks::build_disks(&[])?;
    refuse_skipped(&run_tests(&OF_ALL_DISKS.map(str::to_owned), None)?)?;
    let programs = newer_qemu::ensure()?;
    refuse_skipped(&run_tests(&["-E".to_owned(), OF_VMS.to_owned()], Some(&programs))?)
}

fn refuse_skipped(skipped: &str) -> Result<(), String> {
    if skipped.is_empty() {
        Ok(())
    } else {
        Err(format!("{} tests were skipped", skipped.lines().count()))
    }
}

/// Runs all tests, those of the documentation first. `arguments` are passed to the runner. Skipped
/// tests are printed, and are no failure.
pub(crate) fn test(arguments: &[String]) -> Result<(), String> {
    run_tests(arguments, None).map(drop)
}

/// Runs tests, with the programs in this directory first on the `PATH`. Prints the skipped tests,
/// if any, and returns them, one per line.
#[expect(clippy::print_stderr, reason = "a command line tool talks to its user")]
fn run_tests(arguments: &[String], programs: Option<&Path>) -> Result<String, String> {
    tools::ensure_for_tests()?;
    disks::build_for_tests()?;
    let cargo = cargo();
    if arguments.is_empty() {
        // With the same features as the others, so that the libraries are not compiled twice.
        run(&cargo, &["test", "--workspace", "--doc", "--features", FOR_TESTS, "--locked"])?;
    }
    let list = root().join("target/skipped-tests");
    forget(&list)?;
    let mut nextest = Command::new(&cargo);
    nextest.args([
        "nextest",
        "run",
        "--workspace",
        "--features",
        FOR_TESTS,
        "--locked",
        "--no-fail-fast",
    ]);
    nextest.args(arguments).env(SKIPPED_TESTS, &list).current_dir(root());
    if std::env::var_os(TEST_THREADS).is_none() {
        nextest.env(TEST_THREADS, test_threads().to_string());
    }
    if let Some(programs) = programs {
        nextest.env("PATH", newer_qemu::first_on_path(programs)?);
    }
    run_command(&mut nextest)?;
    let skipped = fs::read_to_string(&list).unwrap_or_default();
    forget(&list)?;
    eprint!("{skipped}");
    Ok(skipped)
}

/// Returns the number of tests to run at once: one more than there are cores, since VMs and the
/// tests of the stand-in for QEMU also wait, and few VMs may run at once (`.config/nextest.toml`).
fn test_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) + 1
}

fn forget(list: &Path) -> Result<(), String> {
    match fs::remove_file(list) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", list.display()))
        }
        _ => Ok(()),
    }
}
