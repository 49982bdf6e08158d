//! Runs libFuzzer with the stable compiler: coverage is a pass of LLVM's, and safe Rust needs no
//! sanitizer to fail loudly.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::run::{cargo, root, run_command};
use crate::tools;

/// Binaries of `fuzz/`.
const TARGETS: [&str; 22] = [
    "vhd_footer",
    "manifest",
    "checksums",
    "lock_file",
    "signatures",
    "config",
    "control_port",
    "exec_header",
    "stream_port",
    "sftp",
    "fuse",
    "disk_tables",
    "disk_lvm",
    "disk_ext",
    "disk_xfs",
    "disk_btrfs",
    "disk_vfat",
    "disk_qcow2",
    "grub_config",
    "loader_entry",
    "extlinux_config",
    "unified_image",
];
/// Filter of the test runner for the tests that try the same targets, and have seeds for them.
const OF_TARGETS: &str = "test(/(^|::)fuzz::/)";
/// Variable with the directory to which these tests write their seeds:
/// `crates/castra-test-support/src/mutate.rs`.
const SEEDS: &str = "CASTRA_FUZZ_SEEDS";
/// Compiler flags of cargo-fuzz, except for the sanitizers, which only unstable compilers have.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// Runs each target for this many seconds. Earlier finds are in `fuzz/corpus`, and inputs that
/// break something go to `fuzz/artifacts`.
pub(crate) fn run_fuzz(seconds: &str) -> Result<(), String> {
    let fuzz = root().join("fuzz");
    write_seeds(&fuzz.join("corpus"))?;
    let host = host()?;
    let mut build = Command::new(cargo());
    // With an explicit target, the flags apply to the fuzzed code and not to build scripts.
    build.args(["build", "--release", "--locked", "--target", &host]).current_dir(&fuzz);
    // No fuzzed code looks into the agent: any file will do in its place.
    build.env("RUSTFLAGS", COVERAGE).env("CASTRA_GUEST_BIN", root().join("Cargo.toml"));
    run_command(&mut build)?;
    for target in TARGETS {
        let corpus = fuzz.join("corpus").join(target);
        let artifacts = fuzz.join("artifacts").join(target);
        for directory in [&corpus, &artifacts] {
            fs::create_dir_all(directory)
                .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
        }
        let mut run = Command::new(fuzz.join("target").join(&host).join("release").join(target));
        run.arg(format!("-max_total_time={seconds}"))
            .arg("-rss_limit_mb=1024")
            .arg("-timeout=10")
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(&corpus)
            .current_dir(&fuzz);
        run_command(&mut run)?;
    }
    Ok(())
}

/// Has the tests write the inputs that they begin with.
fn write_seeds(corpus: &Path) -> Result<(), String> {
    tools::ensure_for_tests()?;
    let mut tests = Command::new(cargo());
    tests.args(["nextest", "run", "--locked", "-p", "castra-disk", "-p", "castra-engine"]);
    tests.args(["-p", "castra-fuse"]);
    tests.args(["-E", OF_TARGETS]).env(SEEDS, corpus).current_dir(root());
    run_command(&mut tests)
}

/// Returns the machine's own target, as the compiler names it.
fn host() -> Result<String, String> {
    let version = crate::run::output("rustc", &["-vV"]).ok_or("rustc cannot be run")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc does not name its host".to_owned())
}
