//! Bounds of a project: the directories in which its configuration may make castra write, create,
//! or remove files.
//!
//! A `castra.toml` may come with a repository that its user has never read, so it must not choose
//! where on this machine castra writes. Everything it names for writing must lie inside the
//! project's directory, and in no part of it whose name begins with a dot (`.git`, and where the
//! project is a home directory `.ssh`), except for `.castra`. Only the user can widen that, outside
//! the file, with [`ALLOW_OUTSIDE`](super::ALLOW_OUTSIDE).
//!
//! Symbolic links are resolved in every component that exists. A [`DiskPath`] is checked when the
//! file is read, and again by [`DiskPath::confirm`] at the moment the disk is created or opened: a
//! link may have appeared in between.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::out_of_bounds::OutOfBounds;
use super::state_link;
use crate::files::normalise;
use crate::layout::{CONFIG_FILE, LINKED_FROM, ProjectLayout, STATE_DIRECTORY, is_frozen_layer};
use crate::qemu::QCOW2_MAGIC;
use crate::state_root::StateRoot;

/// Maximum number of links followed in one path before it counts as a loop, as in
/// `path_resolution(7)`.
const MAX_LINKS: usize = 40;

/// Entries of a state root that hold no disks of VMs.
const RESERVED: [&str; 8] =
    ["images", "templates", "vms", "logs", "lock", "mark", "cache", "quarantine"];

/// Directories in which a configuration may make castra write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    root: PathBuf,
    state_root: PathBuf,
    allowed: Vec<PathBuf>,
    /// Set if the state root is in the user's cache, where no configuration has put it.
    is_in_cache: bool,
}

impl Bounds {
    /// Returns the bounds of the project in the directory `root` with its default state root,
    /// extended by the directories `allowed` of the user. All paths are absolute and normalised.
    pub fn new(root: &Path, allowed: &[PathBuf]) -> Self {
        let state_root = root.join(STATE_DIRECTORY);
        Self { root: root.to_owned(), state_root, allowed: allowed.to_vec(), is_in_cache: false }
    }

    /// Returns the bounds of throw-away VMs, whose state is in the user's cache; `root` is the
    /// project that starts them.
    pub fn of_cache(root: &Path, runs: &ProjectLayout) -> Self {
        let state_root = runs.state_root().to_owned();
        Self { root: root.to_owned(), state_root, allowed: Vec::new(), is_in_cache: true }
    }

    /// Returns these bounds with another state root.
    ///
    /// # Errors
    /// [`OutOfBounds`] for a state root that the configuration must not choose.
    pub(super) fn with_state_root(self, state_root: PathBuf) -> Result<Self, OutOfBounds> {
        let bounds = Self { state_root, ..self };
        bounds.check_state_root()?;
        Ok(bounds)
    }

    /// Returns the project's state root.
    pub fn state_root(&self) -> StateRoot {
        StateRoot::new(self.state_root.clone())
    }

    /// Checks that the state root is where a configuration may put it.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn check_state_root(&self) -> Result<(), OutOfBounds> {
        if self.is_in_cache {
            return Ok(());
        }
        let path = self.state_root.as_path();
        let real = resolve(path)?;
        let root = resolve(&self.root)?;
        if root.starts_with(&real) {
            return Err(OutOfBounds::HoldsProject { path: path.to_owned() });
        }
        if let Some(below) = self.below_allowed(&real)? {
            check_hidden(path, &below, false)?;
        } else if let Ok(below) = real.strip_prefix(&root) {
            check_hidden(path, below, true)?;
        } else if is_link(path) && self.parent_is_inside(path, &root)? {
            return state_link::check(path, &real);
        } else {
            return Err(outside(path, &real));
        }
        match fs::metadata(&real) {
            Ok(metadata) if !metadata.is_dir() => {
                Err(OutOfBounds::NotADirectory { path: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Claims a state root that is a symbolic link, before anything is written there.
    ///
    /// # Errors
    /// [`OutOfBounds`] for one that this project must not use.
    pub fn claim_state_root(&self) -> Result<(), OutOfBounds> {
        self.check_state_root()?;
        let real = resolve(&self.state_root)?;
        let is_elsewhere =
            !real.starts_with(resolve(&self.root)?) && self.below_allowed(&real)?.is_none();
        if is_elsewhere && !self.is_in_cache && is_link(&self.state_root) {
            state_link::claim(&self.state_root, &real)?;
        }
        Ok(())
    }

    /// Returns the default disk of the VM `vm`.
    pub fn default_disk(self: &Arc<Self>, vm: &str) -> DiskPath {
        self.disk(self.state_root().names().overlay(vm))
    }

    /// Returns a VM's disk at this path, which is absolute and normalised; [`DiskPath::confirm`]
    /// checks it before anything is written.
    pub fn disk(self: &Arc<Self>, path: PathBuf) -> DiskPath {
        DiskPath { path, bounds: Arc::clone(self) }
    }

    /// Returns `true` for a path that leads out of the project's directory.
    pub fn is_outside(&self, path: &Path) -> bool {
        match (resolve(path), resolve(&self.root)) {
            (Ok(real), Ok(root)) => !real.starts_with(root),
            _ => !path.starts_with(&self.root),
        }
    }

    /// Checks the path at which a disk would be written.
    fn check_disk(&self, path: &Path) -> Result<(), OutOfBounds> {
        self.check_state_root()?;
        let real = resolve(path)?;
        let (root, state_root) = (resolve(&self.root)?, resolve(&self.state_root)?);
        if let Some(below) = self.below_allowed(&real)? {
            check_hidden(path, &below, false)?;
            return check_what_is_there(path, &real);
        }
        if let Ok(below) = real.strip_prefix(&state_root) {
            check_hidden(path, below, false)?;
            check_reserved(path, below)?;
        } else if let Ok(below) = real.strip_prefix(&root) {
            check_hidden(path, below, true)?;
        } else {
            return Err(outside(path, &real));
        }
        if real == root.join(CONFIG_FILE) || is_frozen_layer(&real) {
            return Err(OutOfBounds::Reserved { path: path.to_owned() });
        }
        // Through a link, two VMs could share a disk, or write to a base image.
        if is_link(path) {
            return Err(OutOfBounds::Link { path: path.to_owned() });
        }
        check_what_is_there(path, &real)
    }

    /// Returns the rest of a resolved path below a directory that the user allows.
    fn below_allowed(&self, real: &Path) -> Result<Option<PathBuf>, OutOfBounds> {
        for allowed in &self.allowed {
            if let Ok(below) = real.strip_prefix(resolve(allowed)?) {
                return Ok(Some(below.to_owned()));
            }
        }
        Ok(None)
    }

    fn parent_is_inside(&self, path: &Path, root: &Path) -> Result<bool, OutOfBounds> {
        let parent = resolve(path.parent().unwrap_or(path))?;
        let Ok(below) = parent.strip_prefix(root) else { return Ok(false) };
        check_hidden(path, below, true)?;
        Ok(true)
    }
}

/// Path of a VM's disk. Created only by [`Bounds`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPath {
    path: PathBuf,
    bounds: Arc<Bounds>,
}

impl DiskPath {
    /// Checks again, right before the disk is created or passed to QEMU, that castra may write
    /// there.
    ///
    /// # Errors
    /// [`OutOfBounds`].
    pub fn confirm(&self) -> Result<&Path, OutOfBounds> {
        self.bounds.check_disk(&self.path)?;
        Ok(&self.path)
    }

    /// Returns another disk, at this path, in the same bounds.
    #[must_use]
    pub fn at(&self, path: PathBuf) -> Self {
        self.bounds.disk(path)
    }

    /// Returns the path with every symbolic link resolved, for comparison with others.
    pub fn resolved(&self) -> PathBuf {
        resolved(&self.path)
    }

    /// Returns the bounds of the disk.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }
}

/// Gives read access to the path; before the disk is written, [`DiskPath::confirm`] must be called.
impl Deref for DiskPath {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for DiskPath {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

fn outside(path: &Path, real: &Path) -> OutOfBounds {
    let leads_to = (real != path).then(|| real.to_owned());
    OutOfBounds::Outside { path: path.to_owned(), leads_to }
}

/// Refuses components that begin with a dot; `.castra` may be the first one of a project.
fn check_hidden(path: &Path, below: &Path, is_project: bool) -> Result<(), OutOfBounds> {
    for (number, component) in below.components().enumerate() {
        let name = component.as_os_str();
        let is_state = name == OsStr::new(STATE_DIRECTORY);
        if is_state && is_project && number > 0 {
            return Err(OutOfBounds::OtherProject { path: path.to_owned() });
        }
        if name.as_encoded_bytes().starts_with(b".") && !is_state {
            let name = name.to_string_lossy().into_owned();
            return Err(OutOfBounds::Hidden { path: path.to_owned(), name });
        }
    }
    Ok(())
}

/// Refuses the entries of a state root that castra reserves for itself.
fn check_reserved(path: &Path, below: &Path) -> Result<(), OutOfBounds> {
    let first = below.components().next().map(Component::as_os_str);
    let is_reserved = first
        .is_none_or(|first| RESERVED.iter().any(|name| first.eq_ignore_ascii_case(name)))
        || below == Path::new(LINKED_FROM);
    if is_reserved { Err(OutOfBounds::Reserved { path: path.to_owned() }) } else { Ok(()) }
}

/// Refuses an existing file as a disk, unless it is a qcow2.
fn check_what_is_there(path: &Path, real: &Path) -> Result<(), OutOfBounds> {
    // A FIFO must not block, and a link that has just been created is not followed.
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
    let not_a_disk = || OutOfBounds::NotADisk { path: path.to_owned() };
    match fs::symlink_metadata(real) {
        Err(error) if is_absence(&error) || is_denied(&error) => return Ok(()),
        Err(error) => return Err(unresolved(path, &error)),
        Ok(metadata) if !metadata.is_file() => return Err(not_a_disk()),
        Ok(_) => {}
    }
    let mut magic = [0; QCOW2_MAGIC.len()];
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(real) {
        Err(error) if is_denied(&error) => return Ok(()),
        file => file.map_err(|error| unresolved(path, &error))?,
    };
    match file.read_exact(&mut magic) {
        Ok(()) if magic == QCOW2_MAGIC => Ok(()),
        _ => Err(not_a_disk()),
    }
}

/// Returns the path with every symbolic link resolved, or unchanged if that fails.
pub(super) fn resolved(path: &Path) -> PathBuf {
    resolve(path).unwrap_or_else(|_| path.to_owned())
}

/// Resolves every symbolic link in the path; keeps components that do not exist.
fn resolve(path: &Path) -> Result<PathBuf, OutOfBounds> {
    let mut rest: VecDeque<OsString> = components_of(path);
    let mut real = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            real.pop();
            continue;
        }
        let next = real.join(&name);
        match fs::symlink_metadata(&next) {
            Ok(metadata) if metadata.is_symlink() => {
                links += 1;
                if links > MAX_LINKS {
                    let reason = "it is a loop of symbolic links".to_owned();
                    return Err(OutOfBounds::Unresolved { path: path.to_owned(), reason });
                }
                let target = fs::read_link(&next).map_err(|error| unresolved(path, &error))?;
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                components_of(&target).into_iter().rev().for_each(|name| rest.push_front(name));
            }
            Ok(_) => real = next,
            // A component that cannot be examined cannot be written to either, and the commands
            // report its owner.
            Err(error) if is_absence(&error) || is_denied(&error) => real = next,
            Err(error) => return Err(unresolved(path, &error)),
        }
    }
    Ok(normalise(&real))
}

fn components_of(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

fn unresolved(path: &Path, error: &io::Error) -> OutOfBounds {
    OutOfBounds::Unresolved { path: path.to_owned(), reason: error.to_string() }
}

fn is_absence(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

fn is_denied(error: &io::Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Creates a project's directory, without links in its path.
    fn project() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().canonicalize().expect("a path").join("project");
        fs::create_dir(&root).expect("a directory");
        (directory, root)
    }

    #[test]
    fn a_link_that_appears_after_the_check_is_seen_by_the_next() {
        let (_guard, root) = project();
        let bounds = Arc::new(Bounds::new(&root, &[]));
        let disk = bounds.disk(root.join("disks/web.qcow2"));
        assert_eq!(disk.confirm(), Ok(&*disk));
        symlink("..", root.join("disks")).expect("a link");
        assert!(matches!(disk.confirm(), Err(OutOfBounds::Outside { leads_to: Some(_), .. })));
        fs::remove_file(root.join("disks")).expect("removed");
        fs::create_dir(root.join("disks")).expect("a directory");
        assert_eq!(disk.confirm(), Ok(&*disk));
        symlink("../../new", &disk).expect("a link");
        assert!(matches!(disk.confirm(), Err(OutOfBounds::Outside { .. })));
        fs::remove_file(&disk).expect("removed");
        symlink("other.qcow2", &disk).expect("a link");
        assert!(matches!(disk.confirm(), Err(OutOfBounds::Link { .. })));
        let default = bounds.default_disk("web");
        assert_eq!(default.confirm(), Ok(&*default));
        symlink("..", root.join(STATE_DIRECTORY)).expect("a link");
        assert!(default.confirm().is_err());
    }

    #[test]
    fn links_inside_the_project_are_followed() {
        let (_guard, root) = project();
        let bounds = Arc::new(Bounds::new(&root, &[]));
        fs::create_dir_all(root.join("data/.git")).expect("a directory");
        symlink(root.join("data"), root.join("disks")).expect("a link");
        let disk = bounds.disk(root.join("disks/web.qcow2"));
        assert_eq!(disk.confirm(), Ok(&*disk));
        assert_eq!(disk.resolved(), root.join("data/web.qcow2"));
        let hidden = bounds.disk(root.join("disks/.git/web.qcow2"));
        assert!(matches!(hidden.confirm(), Err(OutOfBounds::Hidden { .. })));
    }

    #[test]
    fn a_project_is_found_behind_a_link_to_it() {
        let (_guard, root) = project();
        let link = root.with_file_name("link");
        symlink(&root, &link).expect("a link");
        let bounds = Arc::new(Bounds::new(&link, &[]));
        assert_eq!(bounds.check_state_root(), Ok(()));
        let disk = bounds.disk(link.join("web.qcow2"));
        assert_eq!(disk.confirm(), Ok(&*disk));
        assert!(!bounds.is_outside(&root.join("base.qcow2")));
        assert!(bounds.is_outside(&link.with_file_name("base.qcow2")));
    }

    #[test]
    fn only_the_user_allows_more() {
        let (_guard, root) = project();
        let big = root.with_file_name("big");
        symlink("../big", root.join("disks")).expect("a link");
        for (allowed, disk, is_allowed) in [
            (&[][..], "disks/web.qcow2", false),
            (std::slice::from_ref(&big), "disks/web.qcow2", true),
            (std::slice::from_ref(&big), "disks/.ssh/web.qcow2", false),
            (std::slice::from_ref(&big), "../bigger/web.qcow2", false),
            (&[big.join("web.qcow2")][..], "../big/web.qcow2", true),
            (&[big.join("web.qcow2")][..], "../big/web2.qcow2", false),
            (&[root.join(".vms")][..], ".vms/web.qcow2", true),
        ] {
            let bounds = Arc::new(Bounds::new(&root, allowed));
            let disk = bounds.disk(normalise(&root.join(disk)));
            assert_eq!(disk.confirm().is_ok(), is_allowed, "{}", disk.display());
        }
    }

    #[test]
    fn castras_own_files_are_no_disks() {
        let (_guard, root) = project();
        let bounds = Arc::new(Bounds::new(&root, &[]));
        for name in [
            "castra.toml",
            "layer-0123456789abcdef.qcow2",
            "disks/layer-0123456789abcdef.qcow2",
            ".castra/layer-0123456789abcdef.qcow2",
            ".castra/images/web.qcow2",
            ".castra/VMs/web/disk.qcow2",
            ".castra/Mark",
            ".castra/linked-from",
        ] {
            let found = bounds.disk(root.join(name)).confirm().map(drop);
            assert!(matches!(found, Err(OutOfBounds::Reserved { .. })), "{name}: {found:?}");
        }
        for name in [".castra/.hidden/web.qcow2", ".castra/.web.qcow2"] {
            let found = bounds.disk(root.join(name)).confirm().map(drop);
            assert!(matches!(found, Err(OutOfBounds::Hidden { .. })), "{name}: {found:?}");
        }
    }

    #[test]
    fn a_state_root_is_a_directory_of_its_own() {
        let (_guard, root) = project();
        let big = root.with_file_name("big");
        let at =
            |path: PathBuf| Bounds::new(&root, std::slice::from_ref(&big)).with_state_root(path);
        assert!(at(root.join("state")).is_ok() && at(big.join("state")).is_ok());
        for path in [root.clone(), root.parent().expect("a parent").to_owned(), PathBuf::from("/")]
        {
            let found = at(path.clone());
            assert!(
                matches!(found, Err(OutOfBounds::HoldsProject { .. })),
                "{}: {found:?}",
                path.display()
            );
        }
        fs::write(root.join("file"), "").expect("written");
        assert!(matches!(at(root.join("file")), Err(OutOfBounds::NotADirectory { .. })));
        for path in [root.join(".git"), root.join("a/.b"), big.join(".ssh"), big.join("a/.b/c")] {
            let found = at(path.clone());
            assert!(
                matches!(found, Err(OutOfBounds::Hidden { .. })),
                "{}: {found:?}",
                path.display()
            );
        }
        // A link in a hidden place, to a directory that would do.
        let elsewhere = root.with_file_name("elsewhere");
        fs::create_dir(&elsewhere).expect("a directory");
        fs::create_dir(root.join(".git")).expect("a directory");
        symlink(&elsewhere, root.join(".git/state")).expect("a link");
        assert!(matches!(at(root.join(".git/state")), Err(OutOfBounds::Hidden { .. })));
        // Outside it, the link itself is examined: here it leads to a hidden place, as temporary
        // directories are.
        symlink(&elsewhere, root.join("state")).expect("a link");
        assert!(matches!(at(root.join("state")), Err(OutOfBounds::StateLink { .. })));
    }

    #[test]
    fn what_is_there_must_be_a_disk_in_an_allowed_place_too() {
        let (_guard, root) = project();
        let big = root.with_file_name("big");
        fs::create_dir(&big).expect("a directory");
        fs::write(big.join("thesis"), "no disk").expect("written");
        let bounds = Arc::new(Bounds::new(&root, std::slice::from_ref(&big)));
        let found = bounds.disk(big.join("thesis")).confirm().map(drop);
        assert!(matches!(found, Err(OutOfBounds::NotADisk { .. })), "{found:?}");
    }

    #[test]
    fn what_is_there_must_be_a_disk() {
        let (_guard, root) = project();
        let bounds = Arc::new(Bounds::new(&root, &[]));
        for (name, content, is_disk) in [
            ("qcow2", &b"QFI\xfb and more"[..], true),
            ("empty", b"", false),
            ("text", b"QFI: no", false),
        ] {
            fs::write(root.join(name), content).expect("written");
            assert_eq!(bounds.disk(root.join(name)).confirm().is_ok(), is_disk, "{name}");
        }
    }
}
