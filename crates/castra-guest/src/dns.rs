//! Name servers for a system that has none of its own: QEMU's forwarder.
//!
//! | `/etc/resolv.conf` | The forwarder is named |
//! | --- | --- |
//! | does not exist, or names no server | there |
//! | is a link | to systemd-resolved, for the case that it finds no other server |
//! | is a link that leads to nothing once the services are up | in the link's target |
//!
//! What is written for a link is below `/run`, so the disk has nothing of it.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use castra_wire::DNS_ADDRESS;

use crate::run_directory::write;

const RESOLV_CONF: &str = "etc/resolv.conf";
/// Drop-in for resolved (`resolved.conf(5)`), below `/run`. A system without resolved ignores it.
const DROP_IN: &str = "systemd/resolved.conf.d/castra.conf";

/// Names the forwarder where no other server is named. `run` is the root's `/run`, if it is
/// mounted.
///
/// # Errors
/// Those of reading and writing the files.
pub(crate) fn provide(root: &Path, run: Option<&Path>) -> io::Result<()> {
    let path = root.join(RESOLV_CONF);
    let metadata = match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        metadata => Some(metadata?),
    };
    let servers = || fs::read_to_string(&path).is_ok_and(|text| names_a_server(&text));
    match (metadata, run) {
        (Some(metadata), Some(run)) if metadata.is_symlink() => {
            if servers() {
                return Ok(());
            }
            write(&run.join(DROP_IN), &format!("[Resolve]\nFallbackDNS={}\n", forwarder()))
        }
        (Some(metadata), _) if metadata.is_symlink() || servers() => Ok(()),
        _ => write(&path, &format!("nameserver {}\n", forwarder())),
    }
}

/// Names the forwarder behind a link below `/run` that still leads to nothing, now that the
/// services are up.
///
/// # Errors
/// Those of reading the link and creating the file.
pub(crate) fn complete(root: &Path, run: Option<&Path>) -> io::Result<()> {
    let path = root.join(RESOLV_CONF);
    let is_link = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_symlink());
    let Some(run) = run.filter(|_| is_link && !path.exists()) else { return Ok(()) };
    match below_run(&fs::read_link(&path)?) {
        Some(target) => write(&run.join(target), &format!("nameserver {}\n", forwarder())),
        None => Ok(()),
    }
}

/// Returns the path below `/run` to which a link in `/etc` leads.
fn below_run(target: &Path) -> Option<PathBuf> {
    let mut absolute = PathBuf::new();
    for component in Path::new("etc").join(target).components() {
        match component {
            Component::Normal(name) => absolute.push(name),
            Component::ParentDir => drop(absolute.pop()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    absolute.strip_prefix("run").or_else(|_| absolute.strip_prefix("var/run")).map(Into::into).ok()
}

fn names_a_server(resolv_conf: &str) -> bool {
    resolv_conf.lines().any(|line| line.split_whitespace().next() == Some("nameserver"))
}

fn forwarder() -> String {
    let [a, b, c, d] = DNS_ADDRESS;
    format!("{a}.{b}.{c}.{d}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A root with `/etc` and `/run`, removed when dropped.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let root =
                std::env::temp_dir().join(format!("castra-dns-{}-{name}", std::process::id()));
            for directory in ["etc", "run"] {
                fs::create_dir_all(root.join(directory)).expect("a directory");
            }
            Self(root)
        }

        fn provide(&self) {
            provide(&self.0, Some(&self.0.join("run"))).expect("provided");
        }

        fn complete(&self) {
            complete(&self.0, Some(&self.0.join("run"))).expect("completed");
        }

        fn read(&self, path: &str) -> Option<String> {
            fs::read_to_string(self.0.join(path)).ok()
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const NAMED: &str = "nameserver 10.0.2.3\n";

    #[test]
    fn a_file_is_written_only_where_it_names_no_server() {
        let root = Root::new("file");
        let file = root.0.join(RESOLV_CONF);
        root.provide();
        assert_eq!(root.read(RESOLV_CONF).as_deref(), Some(NAMED));
        for (before, after) in [
            ("# none\nsearch example\n", NAMED),
            ("nameserver 192.0.2.1\n", "nameserver 192.0.2.1\n"),
        ] {
            fs::write(&file, before).expect("writes");
            root.provide();
            assert_eq!(root.read(RESOLV_CONF).as_deref(), Some(after));
        }
        assert_eq!(root.read("run/systemd/resolved.conf.d/castra.conf"), None);
    }

    #[test]
    fn resolved_gets_a_server_to_fall_back_to_and_the_link_stays() {
        let root = Root::new("stub");
        let link = root.0.join(RESOLV_CONF);
        symlink("../run/systemd/resolve/stub-resolv.conf", &link).expect("links");
        provide(&root.0, None).expect("left alone");
        root.provide();
        assert!(fs::symlink_metadata(&link).expect("is there").is_symlink());
        let drop_in = root.read("run/systemd/resolved.conf.d/castra.conf");
        assert_eq!(drop_in.as_deref(), Some("[Resolve]\nFallbackDNS=10.0.2.3\n"));
        assert_eq!(root.read("run/systemd/resolve/stub-resolv.conf"), None, "resolved's own");
    }

    #[test]
    fn a_link_to_nothing_leads_to_a_server_once_the_services_are_up() {
        let root = Root::new("nothing");
        let link = root.0.join(RESOLV_CONF);
        symlink("../run/resolvconf/resolv.conf", &link).expect("links");
        root.complete();
        assert_eq!(root.read("run/resolvconf/resolv.conf").as_deref(), Some(NAMED));
        fs::write(root.0.join("run/resolvconf/resolv.conf"), "own\n").expect("writes");
        root.complete();
        assert_eq!(root.read(RESOLV_CONF).as_deref(), Some("own\n"));
        fs::remove_file(&link).expect("removed");
        symlink("../lib/nowhere/resolv.conf", &link).expect("links");
        root.complete();
        assert!(!root.0.join("lib").exists(), "only what ends with the boot is written");
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        for (target, below) in [
            ("../run/systemd/resolve/stub-resolv.conf", Some("systemd/resolve/stub-resolv.conf")),
            ("/run/NetworkManager/resolv.conf", Some("NetworkManager/resolv.conf")),
            ("/var/run/resolv.conf", Some("resolv.conf")),
            ("../../../run/x", Some("x")),
            ("/run/../etc/shadow", None),
            ("resolv.conf.real", None),
        ] {
            assert_eq!(below_run(Path::new(target)).as_deref(), below.map(Path::new), "{target}");
        }
    }
}
