//! `cargo xtask package`: makes the packages, and installs castra from them as a user of a registry
//! does, without the repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{cargo, root, run, run_command};
use crate::tools;

/// Crates that `castra` needs, in the order in which they are published.
const LIBRARIES: [&str; 7] = [
    "castra-wire",
    "castra-flow",
    "castra-sftp",
    "castra-disk",
    "castra-fuse",
    "castra-engine",
    "castra-serve",
];
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Most that a package may have, compressed.
const MAX_BYTES: u64 = 10_000_000;

/// Makes all packages, installs `castra` from them in a temporary directory and runs a command in a
/// VM.
pub(crate) fn check_packages() -> Result<(), String> {
    tools::ensure_runtime()?;
    let published: Vec<&str> = LIBRARIES.into_iter().chain(["castra"]).collect();
    // Not verified by cargo: that would build everything in a profile and a place of its own.
    let package = ["package", "--no-verify", "--allow-dirty"];
    let names: Vec<&str> = published.iter().flat_map(|name| ["--package", name]).collect();
    run(&cargo(), &[package.as_slice(), &names].concat())?;
    let directory =
        tempfile::tempdir().map_err(|error| format!("cannot make a directory: {error}"))?;
    for name in published {
        unpack(name, directory.path())?;
    }
    let castra = install(directory.path())?;
    let project = directory.path().join("project");
    fs::create_dir(&project).map_err(|error| format!("{}: {error}", project.display()))?;
    // Proves that the agent that came out of the package works.
    run_command(Command::new(castra).args(["run", "--", "uname", "-a"]).current_dir(project))
}

fn unpack(name: &str, directory: &Path) -> Result<(), String> {
    let archive = root().join(format!("target/package/{name}-{VERSION}.crate"));
    let size =
        fs::metadata(&archive).map_err(|error| format!("{}: {error}", archive.display()))?.len();
    if size > MAX_BYTES {
        return Err(format!(
            "{} has {size} bytes; a registry takes {MAX_BYTES}",
            archive.display()
        ));
    }
    run_command(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(directory))
}

/// Installs with the versions of the packaged lock, and with the unpacked libraries in the place of
/// published ones.
fn install(directory: &Path) -> Result<PathBuf, String> {
    let package = directory.join(format!("castra-{VERSION}"));
    unlock_libraries(&package.join("Cargo.lock"))?;
    let installed = directory.join("installed");
    let mut install = Command::new(cargo());
    install.args(["install", "--locked", "--debug", "--path"]).arg(&package);
    install
        .arg("--root")
        .arg(&installed)
        .arg("--target-dir")
        .arg(root().join("target/package-check"));
    for name in LIBRARIES {
        let path = directory.join(format!("{name}-{VERSION}"));
        install.args([
            "--config",
            &format!("patch.crates-io.{name}.path={:?}", path.display().to_string()),
        ]);
    }
    run_command(install.current_dir(directory))?;
    Ok(installed.join("bin/castra"))
}

/// Takes source and checksum of the libraries out of a lock, as cargo itself does for crates of a
/// path.
fn unlock_libraries(lock: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", lock.display());
    let text = fs::read_to_string(lock).map_err(failed)?;
    let packages = text.split("\n\n").map(|package| {
        let is_library =
            LIBRARIES.iter().any(|name| package.contains(&format!("\nname = \"{name}\"\n")));
        let lines = package.lines().filter(|line| {
            !is_library || !(line.starts_with("source = ") || line.starts_with("checksum = "))
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    let text = packages.collect::<Vec<_>>().join("\n\n");
    fs::write(lock, format!("{}\n", text.trim_end())).map_err(failed)
}
