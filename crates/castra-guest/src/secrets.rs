//! What an image's own services make on their first boot and no two VMs may share.
//!
//! A template has booted, so they have made it, and every clone would have it: the host keys of the image's own sshd, and the
//! seeds that some keep for the next boot. Before a template is saved they go; the service that made them makes others in
//! each VM.

use std::fs;
use std::path::Path;

use crate::process::image_program;
use crate::services::{is_openrc, is_systemd};
use crate::trees::Trees;

/// Where OpenSSH keeps its host keys, and how their names start (`sshd_config(5)`).
const SSHD: (&str, &str) = ("etc/ssh", "ssh_host_");

/// Seeds: OpenRC's seedrng and older urandom, systemd.
const SEEDS: [&str; 4] = [
    "var/lib/seedrng/seed.credit",
    "var/lib/seedrng/seed.no-credit",
    "var/lib/misc/random-seed",
    "var/lib/systemd/random-seed",
];

/// Removes them. Whether sshd ran, and is to be started again once the VM is somebody's.
pub(crate) fn forget(trees: &Trees) -> bool {
    let had_sshd = runs_sshd(trees);
    if had_sshd {
        manage_sshd("stop");
    }
    forget_below(Path::new("/"));
    had_sshd
}

/// Starts the image's sshd, which makes keys of its own first. That takes an emulated CPU many seconds, so it yields to
/// whatever else there is to do.
pub(crate) fn start_sshd() {
    manage_sshd("start");
}

fn forget_below(root: &Path) {
    let (directory, prefix) = SSHD;
    let entries = fs::read_dir(root.join(directory)).into_iter().flatten().flatten();
    let keys = entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()));
    let seeds = SEEDS.iter().map(|seed| root.join(seed));
    for path in keys.map(|entry| entry.path()).chain(seeds) {
        // Most of these are in no image; one on a read-only root cannot have been made there.
        let _ = fs::remove_file(path);
    }
}

fn runs_sshd(trees: &Trees) -> bool {
    let processes = trees.proc.names("").unwrap_or_default();
    let is_sshd = |pid: &String| trees.proc.read(&format!("{pid}/comm")).is_ok_and(|name| name == "sshd");
    processes.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).any(is_sshd)
}

fn manage_sshd(what: &str) {
    let commands: &[&[&str]] = if is_systemd() {
        &[&["systemctl", what, "sshd"], &["systemctl", what, "ssh"]]
    } else if is_openrc() {
        &[&["rc-service", "-q", "sshd", what]]
    } else {
        &[]
    };
    for command in commands {
        // A service of another name stays as it is; its keys are gone all the same.
        let _ = image_program("nice", &[&["-n", "19"], *command].concat()).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_seeds_go_and_all_else_stays() {
        let root = std::env::temp_dir().join(format!("castra-secrets-{}", std::process::id()));
        let mine = ["etc/ssh/sshd_config", "etc/ssh/ssh_config", "var/lib/misc/other"];
        let secret = ["etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_rsa_key.pub", SEEDS[0], SEEDS[2]];
        for name in mine.iter().chain(&secret) {
            let path = root.join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, "x").expect("writes");
        }
        forget_below(&root);
        assert!(mine.iter().all(|name| root.join(name).exists()));
        assert!(secret.iter().all(|name| !root.join(name).exists()));
        forget_below(&root.join("nowhere"));
        fs::remove_dir_all(&root).expect("tidies up");
    }
}
