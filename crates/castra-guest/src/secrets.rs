//! Secrets and identities of an image's own programs, which no two VMs may share.
//!
//! A template has booted, so its services have created them, and a clone has those of the VM that
//! it was made from. Before a template is saved, and whenever a VM finds that it is a copy, they
//! are removed ([`forget`]) and created again ([`renew`]).
//!
//! | What | Where | Made again by |
//! | --- | --- | --- |
//! | host keys of OpenSSH | `/etc/ssh/ssh_host_*` | OpenRC's service, else `ssh-keygen -A` |
//! | host keys of Dropbear | `/etc/dropbear/dropbear_*_host_key` | Dropbear (`-R`) |
//! | seeds of the random number generator | [`SEEDS`] | the services that keep them |
//! | DHCP identifiers and leases | [`DHCP`] | the DHCP client |
//! | D-Bus's machine id | `/var/lib/dbus/machine-id` | the agent, as `/etc/machine-id` |
//! | NetworkManager's key for addresses | `/var/lib/NetworkManager/secret_key` | NetworkManager |

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::kernel_fs::KernelFs;
use crate::log::log;
use crate::process::image_program;
use crate::services::{is_openrc, is_systemd};

/// Directories of keys that a service creates, and the prefix of their names (`sshd_config(5)`,
/// `dropbear(8)`).
const KEYS: [(&str, &str); 2] = [(SSH, "ssh_host_"), ("etc/dropbear", "dropbear_")];
/// Configuration and host keys of OpenSSH.
const SSH: &str = "etc/ssh";

/// Seed files: of OpenRC's seedrng and older urandom, and of systemd.
const SEEDS: [&str; 4] = [
    "var/lib/seedrng/seed.credit",
    "var/lib/seedrng/seed.no-credit",
    "var/lib/misc/random-seed",
    "var/lib/systemd/random-seed",
];

/// Directories of DHCP clients (dhcpcd, dhclient, NetworkManager) with their identifiers and
/// leases.
const DHCP: [&str; 3] = ["var/lib/dhcpcd", "var/lib/dhcp", "var/lib/NetworkManager"];
/// Prefixes and suffixes of names of files in [`DHCP`] that belong to one machine.
const OF_ONE_MACHINE: [&str; 4] = ["duid", "secret", ".lease", ".leases"];

/// Units of OpenSSH's server: Fedora's and Arch's name, Debian's, and Debian's and Ubuntu's socket.
const SSHD_UNITS: [&str; 3] = ["sshd.service", "ssh.service", "ssh.socket"];

/// Service that creates missing host keys before sshd starts (`systemd.service(5)`), for systems
/// like Debian whose sshd has none: there, they are created when the package is installed.
const KEY_SERVICE: &str = "castra-host-keys.service";
const KEY_SERVICE_TEXT: &str = "\
[Unit]
Description=Host keys of OpenSSH
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key
Before=ssh.service sshd.service

[Service]
Type=oneshot
Nice=19
ExecStart=/usr/bin/ssh-keygen -A
";

/// Has systemd create missing host keys in the boot that begins, by a unit below `run`.
pub(crate) fn renew_during_boot(run: &Path) {
    let create = || {
        let units = run.join("systemd/system");
        for sshd in ["ssh.service", "sshd.service"] {
            let wants = units.join(format!("{sshd}.wants"));
            fs::create_dir_all(&wants)?;
            symlink(Path::new("..").join(KEY_SERVICE), wants.join(KEY_SERVICE))?;
        }
        fs::write(units.join(KEY_SERVICE), KEY_SERVICE_TEXT)
    };
    if let Err(error) = create() {
        // They are created once the services are up.
        log(format!("cannot add {KEY_SERVICE}: {error}"));
    }
}

/// Stops the image's sshd, which holds its keys in memory, and removes everything that no two VMs
/// may share. Returns `true` if there was an sshd to stop, which [`renew`] starts again.
pub(crate) fn forget(kernel_fs: &KernelFs) -> bool {
    let had_sshd = runs_sshd(kernel_fs);
    if had_sshd {
        manage_sshd("stop");
    }
    forget_files();
    had_sshd
}

/// Removes everything that no two VMs may share, of services that do not run.
pub(crate) fn forget_files() {
    forget_below(Path::new("/"));
}

/// Creates missing host keys of the image's sshd, and starts it if it is to run. Creating keys
/// takes an emulated CPU many seconds, so this runs at the lowest priority.
pub(crate) fn renew(is_sshd_due: bool) {
    let lacks_keys = lacks_host_keys(Path::new("/"));
    if lacks_keys && !is_openrc() {
        run_nicely(&["ssh-keygen", "-A"]);
    }
    // A service that found no keys has failed, and is started once more.
    if is_sshd_due || (lacks_keys && is_systemd()) {
        manage_sshd("start");
    }
}

fn forget_below(root: &Path) {
    let seeds = SEEDS.iter().map(|seed| root.join(seed));
    let keys = KEYS.iter().flat_map(|(directory, prefix)| {
        files_in(&root.join(directory), move |name| name.starts_with(prefix))
    });
    let dhcp = DHCP.iter().flat_map(|directory| {
        files_in(&root.join(directory), |name| {
            OF_ONE_MACHINE.iter().any(|part| name.starts_with(part) || name.ends_with(part))
        })
    });
    for path in keys.chain(seeds).chain(dhcp) {
        // Most of these are in no image; on a read-only root they cannot have been created.
        let _ = fs::remove_file(path);
    }
}

/// Returns the paths of a directory's files whose names match; none if the directory does not
/// exist.
fn files_in(directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let wanted = entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_wanted));
    wanted.map(|entry| entry.path()).collect()
}

/// Returns `true` for a system that has OpenSSH's server but no host key.
fn lacks_host_keys(root: &Path) -> bool {
    let is_key = |name: &str| name.starts_with("ssh_host_") && name.ends_with("_key");
    root.join(SSH).join("sshd_config").exists() && files_in(&root.join(SSH), is_key).is_empty()
}

fn runs_sshd(kernel_fs: &KernelFs) -> bool {
    // If processes cannot be seen, assume that it runs: stopping a stopped service does no harm.
    let Ok(processes) = kernel_fs.proc.names("") else { return true };
    let is_sshd =
        |pid: &String| kernel_fs.proc.read(&format!("{pid}/comm")).is_ok_and(|name| name == "sshd");
    processes.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).any(is_sshd)
}

fn manage_sshd(what: &str) {
    if is_systemd() {
        for unit in SSHD_UNITS {
            // Resets a unit that failed because it had no keys, perhaps too often in a row.
            run_nicely(&["systemctl", "reset-failed", unit]);
            if what == "stop" || run_nicely(&["systemctl", "--quiet", "is-enabled", unit]) {
                run_nicely(&["systemctl", what, unit]);
            }
        }
    } else if is_openrc() {
        run_nicely(&["rc-service", "-q", "sshd", what]);
    }
}

/// Runs a program of the image at the lowest priority. A program that does not exist has failed.
fn run_nicely(command: &[&str]) -> bool {
    let status = image_program("nice", &[&["-n", "19"], command].concat()).status();
    status.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_seeds_go_and_all_else_stays() {
        let root = std::env::temp_dir().join(format!("castra-secrets-{}", std::process::id()));
        let mine = [
            "etc/ssh/sshd_config",
            "etc/ssh/ssh_config",
            "var/lib/misc/other",
            "etc/dropbear/banner",
        ];
        let secret = [
            "etc/ssh/ssh_host_ed25519_key",
            "etc/ssh/ssh_host_rsa_key.pub",
            "etc/dropbear/dropbear_rsa_host_key",
            "var/lib/dhcpcd/duid",
            "var/lib/dhcpcd/secret",
            "var/lib/dhcpcd/eth0.lease",
            "var/lib/dhcp/dhclient.leases",
            "var/lib/NetworkManager/secret_key",
            SEEDS[0],
            SEEDS[2],
        ];
        for name in mine.iter().chain(&secret) {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, "x").expect("writes");
        }
        assert!(!lacks_host_keys(&root));
        forget_below(&root);
        assert!(mine.iter().all(|name| root.join(name).exists()));
        assert!(secret.iter().all(|name| !root.join(name).exists()));
        assert!(lacks_host_keys(&root));
        forget_below(&root.join("nowhere"));
        assert!(!lacks_host_keys(&root.join("nowhere")));
        fs::remove_dir_all(&root).expect("tidies up");
    }
}
