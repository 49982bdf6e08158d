//! The QEMU of Debian's backports, in addition to the installed one: fetched by apt, unpacked below
//! `target/`, and not installed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{output, root, run_command};

const PACKAGES: [&str; 2] = ["qemu-system-x86", "qemu-utils"];
/// Directories of QEMU's firmware, below the directory into which the packages are unpacked.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// Returns a directory with `qemu-system-x86_64` and `qemu-img` of the backports.
pub(crate) fn ensure() -> Result<PathBuf, String> {
    let place = root().join("target/qemu-newer");
    let programs = place.join("bin");
    if programs.join("qemu-img").exists() {
        return Ok(programs);
    }
    let unpacked = place.join("root");
    for directory in ["bin", "root", "lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(place.join(directory))
            .map_err(|error| format!("cannot make {directory}: {error}"))?;
    }
    download(&place)?;
    for package in debs(&place.join("cache/archives"))? {
        run_command(Command::new("dpkg").arg("-x").arg(package).arg(&unpacked))?;
    }
    link(&unpacked, &programs)?;
    Ok(programs)
}

/// Returns the `PATH` with a directory before all others.
pub(crate) fn first_on_path(programs: &Path) -> Result<OsString, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(programs.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(all).map_err(|error| error.to_string())
}

/// Fetches the packages and those of their dependencies that are not installed. Leaves the system's
/// own lists and packages unchanged.
fn download(place: &Path) -> Result<(), String> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.ok_or("this machine does not say which Debian it is")?;
    let mirror = mirror(&output("apt-cache", &["policy"]).unwrap_or_default(), name)
        .ok_or_else(|| format!("apt knows no mirror of {name}"))?;
    let backports = format!("{name}-backports");
    let list = place.join("sources.list");
    fs::write(&list, format!("deb {mirror} {name} main\ndeb {mirror} {backports} main\n"))
        .map_err(|error| format!("cannot write {}: {error}", list.display()))?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        let options = [
            ("Dir::Etc::SourceParts", Path::new("/dev/null")),
            ("Dir::Etc::SourceList", &list),
            ("Dir::State::Lists", &place.join("lists")),
            ("Dir::Cache", &place.join("cache")),
            ("Debug::NoLocking", Path::new("1")),
        ];
        for (name, value) in options {
            apt.arg("-o").arg(format!("{name}={}", value.display()));
        }
        apt
    };
    run_command(apt().arg("update"))?;
    let install = ["install", "-y", "--download-only", "--no-install-recommends", "-t", &backports];
    run_command(apt().args(install).args(PACKAGES))
}

/// Returns the address from which apt gets the packages of this release.
fn mirror(policy: &str, release: &str) -> Option<String> {
    let main = format!("{release}/main");
    policy.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == main)?;
        Some((*words.get(at.checked_sub(1)?)?).to_owned())
    })
}

fn debs(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(directory).map_err(|error| error.to_string())?.flatten();
    Ok(entries
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some(OsStr::new("deb")))
        .collect())
}

/// Links the programs. QEMU is given the directories of its firmware, which its packages expect
/// where they would be installed.
fn link(unpacked: &Path, programs: &Path) -> Result<(), String> {
    let qemu = programs.join("qemu-system-x86_64");
    let firmware =
        FIRMWARE.map(|directory| format!(" -L '{}'", unpacked.join(directory).display())).concat();
    let program = unpacked.join("usr/bin/qemu-system-x86_64");
    // A shell would add its PWD to the environment that castra gives QEMU.
    let script =
        format!("#!/bin/sh\nunset PWD OLDPWD\nexec '{}'{firmware} \"$@\"\n", program.display());
    fs::write(&qemu, script)
        .and_then(|()| fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)))
        .and_then(|()| symlink(unpacked.join("usr/bin/qemu-img"), programs.join("qemu-img")))
        .map_err(|error| format!("cannot write {}: {error}", programs.display()))
}
