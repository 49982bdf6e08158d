//! Builds the stand-in for QEMU, so that every way of running a test has it.
//!
//! Cargo builds a dependency's library and never its programs. A second cargo builds this one, in a
//! target directory of its own (`target/fake-qemu`): the two would otherwise wait for each other's
//! lock.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const PACKAGE: &str = "castra-fake-qemu";

/// Sources that it is built from, relative to this package.
const SOURCES: [&str; 4] =
    ["build.rs", "../castra-fake-qemu", "../castra-wire", "../../Cargo.lock"];

/// Settings of the outer build that would only make the inner one differ, or go elsewhere.
const NOT_INHERITED: [&str; 5] = [
    "RUSTC_WORKSPACE_WRAPPER",
    "CLIPPY_ARGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
];

fn main() -> ExitCode {
    match provide_program() {
        Ok(program) => {
            println!("cargo::rustc-env=CASTRA_FAKE_QEMU={}", program.display());
            ExitCode::SUCCESS
        }
        Err(message) => {
            message.lines().for_each(|line| println!("cargo::error={line}"));
            ExitCode::FAILURE
        }
    }
}

/// Builds the program and returns the path of a copy in this package's own output directory.
fn provide_program() -> Result<PathBuf, String> {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target = target_directory(&out).join("fake-qemu");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo.args(["build", "--quiet", "--locked", "--package", PACKAGE, "--target-dir"]).arg(&target);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    let output = cargo
        .output()
        .map_err(|error| format!("cannot start cargo to build {PACKAGE}: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{said}\ncannot build {PACKAGE}: see `cargo build --package {PACKAGE}`"
        ));
    }
    let (built, copy) = (target.join("debug").join(PACKAGE), out.join(PACKAGE));
    fs::copy(&built, &copy).map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
    Ok(copy)
}

/// Returns the outer build's target directory: `OUT_DIR` is
/// `<target>/<profile>/build/<package>-<hash>/out`.
fn target_directory(out: &Path) -> &Path {
    out.ancestors().nth(4).unwrap_or(out)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("cargo has not set {name}"))
}
