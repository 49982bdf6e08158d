//! Environment of a command under `sudo -E`, which runs as root with the directories of the calling
//! user.
//!
//! Files of root's in another user's home break every later castra of its owner: the cache and the
//! key cannot be read, sockets cannot be created. So under sudo castra uses root's own directories,
//! as under plain `sudo`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use castra_engine::context::Environment;

/// Variables with directories to which castra, or a program that it runs, writes.
const DIRECTORIES: [&str; 6] = [
    "HOME",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
    "XDG_RUNTIME_DIR",
];

/// Replaces the directories of the user who called sudo by root's home in root's environment.
/// Changes nothing for other users.
#[must_use]
pub(crate) fn in_own_directories(environment: Environment) -> Environment {
    if !rustix::process::geteuid().is_root() {
        return environment;
    }
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let owner = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.uid());
    for_root(environment, owner, &passwd)
}

fn for_root(
    environment: Environment,
    owner: impl Fn(&Path) -> Option<u32>,
    passwd: &[u8],
) -> Environment {
    let caller = environment.text("SUDO_UID").and_then(|uid| uid.parse().ok());
    let Some(caller) = caller.filter(|uid| *uid != 0) else { return environment };
    let is_the_callers = |name: &&str| {
        environment.absolute_path(name).is_some_and(|directory| {
            // A directory that does not exist yet would be created in its nearest existing
            // ancestor.
            directory.ancestors().find_map(&owner) == Some(caller)
        })
    };
    let borrowed: Vec<&str> = DIRECTORIES.into_iter().filter(is_the_callers).collect();
    let own_home = home_of_root(passwd);
    borrowed.into_iter().fold(environment, |environment, name| match (name, &own_home) {
        ("HOME", Some(home)) => environment.with(name, home.clone()),
        _ => environment.without(name),
    })
}

/// Finds root's home in the text of a passwd(5) file.
fn home_of_root(passwd: &[u8]) -> Option<OsString> {
    let line = passwd.split(|byte| *byte == b'\n').find(|line| line.starts_with(b"root:"))?;
    let home = line.split(|byte| *byte == b':').nth(5)?;
    home.starts_with(b"/").then(|| OsString::from_vec(home.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"daemon:x:1:1::/usr/sbin:/bin/sh\nroot:x:0:0:root:/root:/bin/bash\n";

    /// Returns the owner of a path: user 1000 for everything below /home and /run/user.
    fn owner(path: &Path) -> Option<u32> {
        let is_there = ["/", "/root", "/home/ann", "/run/user/1000", "/srv"]
            .iter()
            .any(|there| path == Path::new(there));
        is_there.then(|| {
            if path.starts_with("/home/ann") || path.starts_with("/run/user") { 1000 } else { 0 }
        })
    }

    fn under_sudo(variables: &[(&str, &str)]) -> Environment {
        for_root(Environment::of(variables.iter().copied()), owner, PASSWD)
    }

    #[test]
    fn directories_of_the_user_who_called_sudo_are_not_used() {
        let variables = [
            ("HOME", "/home/ann"),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
            ("XDG_CACHE_HOME", "/home/ann/not/made/yet"),
            ("XDG_STATE_HOME", "/srv"),
            ("SUDO_UID", "1000"),
        ];
        let expected = [("HOME", "/root"), ("XDG_STATE_HOME", "/srv"), ("SUDO_UID", "1000")];
        assert_eq!(under_sudo(&variables), Environment::of(expected));
    }

    #[test]
    fn a_root_without_sudo_keeps_its_directories() {
        for sudo in [("OTHER", ""), ("SUDO_UID", "0"), ("SUDO_UID", "1001"), ("SUDO_UID", "x")] {
            let variables = [("HOME", "/home/ann"), ("XDG_RUNTIME_DIR", "/run/user/1000"), sudo];
            assert_eq!(under_sudo(&variables), Environment::of(variables), "{sudo:?}");
        }
    }

    #[test]
    fn without_a_home_of_its_own_root_has_none() {
        let variables = [("HOME", "/home/ann"), ("SUDO_UID", "1000")];
        for passwd in [&b""[..], b"root:x:0:0", b"root:x:0:0:root:root:/bin/sh\n"] {
            let environment = for_root(Environment::of(variables), owner, passwd);
            assert_eq!(environment, Environment::of([("SUDO_UID", "1000")]));
        }
    }
}
