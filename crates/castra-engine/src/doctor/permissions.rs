//! Permissions: directories of Castra's must belong to this user alone.

use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::layout::{MAX_SOCKET_PATH_BYTES, MAX_VM_NAME_BYTES};

use super::{Area, Finding, Repair, Subject};

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let context = subject.context;
    let mut findings = vec![user()];
    findings.push(directory("cache", context.cache.root()));
    if let Ok(project) = subject.project {
        findings.push(directory("project", project.state_root.path()));
        findings.extend(socket_length(
            &project
                .state_root
                .names()
                .sockets(&context.runtime_root, &"x".repeat(MAX_VM_NAME_BYTES))
                .longest(),
        ));
    }
    findings.push(runtime(&context.runtime_root));
    findings
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::note(
            Area::Permissions,
            "user",
            "castra runs as root, and so does QEMU; an ordinary user's rights are enough",
        );
    }
    Finding::good(Area::Permissions, "user", "castra runs as an ordinary user")
}

/// Checks that a directory belongs to this user and is writable; if it does not exist, that it can
/// be created.
fn directory(check: &'static str, path: &Path) -> Finding {
    let Some(existing) = path.ancestors().find(|ancestor| ancestor.exists()) else {
        return Finding::problem(
            Area::Permissions,
            check,
            format!("{} cannot be created", path.display()),
        );
    };
    if let Err(error) =
        rustix::fs::access(existing, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
    {
        let message =
            format!("{} cannot be written to: {}", existing.display(), io::Error::from(error));
        let fix = match check {
            "cache" => {
                "Take ownership of it, or set XDG_CACHE_HOME to a directory of your own. Until \
                then, each project uses a cache of its own."
            }
            _ => "Take ownership of it (ls -ld shows its owner), or work in another directory.",
        };
        let finding = if check == "cache" { Finding::warning } else { Finding::problem };
        return finding(Area::Permissions, check, message).with_fix(fix);
    }
    if existing == path && !is_own(path) {
        let message =
            format!("{} belongs to another user, who could change what is in it", path.display());
        return Finding::warning(Area::Permissions, check, message)
            .with_fix("Take ownership of it: sudo chown");
    }
    Finding::good(Area::Permissions, check, format!("{} can be written to", path.display()))
}

/// Checks that the directory of the sockets belongs to this user alone.
fn runtime(path: &Path) -> Finding {
    let check = "runtime-directory";
    let Ok(metadata) = path.symlink_metadata() else { return directory(check, path) };
    if !metadata.is_dir() || !is_own(path) {
        let message = format!(
            "{} is not a directory owned by this user, so it is not used for sockets",
            path.display()
        );
        return Finding::problem(Area::Permissions, check, message)
            .with_fix("Set XDG_RUNTIME_DIR to a directory that only you can enter.");
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        let message = format!("{} is accessible to other users", path.display());
        return Finding::warning(Area::Permissions, check, message)
            .with_fix(format!("chmod 700 {}", path.display()))
            .with_repair(Repair::Tighten(path.to_owned()));
    }
    directory(check, path)
}

fn is_own(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    path.symlink_metadata().is_ok_and(|metadata| metadata.uid() == own)
}

fn socket_length(longest: &Path) -> Option<Finding> {
    let bytes = longest.as_os_str().len();
    (bytes > MAX_SOCKET_PATH_BYTES).then(|| {
        let message = format!(
            "socket paths can be {bytes} bytes long here; the kernel allows {MAX_SOCKET_PATH_BYTES}"
        );
        Finding::warning(Area::Permissions, "socket-paths", message)
            .with_fix("Set XDG_RUNTIME_DIR to a shorter path, or give VMs short names.")
    })
}
