//! Services and users that come with a third party's image and that a VM must not have.
//!
//! The image's description names them on the kernel's command line, where only the agent looks for
//! them:
//!
//! ```text
//! castra.no_service=NAME    no init system starts the service NAME
//! castra.no_user=NAME       no login as NAME, which also becomes no other user by sudo or doas
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::kernel_fs::KernelFs;
use crate::log::log;

const NO_SERVICE: &str = "castra.no_service=";
const NO_USER: &str = "castra.no_user=";
/// Password field of a user without a working password (`shadow(5)`).
const LOCKED: &str = "!";
/// Shell of users who cannot log in (`nologin(8)`).
const NO_SHELL: &str = "/sbin/nologin";

/// Removes everything that the kernel's command line names from the root filesystem, before its
/// init gets to the services.
pub(crate) fn remove(kernel_fs: &KernelFs) {
    let Ok(command_line) = kernel_fs.proc.read("cmdline") else { return };
    for word in command_line.split_whitespace() {
        let root = Path::new("/");
        if let Some(name) = word.strip_prefix(NO_SERVICE).filter(|name| is_plain(name)) {
            remove_service(root, name);
        } else if let Some(name) = word.strip_prefix(NO_USER).filter(|name| is_plain(name)) {
            // Writing failed, so the user stays: report it in the kernel's log.
            if let Err(error) = remove_user(root, name) {
                log(format!("cannot lock the user {name}: {error}"));
            }
        }
    }
}

/// Returns `true` for a plain name of a service or user: without a slash, so that it cannot lead
/// elsewhere.
fn is_plain(name: &str) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_safe)
}

/// Removes a service from OpenRC's runlevels, and masks it for systemd.
fn remove_service(root: &Path, name: &str) {
    for runlevel in fs::read_dir(root.join("etc/runlevels")).into_iter().flatten().flatten() {
        let _ = fs::remove_file(runlevel.path().join(name));
    }
    let units = root.join("etc/systemd/system");
    if units.is_dir() {
        let unit = units.join(format!("{name}.service"));
        let _ = fs::remove_file(&unit);
        let _ = symlink("/dev/null", unit);
    }
}

fn remove_user(root: &Path, name: &str) -> io::Result<()> {
    for rules in ["etc/sudoers.d", "etc/doas.d"] {
        for file in [root.join(rules).join(name), root.join(rules).join(format!("{name}.conf"))] {
            let _ = fs::remove_file(file);
        }
    }
    edit(&root.join("etc/shadow"), |line| set_field(line, name, 1, LOCKED))?;
    edit(&root.join("etc/passwd"), |line| set_field(line, name, 6, NO_SHELL))
}

/// Sets one field of a line of `passwd(5)` or `shadow(5)`, if the line is this user's.
fn set_field(line: &str, user: &str, field: usize, value: &str) -> String {
    let mut fields: Vec<&str> = line.split(':').collect();
    if fields[0] == user && fields.len() > field {
        fields[field] = value;
    }
    fields.join(":")
}

/// Rewrites a file line by line, in place, so that its owner and mode stay. Writes nothing if no
/// line changes.
fn edit(file: &Path, change: impl Fn(&str) -> String) -> io::Result<()> {
    let current = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let changed: String = current.lines().map(|line| format!("{}\n", change(line))).collect();
    if changed == current { Ok(()) } else { fs::write(file, changed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_and_a_user_go_and_all_else_stays() {
        let root = std::env::temp_dir().join(format!("castra-residents-{}", std::process::id()));
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, text).expect("writes");
        };
        let read = |name: &str| fs::read_to_string(root.join(name)).expect("reads");
        write("etc/runlevels/boot/theirs", "");
        write("etc/runlevels/default/mine", "");
        write("etc/systemd/system/other.service", "");
        write("etc/sudoers.d/theirs", "");
        write(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\ntheirs:x:1000:1000::/home/theirs:/bin/sh\n",
        );
        write("etc/shadow", "root:*::0:::::\ntheirs:secret:20740:0:99999:7:::\n");
        remove_service(&root, "theirs");
        remove_user(&root, "theirs").expect("locks");
        assert!(
            !root.join("etc/runlevels/boot/theirs").exists()
                && !root.join("etc/sudoers.d/theirs").exists()
        );
        assert!(root.join("etc/runlevels/default/mine").exists());
        assert_eq!(
            fs::read_link(root.join("etc/systemd/system/theirs.service")).expect("a link"),
            Path::new("/dev/null")
        );
        assert_eq!(
            read("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\ntheirs:x:1000:1000::/home/theirs:/sbin/nologin\n"
        );
        assert_eq!(read("etc/shadow"), "root:*::0:::::\ntheirs:!:20740:0:99999:7:::\n");
        remove_user(&root, "no-such-user").expect("nothing to lock");
        fs::remove_dir_all(&root).expect("tidies up");
    }

    #[test]
    fn no_name_leads_elsewhere() {
        for name in ["", "..", "../x", "a/b", ".hidden", "a b"] {
            assert!(!is_plain(name), "{name:?}");
        }
        assert!(is_plain("quicksand-guest-agent"));
    }
}
