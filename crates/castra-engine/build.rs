//! Builds the guest agent for the crate, which embeds it.
//!
//! The agent is a static Linux program with a profile of its own. A second cargo builds it in a
//! target directory of its own (`target/guest-agent`), which debug and release builds share, and
//! which keeps the two cargos from waiting for each other's lock. `CASTRA_GUEST_BIN` names an agent
//! that was built elsewhere.
//!
//! A published package has no crates beside it: there the agent's sources are below
//! `packaging/agent`, and are laid out as a workspace in `OUT_DIR` first.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use sha2::{Digest as _, Sha256};

/// Sources of the agent in the repository besides the crates that it may use: its lock file and its
/// profile.
const SOURCES: [&str; 2] = ["Cargo.lock", "Cargo.toml"];
/// Crates that the agent does not use: otherwise an edit in a test would rebuild the agent, and
/// then castra.
const NOT_USED: [&str; 4] =
    ["castra-disk", "castra-engine", "castra-fake-qemu", "castra-test-support"];
/// Manifest of the agent in the repository.
const GUEST: &str = "crates/castra-guest/Cargo.toml";
/// Sources of the agent in a published package.
const PACKAGED: &str = "packaging/agent";
/// Sections of the workspace's manifest that the agent's crates inherit, and its profiles.
const INHERITED: [&str; 3] = ["[workspace.", "[profile.release]", "[profile.guest]"];

/// Settings of the outer build that the inner one must not inherit: clippy's wrapper, a
/// cross-compilation's target, flags for coverage and the like would only make the agent be built
/// again, and differently.
const NOT_INHERITED: [&str; 7] = [
    "RUSTC_WORKSPACE_WRAPPER",
    "CLIPPY_ARGS",
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
];

fn main() -> ExitCode {
    match provide_agent() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn provide_agent() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CASTRA_GUEST_BIN");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let agent = match env::var_os("CASTRA_GUEST_BIN") {
        Some(prebuilt) => {
            let prebuilt = PathBuf::from(prebuilt);
            println!("cargo::rerun-if-changed={}", prebuilt.display());
            prebuilt
        }
        None => build(&out)?,
    };
    let embedded = out.join("castra-guest");
    fs::copy(&agent, &embedded)
        .map_err(|error| format!("cannot take the guest agent {}: {error}", agent.display()))?;
    let bytes =
        fs::read(&embedded).map_err(|error| format!("cannot read the guest agent: {error}"))?;
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo::rustc-env=CASTRA_GUEST_SHA256={digest}");
    Ok(())
}

fn build(out: &Path) -> Result<PathBuf, String> {
    let host = variable("HOST")?;
    if !host.starts_with("x86_64-") || !host.contains("-linux-") {
        return Err(format!(
            "the guest agent is a program for x86_64 Linux and cannot be built on {host}.\n\
            Build it on x86_64 Linux (`cargo build` there leaves it in target/guest-agent) and \
            name the file in CASTRA_GUEST_BIN."
        ));
    }
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let repository = package.ancestors().nth(2).filter(|root| root.join(GUEST).exists());
    let workspace = if let Some(repository) = repository {
        watch_sources(repository)?;
        repository.to_owned()
    } else {
        println!("cargo::rerun-if-changed={PACKAGED}");
        let workspace = lay_out(&package.join(PACKAGED), out)?;
        shorten_lock(&workspace)?;
        workspace
    };
    let target_directory = target_directory(out).join("guest-agent");
    let mut cargo = cargo(&workspace)?;
    cargo.args(["build", "--locked", "--package", "castra-guest", "--profile", "guest"]);
    cargo.args(["--target", &host]).arg("--target-dir").arg(&target_directory);
    let output = cargo.output().map_err(not_started)?;
    if !output.status.success() {
        return Err(explain(&output, &host));
    }
    Ok(target_directory.join(&host).join("guest").join("castra-guest"))
}

/// Has cargo run this script again when a source of the agent's has changed.
fn watch_sources(workspace: &Path) -> Result<(), String> {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
    let crates = fs::read_dir(workspace.join("crates"));
    for entry in
        crates.map_err(|error| format!("cannot list the agent's crates: {error}"))?.flatten()
    {
        if !NOT_USED.iter().any(|name| entry.file_name() == *name) {
            println!("cargo::rerun-if-changed={}", entry.path().display());
        }
    }
    Ok(())
}

fn cargo(workspace: &Path) -> Result<Command, String> {
    let mut cargo = Command::new(variable("CARGO")?);
    cargo.current_dir(workspace);
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    // Static, so that it runs in any guest, whatever its libc.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static");
    Ok(cargo)
}

fn not_started(error: io::Error) -> String {
    format!("cannot start cargo to build the guest agent: {error}")
}

/// Has cargo take out of a laid out workspace's lock what only the rest of Castra uses, and checks
/// that it added nothing: the agent is then built with exactly these packages.
fn shorten_lock(workspace: &Path) -> Result<(), String> {
    let path = workspace.join("Cargo.lock");
    let read = || {
        fs::read_to_string(&path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let whole = read()?;
    let output = cargo(workspace)?
        .args(["metadata", "--format-version", "1"])
        .output()
        .map_err(not_started)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{said}\ncannot resolve the crates of the guest agent"));
    }
    let known = packages(&whole);
    match packages(&read()?).iter().find(|package| !known.contains(package)) {
        Some([name, version, _]) => {
            Err(format!("the guest agent's lock does not name {name} {version}, which it needs"))
        }
        None => Ok(()),
    }
}

/// Returns the name, version and checksum of each package in a lock.
fn packages(lock: &str) -> Vec<[&str; 3]> {
    let mut packages = Vec::new();
    for package in lock.split("[[package]]").skip(1) {
        packages.push(["name", "version", "checksum"].map(|name| field(package, name)));
    }
    packages
}

/// Returns the value of a package's field in a lock; an empty one if there is none.
fn field<'a>(package: &'a str, name: &str) -> &'a str {
    let mut lines = package.lines();
    let value =
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \"")?.strip_suffix('"'));
    value.unwrap_or_default()
}

/// Makes a workspace of the packaged sources, with the versions that the repository's lock names.
fn lay_out(packaged: &Path, out: &Path) -> Result<PathBuf, String> {
    let workspace = out.join("agent");
    let failed =
        |error: io::Error| format!("cannot lay out the sources of the guest agent: {error}");
    match fs::remove_dir_all(&workspace) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let crates = workspace.join("crates");
    for entry in fs::read_dir(packaged).map_err(failed)? {
        let source = entry.map_err(failed)?.path();
        if source.is_dir() {
            let name = source.file_name().unwrap_or_default();
            copy_tree(&source.join("src"), &crates.join(name).join("src")).map_err(failed)?;
            fs::copy(source.join("manifest"), crates.join(name).join("Cargo.toml"))
                .map_err(failed)?;
        }
    }
    let manifest = fs::read_to_string(packaged.join("workspace.manifest")).map_err(failed)?;
    fs::write(workspace.join("Cargo.toml"), inherited(&manifest)).map_err(failed)?;
    fs::copy(packaged.join("workspace.lock"), workspace.join("Cargo.lock")).map_err(failed)?;
    Ok(workspace)
}

/// Returns the manifest of a workspace of the agent's crates: what they inherit, and nothing of the
/// others.
fn inherited(manifest: &str) -> String {
    let mut kept = "[workspace]\nmembers = [\"crates/*\"]\nresolver = \"3\"\n".to_owned();
    let mut is_inherited = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_inherited = INHERITED.iter().any(|section| line.starts_with(section));
        }
        if is_inherited {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Returns the outer build's target directory: `OUT_DIR` is
/// `<target>[/<triple>]/<profile>/build/<package>-<hash>/out`.
fn target_directory(out: &Path) -> &Path {
    let Some(profile) = out.ancestors().find(|path| path.ends_with("build")).and_then(Path::parent)
    else {
        return out;
    };
    let triple = env::var("TARGET").unwrap_or_default();
    match profile.parent() {
        Some(parent) if parent.ends_with(&triple) => parent.parent().unwrap_or(parent),
        Some(parent) => parent,
        None => out,
    }
}

fn explain(output: &Output, host: &str) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let advice = if said.contains("cannot find -lc") || said.contains("unable to find library -lc")
    {
        "The static C library is missing: install it (Debian and Ubuntu: libc6-dev, Fedora: \
        glibc-static)."
    } else if said.contains("can't find crate for `core`")
        || said.contains("can't find crate for `std`")
    {
        "Rust's standard library for this target is missing: see `rustup target add`."
    } else {
        "The messages above this line are from that build."
    };
    format!("{said}\ncannot build the guest agent for {host} ({}).\n{advice}", output.status)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("cargo has not set {name}"))
}
