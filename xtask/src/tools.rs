//! Programs that the project's commands need, installed if they are missing.

use std::process::Command;

use crate::run::{cargo, output, run_command};

/// A Debian package, and a program that shows whether it is installed.
struct Package {
    name: &'static str,
    program: &'static str,
}

/// Packages that `castra` itself needs.
const QEMU: [Package; 2] = [
    Package { name: "qemu-system-x86", program: "qemu-system-x86_64" },
    Package { name: "qemu-utils", program: "qemu-img" },
];

/// Packages for the image that comes as a Python package.
const PIP: [Package; 1] = [Package { name: "python3-pip", program: "pip3" }];

/// Packages with which the tests make and inspect disks, log in, serve TLS, complete in shells,
/// format the manual and run the SDKs of sandboxes.
const TEST_TOOLS: [Package; 17] = [
    Package { name: "e2fsprogs", program: "mke2fs" },
    Package { name: "mtools", program: "mcopy" },
    Package { name: "syslinux", program: "syslinux" },
    Package { name: "dosfstools", program: "mkfs.fat" },
    Package { name: "xfsprogs", program: "mkfs.xfs" },
    Package { name: "btrfs-progs", program: "mkfs.btrfs" },
    Package { name: "fdisk", program: "sfdisk" },
    Package { name: "gdisk", program: "sgdisk" },
    Package { name: "openssh-client", program: "sftp" },
    Package { name: "openssl", program: "openssl" },
    Package { name: "zsh", program: "zsh" },
    Package { name: "fish", program: "fish" },
    Package { name: "groff", program: "groff" },
    Package { name: "mandoc", program: "mandoc" },
    Package { name: "mmdebstrap", program: "mmdebstrap" },
    Package { name: "nodejs", program: "node" },
    Package { name: "npm", program: "npm" },
];

/// Output of `mdbook --version` in the version that is used.
const MDBOOK: &str = "mdbook v0.5.4";

/// Installs QEMU and pip.
pub(crate) fn ensure_runtime() -> Result<(), String> {
    ensure(&QEMU)?;
    ensure(&PIP)
}

/// Installs everything that the tests use.
pub(crate) fn ensure_for_tests() -> Result<(), String> {
    ensure_runtime()?;
    ensure(&TEST_TOOLS)?;
    ensure_cargo_tool("cargo-nextest", &["nextest", "--version"])
}

/// Installs cargo-deny.
pub(crate) fn ensure_deny() -> Result<(), String> {
    ensure_cargo_tool("cargo-deny", &["deny", "--version"])
}

/// mdBook, in the version that the book is written for.
pub(crate) fn ensure_mdbook() -> Result<(), String> {
    if output("mdbook", &["--version"]).is_some_and(|version| version.trim() == MDBOOK) {
        return Ok(());
    }
    let version = MDBOOK.trim_start_matches("mdbook v");
    // Neither its server nor its watcher is used.
    let features = ["--no-default-features", "--features", "search"];
    let install = ["install", "--locked", "mdbook", "--version", version];
    run_command(Command::new(cargo()).args(install).args(features))
}

fn ensure_cargo_tool(package: &str, shows: &[&str]) -> Result<(), String> {
    if output(&cargo(), shows).is_some() {
        return Ok(());
    }
    run_command(Command::new(cargo()).args(["install", "--locked", package]))
}

fn ensure(packages: &[Package]) -> Result<(), String> {
    if packages.iter().all(|package| is_installed(package.program)) {
        return Ok(());
    }
    // All of a group in one call: installing QEMU alone may remove a qemu-img of another version.
    let names: Vec<&str> = packages.iter().map(|package| package.name).collect();
    if !is_installed("apt-get") {
        let programs: Vec<&str> = packages.iter().map(|package| package.program).collect();
        return Err(format!("install {}: this machine has no apt-get", programs.join(" and ")));
    }
    apt_get(&["update"])?;
    let install = ["install", "-y", "--no-install-recommends"];
    apt_get(&[&install, names.as_slice()].concat())
        .or_else(|_| install_candidates(&install, &names))
}

/// Installs the packages. A newer qemu-img from elsewhere conflicts with the distribution's QEMU:
/// then all are set to the distribution's version.
fn install_candidates(install: &[&str], names: &[&str]) -> Result<(), String> {
    let pinned: Vec<String> = names.iter().map(|name| pin(name, names[0])).collect();
    let pinned: Vec<&str> = pinned.iter().map(String::as_str).collect();
    apt_get(&[install, &["--allow-downgrades"], pinned.as_slice()].concat())
}

/// Returns the package at the version at which `leader` would be installed.
fn pin(name: &str, leader: &str) -> String {
    let policy = output("apt-cache", &["policy", leader]).unwrap_or_default();
    let candidate =
        policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: ").map(str::to_owned));
    candidate.map_or(name.to_owned(), |version| format!("{name}={version}"))
}

fn apt_get(arguments: &[&str]) -> Result<(), String> {
    let is_root = output("id", &["-u"]).is_some_and(|uid| uid.trim() == "0");
    let mut command = if is_root { Command::new("apt-get") } else { Command::new("sudo") };
    if !is_root {
        command.arg("apt-get");
    }
    run_command(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|directory| directory.join(program).is_file())
}
