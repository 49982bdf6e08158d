//! Mounts: directories of this machine that a guest sees.
//!
//! The VM's [companion](super::companion) answers the guest's FUSE requests:
//!
//! ```text
//! guest's kernel ── /dev/fuse ── agent ── stream port ── companion ── the directory
//! ```

mod changes;
mod place;
mod pool;
mod served;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use place::{OF_KERNEL, is_of_kernel};
pub(super) use served::Served;

/// Maximum number of mounts of a VM.
pub const MAX_MOUNTS: usize = 32;

/// Longest path of a mount in a guest, in bytes.
const MAX_GUEST_PATH_BYTES: usize = 1024;

/// Directories of a guest on which nothing is mounted: what is in them is the system's own, and it
/// stops working without.
const SYSTEM_DIRECTORIES: [&str; 25] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib/modules",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib/modules",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/sbin",
    "/var",
    "/var/lib",
    "/var/run",
];

/// Directories of a guest below which nothing is mounted, either.
const KERNEL_DIRECTORIES: [&str; 3] = ["/dev/", "/proc/", "/sys/"];

/// A directory of this machine and its place in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mount {
    /// Absolute path of the directory, without links.
    pub host: PathBuf,
    /// Absolute path in the guest, as [`Mount::guest_path`] returns it.
    pub guest: String,
    /// The guest cannot write.
    #[serde(default)]
    pub read_only: bool,
    /// Programs in the guest that watch files are notified of changes that this machine makes.
    #[serde(default = "Mount::notifies", skip_serializing_if = "Clone::clone")]
    pub notify: bool,
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.host.display(), self.guest)?;
        if self.read_only { f.write_str(" (read-only)") } else { Ok(()) }
    }
}

/// Reason why a path is no place for a mount in a guest. Completes "cannot be mounted at".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GuestPathProblem {
    /// The path does not begin with a slash.
    #[error("it is not an absolute path")]
    Relative,
    /// The path leads up.
    #[error("it contains `..`")]
    Upwards,
    /// The path is one of the system's own directories.
    #[error("it is a directory of the guest's system")]
    OfSystem,
    /// The path has a control character or is too long.
    #[error("it has a control character, or more than {MAX_GUEST_PATH_BYTES} bytes")]
    Unprintable,
}

impl Mount {
    /// Returns what [`Mount::notify`] is unless it is given.
    pub const fn notifies() -> bool {
        true
    }

    /// Returns a guest's path without redundant parts, if a directory can be mounted there.
    ///
    /// # Errors
    /// [`GuestPathProblem`].
    pub fn guest_path(text: &str) -> Result<String, GuestPathProblem> {
        if !text.starts_with('/') {
            return Err(GuestPathProblem::Relative);
        }
        if text.contains(char::is_control) || text.len() > MAX_GUEST_PATH_BYTES {
            return Err(GuestPathProblem::Unprintable);
        }
        let parts: Vec<&str> =
            text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        if parts.contains(&"..") {
            return Err(GuestPathProblem::Upwards);
        }
        let path = format!("/{}", parts.join("/"));
        let is_system = SYSTEM_DIRECTORIES.contains(&path.as_str())
            || KERNEL_DIRECTORIES.iter().any(|directory| path.starts_with(directory));
        if is_system { Err(GuestPathProblem::OfSystem) } else { Ok(path) }
    }

    /// Returns the path in the guest of an absolute path of this machine without links, if it is in
    /// one of the mounts. The deepest of these counts.
    pub fn path_in_guest(mounts: &[Self], path: &Path) -> Option<OsString> {
        let depth = |mount: &Self| mount.host.components().count();
        let inside = mounts.iter().rev().filter(|mount| path.starts_with(&mount.host));
        let mount = inside.max_by_key(|mount| depth(mount))?;
        let rest = path.strip_prefix(&mount.host).ok()?;
        let mut guest = PathBuf::from(&mount.guest);
        // Nothing but the mount itself would get a slash at its end.
        guest.extend(rest);
        Some(guest.into_os_string())
    }

    /// Returns `true` if its directory may belong to this user: one's own, or for reading also
    /// root's.
    pub(crate) fn may_belong_to(&self, uid: u32) -> bool {
        uid == rustix::process::geteuid().as_raw() || uid == 0 && self.read_only
    }

    /// Returns what the mount lets a guest do, with the directory quoted.
    pub fn wish(&self) -> String {
        let access = if self.read_only { "read" } else { "read and write" };
        format!("{access} {:?}", self.host)
    }

    /// Returns `true` if two mounts are at the same place in a guest, or one inside the other.
    pub fn is_entangled_with(&self, other: &Self) -> bool {
        is_inside(&self.guest, &other.guest) || is_inside(&other.guest, &self.guest)
    }
}

/// Returns `true` for a path of a guest that is at or below another one, both as
/// [`Mount::guest_path`] returns them.
pub fn is_inside(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// State of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "reason", rename_all = "kebab-case")]
pub enum MountState {
    /// The guest has not mounted it yet.
    Waiting,
    /// The guest sees it.
    Mounted,
    /// The guest sees it, and is not notified of all changes that this machine makes, for this
    /// reason.
    Unnotified(String),
    /// The guest does not see it, for this reason.
    Failed(String),
}

impl MountState {
    /// Returns `true` if the guest sees it.
    pub const fn is_mounted(&self) -> bool {
        matches!(self, Self::Mounted | Self::Unnotified(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(guest: &str) -> Mount {
        Mount { host: "/home".into(), guest: guest.into(), read_only: false, notify: false }
    }

    #[test]
    fn places_in_a_guest_are_absolute_and_not_the_systems() {
        for (text, path) in [
            ("/src", "/src"),
            ("//a/./b//", "/a/b"),
            ("/etc/app", "/etc/app"),
            ("/var/lib/app", "/var/lib/app"),
            ("/usr/bin2", "/usr/bin2"),
        ] {
            assert_eq!(Mount::guest_path(text).as_deref(), Ok(path));
        }
        for (text, problem) in [
            ("src", GuestPathProblem::Relative),
            ("", GuestPathProblem::Relative),
            ("/a/../b", GuestPathProblem::Upwards),
            ("/", GuestPathProblem::OfSystem),
            ("/usr/", GuestPathProblem::OfSystem),
            ("/proc/1", GuestPathProblem::OfSystem),
            ("/usr//bin", GuestPathProblem::OfSystem),
            ("/var/run/", GuestPathProblem::OfSystem),
            ("/a\nb", GuestPathProblem::Unprintable),
        ] {
            assert_eq!(Mount::guest_path(text), Err(problem), "{text:?}");
        }
    }

    #[test]
    fn the_deepest_mount_of_a_path_counts() {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt as _;

        let mount = |host: &str, guest: &str| Mount { host: host.into(), ..mount(guest) };
        let mounts = [
            mount("/a", "/outer"),
            mount("/a/b", "/inner"),
            mount("/a/b", "/twin"),
            mount("/c", "/c"),
        ];
        let odd = Path::new(OsStr::from_bytes(b"/a/\xff/x"));
        for (path, guest) in [
            (Path::new("/a"), Some(&b"/outer"[..])),
            (odd, Some(b"/outer/\xff/x")),
            (Path::new("/a/b"), Some(b"/inner")),
            (Path::new("/a/b/c"), Some(b"/inner/c")),
            (Path::new("/a/bc"), Some(b"/outer/bc")),
            (Path::new("/ab"), None),
            (Path::new("/"), None),
        ] {
            let found = Mount::path_in_guest(&mounts, path);
            assert_eq!(found.as_deref(), guest.map(OsStr::from_bytes), "{}", path.display());
        }
    }

    #[test]
    fn mounts_inside_each_other_are_seen() {
        assert!(mount("/a").is_entangled_with(&mount("/a/b")));
        assert!(mount("/a/b").is_entangled_with(&mount("/a")));
        assert!(mount("/a").is_entangled_with(&mount("/a")));
        assert!(!mount("/a").is_entangled_with(&mount("/ab")));
    }
}
