//! The SDKs as they are published, against `castra serve`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use castra_test_support::{Ended, tool};

use super::server::Server;

/// Versions of the SDKs, whose facts the server is made by.
const PYTHON: &str = "e2b==2.63.0";
const TYPESCRIPT: &str = "e2b@2.51.0";

/// Returns a directory below the target directory for a package.
fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// Returns a directory with a Python package and what it needs, which is installed once.
pub(super) fn python_packages(name: &str, package: &str) -> PathBuf {
    let packages = directory(name);
    if !packages.exists() {
        let made = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let to = made.path().to_string_lossy();
        tool("pip3", &["install", "--quiet", "--target", &to, package]);
        // Unless another test was faster.
        let _ = fs::rename(made.path(), &packages);
    }
    packages
}

fn run_script(server: &Server, mut command: Command) {
    let url = format!("http://127.0.0.1:{}", server.port);
    command.env("E2B_API_URL", &url).env("E2B_SANDBOX_URL", &url);
    command.env("E2B_API_KEY", &server.token);
    Ended::of(command).ok();
}

#[test]
fn the_python_sdk_works() {
    let packages = python_packages("e2b-python", PYTHON);
    let project = super::project();
    let server = Server::start(&project, &[]);
    for kind in ["sync", "async"] {
        let mut command = Command::new("python3");
        command.arg("tests/sdk/sandboxes.py").arg(kind).env("PYTHONPATH", &packages);
        run_script(&server, command);
    }
    server.end();
    assert_eq!(super::left(&project), Vec::<String>::new());
}

#[test]
fn the_typescript_sdk_works() {
    let packages = directory("e2b-typescript");
    if !packages.join("node_modules/e2b").is_dir() {
        let to = packages.to_string_lossy();
        tool("npm", &["install", "--silent", "--no-save", "--prefix", &to, TYPESCRIPT]);
    }
    let project = super::project();
    let server = Server::start(&project, &[]);
    // A script's packages are found beside it.
    let script = packages.join("sandboxes.mjs");
    fs::copy("tests/sdk/sandboxes.mjs", &script).expect("copied");
    let mut command = Command::new("node");
    command.arg(script);
    run_script(&server, command);
    server.end();
    assert_eq!(super::left(&project), Vec::<String>::new());
}
