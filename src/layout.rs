//! Every path, file and socket name, once.
//!
//! ```text
//! <project>/castra.toml                    optional
//! <project>/.castra/
//!   images/<id>/<version>/                 rootfs.qcow2  vmlinuz  initramfs  manifest.json     read-only
//!   templates/<digest>/disk.qcow2          the disk of a warm template that VMs' disks stand on; read-only
//!   <vm>-overlay.qcow2                     the VM's own disk
//!   layer-<id>.qcow2                       what the disks of a VM and its clones share, beside the VM's disk; read-only
//!   vms/<vm>/                              vm.json  clone.json  qemu.pid  lock  initramfs  host_key  client_key  known_hosts
//!                                          machine.state: memory and devices of a suspended VM
//!                                          boots/<unix ms>.json: the phases of its last starts
//!   logs/                                  castra.log[.1]  image-manager.log  <vm>-console.log  <vm>-qemu.log
//!   linked-from                            path of the link that leads here, where `.castra` is one
//!   lock                                   shared by whoever changes a VM, held alone by `clean`
//!   mark                                   says that this user's castra made it: an id, signed by the user's key
//!   .gitignore                             keeps git from tracking any of it
//!   cache/                                 stands in for a cache that cannot be written to
//!   quarantine/                            damaged files of images, moved aside
//! $XDG_CACHE_HOME/castra/
//!   blobs/sha256/<digest>[.partial[.json]] verified downloads; a partial is named by the digest it should get
//!   images/<id>/<version>/                 the same layout as in a project
//!   templates/<key>/                       disk.qcow2  memory.img  device.state  initramfs  template.json
//!   templates/<key>.refused.json           why no template is made for this key, for a while
//!   projects/<digest of a state root>.json which images a project has, and what they are made from
//!   known/<digest of a state root>         where each project is that `up` has seen: the path of its state root
//!   quarantine/                            damaged files, moved aside
//!   runs/                                  a project's layout, for VMs that are thrown away
//!   locks/                                 one file per image, blob, project and template
//!   accelerators.json                      what the accelerator race found
//!   CACHEDIR.TAG                           keeps backups from holding a copy of it
//! $XDG_STATE_HOME/castra/key               signs the marks of this user's state roots   0700 / 0600
//! $XDG_RUNTIME_DIR/castra/<project>/<vm>/  qmp.sock  control.sock  console.sock   0700 / 0600
//! ```

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::hex::hex;
use crate::trusted;

/// Name of the configuration file.
pub const CONFIG_FILE: &str = "castra.toml";
/// Name of the default state root.
pub const STATE_DIRECTORY: &str = ".castra";
/// File of a state root behind a symbolic link, with the path of the link: see `config/state_link.rs`.
pub const LINKED_FROM: &str = "linked-from";
/// Names of an image's files.
pub const ROOTFS: &str = "rootfs.qcow2";
/// The kernel's name in an image's directory.
pub const KERNEL: &str = "vmlinuz";
/// The initramfs's name in an image's directory.
pub const INITRAMFS: &str = "initramfs";
/// The manifest's name in an image's directory.
pub const MANIFEST: &str = "manifest.json";

/// Longest VM name, in bytes: with it the longest socket path stays below the kernel's 108 bytes.
pub const MAX_VM_NAME_BYTES: usize = 40;
/// Longest path of a Unix socket, in bytes, without the final NUL (`sun_path` in `unix(7)`).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Ends of the names of the logs that QEMU writes.
const CONSOLE_LOG: &str = "-console.log";
const QEMU_LOG: &str = "-qemu.log";

/// Returns `true` for the name of a log that QEMU holds open as long as it runs.
pub fn is_log_of_qemu(name: &OsStr) -> bool {
    [CONSOLE_LOG, QEMU_LOG].iter().any(|end| name.as_encoded_bytes().ends_with(end.as_bytes()))
}

/// Returns the path of what a log held before it was rotated: `castra.log.1`.
pub fn earlier_log(log: &Path) -> PathBuf {
    let mut path = OsString::from(log);
    path.push(".1");
    path.into()
}

/// The layer that a disk becomes when its VM is cloned: beside it, so that the names of what it stands on stay right.
pub fn frozen_layer(overlay: &Path, id: &str) -> PathBuf {
    overlay.with_file_name(format!("layer-{id}.qcow2"))
}

/// Returns `true` for a directory that holds the records of VMs, whatever its name: a state directory.
pub fn is_state_root(path: &Path) -> bool {
    let Ok(vms) = std::fs::read_dir(path.join("vms")) else { return false };
    vms.flatten().any(|vm| vm.path().join("vm.json").is_file())
}

/// Whether this is the name of a lock beside an image, see [`ImagesLayout::lock`].
pub fn is_image_lock(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".lock")
}

/// How the names of clones' disks in the making start.
pub const OVERLAY_TEMPORARY: &str = ".overlay-";

/// Whether this is the name of such a layer.
pub fn is_frozen_layer(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let id = name.strip_prefix("layer-").and_then(|name| name.strip_suffix(".qcow2"));
    id.is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The paths of one project's state. Commands get one from [`crate::state_root::StateRoot::open`] only, which looks at what
/// lies there first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectLayout {
    state_root: PathBuf,
    /// It is in a directory of a project, so it needs a mark.
    needs_mark: bool,
}

impl ProjectLayout {
    /// The layout below this state root (absolute), about which nothing is known: to name paths, and for tests.
    pub fn unchecked(state_root: PathBuf) -> Self {
        Self { state_root, needs_mark: true }
    }

    /// Returns `true` where a castra has made the state root, as far as a look from outside tells.
    pub(crate) fn is_made(&self) -> bool {
        let sign = if self.needs_mark { self.mark() } else { self.state_root.clone() };
        sign.symlink_metadata().is_ok()
    }

    /// Returns `false` for the place of VMs that are thrown away: it lies in the user's own cache.
    pub(crate) fn needs_mark(&self) -> bool {
        self.needs_mark
    }

    /// The project, and the VM of it, whose QEMU has this pid file.
    pub fn of_pidfile(path: &Path) -> Option<(Self, String)> {
        let directory = path.parent()?;
        let layout = Self::unchecked(directory.parent()?.parent()?.to_owned());
        let vm = directory.file_name()?.to_str()?.to_owned();
        (path.is_absolute() && layout.vm(&vm).pidfile() == path).then_some((layout, vm))
    }

    /// The project's directory, as its user knows it: that above `.castra`, or whatever else the state is in.
    pub fn directory(&self) -> &Path {
        let above = self.state_root.parent().filter(|_| self.state_root.ends_with(STATE_DIRECTORY));
        above.unwrap_or(&self.state_root)
    }

    /// Whether this is the project, in some cache, of VMs that are thrown away.
    pub fn is_for_runs(&self) -> bool {
        self.state_root.parent().is_some_and(|cache| {
            cache.ends_with("castra")
                && CacheLayout::new(cache.to_owned()).runs().state_root == self.state_root
        })
    }

    /// `.castra/`.
    pub fn state_root(&self) -> &Path {
        &self.state_root
    }

    /// Takes the cache's place while the cache itself cannot be written to.
    pub fn own_cache(&self) -> CacheLayout {
        CacheLayout::new(self.state_root.join("cache"))
    }

    /// Where damaged files of the project's images are moved.
    pub fn quarantine(&self) -> PathBuf {
        self.state_root.join("quarantine")
    }

    /// The project's images.
    pub fn images(&self) -> ImagesLayout {
        ImagesLayout::new(self.state_root.join("images"))
    }

    /// The disk of a warm template that VMs of this project stand on, by its SHA-256: a template that is made anew has the
    /// same key and another disk, and disks that stand on the old one need that.
    pub fn layer(&self, sha256: &str) -> PathBuf {
        self.templates().template(sha256).disk()
    }

    /// All such disks.
    pub fn templates(&self) -> TemplatesLayout {
        TemplatesLayout::new(self.state_root.join("templates"))
    }

    /// Shared by whoever changes a VM, and held alone by whoever removes what no VM needs.
    pub fn project_lock(&self) -> PathBuf {
        self.state_root.join("lock")
    }

    /// Says that this user's castra made the state root.
    pub fn mark(&self) -> PathBuf {
        self.state_root.join("mark")
    }

    /// Keeps git from tracking anything of it.
    pub fn git_ignore(&self) -> PathBuf {
        self.state_root.join(".gitignore")
    }

    /// Where a VM's disk is unless its definition says otherwise.
    pub fn overlay(&self, vm: &str) -> PathBuf {
        self.state_root.join(format!("{vm}-overlay.qcow2"))
    }

    /// The directory of all records.
    pub fn vms(&self) -> PathBuf {
        self.state_root.join("vms")
    }

    /// The files of one VM.
    pub fn vm(&self, vm: &str) -> VmLayout {
        VmLayout { directory: self.vms().join(vm), logs: self.logs(), name: vm.to_owned() }
    }

    /// The log files.
    pub fn logs(&self) -> PathBuf {
        self.state_root.join("logs")
    }

    /// What the image manager did, one line a step.
    pub fn image_manager_log(&self) -> PathBuf {
        self.logs().join("image-manager.log")
    }

    /// What castra did to the project's VMs, one line an event.
    pub fn castra_log(&self) -> PathBuf {
        self.logs().join("castra.log")
    }

    /// Where a VM's sockets are: below `runtime_root`, by a digest of the state root, so that two projects never meet.
    pub fn sockets(&self, runtime_root: &Path, vm: &str) -> SocketsLayout {
        SocketsLayout { directory: runtime_root.join(self.short_digest(6)).join(vm) }
    }

    /// The directory in which files that belong to the project may lie: that above `.castra`, or the nearest one above another
    /// state root that has a configuration.
    pub fn project_directory(&self) -> Option<&Path> {
        if self.state_root.ends_with(STATE_DIRECTORY) {
            return self.state_root.parent();
        }
        self.state_root.ancestors().skip(1).find(|directory| directory.join(CONFIG_FILE).is_file())
    }

    /// Names the project by where it is: the first bytes of a digest of its state root.
    pub fn short_digest(&self, bytes: usize) -> String {
        let digest = Sha256::digest(self.state_root.as_os_str().as_encoded_bytes());
        hex(&digest[..bytes])
    }
}

/// The files of one VM, but for its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmLayout {
    directory: PathBuf,
    logs: PathBuf,
    name: String,
}

impl VmLayout {
    /// `vms/<vm>/`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The state root that it is in.
    pub fn state_root(&self) -> &Path {
        self.directory.ancestors().nth(2).unwrap_or(&self.directory)
    }

    /// The VM's record.
    pub fn record(&self) -> PathBuf {
        self.directory.join("vm.json")
    }

    /// The record that a clone was made with, which stands in for its own where that is lost: no configuration declares a clone.
    pub fn clone_record(&self) -> PathBuf {
        self.directory.join("clone.json")
    }

    /// Held by whoever changes the VM.
    pub fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }

    /// Written and locked by QEMU as long as it lives.
    pub fn pidfile(&self) -> PathBuf {
        self.directory.join("qemu.pid")
    }

    /// The image's initramfs with the guest agent appended.
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs")
    }

    /// Memory and devices of a suspended VM, in QEMU's migration format.
    pub fn machine_state(&self) -> PathBuf {
        self.directory.join("machine.state")
    }

    /// The same while it is written.
    pub fn unfinished_machine_state(&self) -> PathBuf {
        self.directory.join(".machine.state.new")
    }

    /// Held by whoever is connected to the console.
    pub fn console_lock(&self) -> PathBuf {
        self.directory.join("console.lock")
    }

    /// What is kept of the VM's last starts: one file a start.
    pub fn boots(&self) -> PathBuf {
        self.directory.join("boots")
    }

    /// What is kept of the start that began then.
    pub fn boot(&self, started_unix_ms: u64) -> PathBuf {
        self.boots().join(format!("{started_unix_ms}.json"))
    }

    /// When the start began that a file of this name tells of.
    pub fn start_of_boot(name: &str) -> Option<u64> {
        name.strip_suffix(".json")?.parse().ok()
    }

    /// The SSH server's private key, handed to the guest.
    pub fn host_key(&self) -> PathBuf {
        self.directory.join("host_key")
    }

    /// The private key that may log in.
    pub fn client_key(&self) -> PathBuf {
        self.directory.join("client_key")
    }

    /// `known_hosts` for other SSH clients.
    pub fn known_hosts(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }

    /// What the guest wrote on its serial console, this boot.
    pub fn console_log(&self) -> PathBuf {
        self.logs.join(format!("{}{CONSOLE_LOG}", self.name))
    }

    /// What QEMU wrote on its stderr, this boot.
    pub fn qemu_log(&self) -> PathBuf {
        self.logs.join(format!("{}{QEMU_LOG}", self.name))
    }

    /// Both of these, each with what it held before it was rotated.
    pub fn logs(&self) -> [PathBuf; 4] {
        let (console, qemu) = (self.console_log(), self.qemu_log());
        [earlier_log(&console), console, earlier_log(&qemu), qemu]
    }
}

/// Returns `true` where this directory and those above it, so many in all, are this user's and no links.
fn are_own(directory: &Path, count: usize) -> bool {
    let is_own = |directory: &Path| {
        directory.symlink_metadata().is_ok_and(|found| found.is_dir() && trusted::is_own(&found))
    };
    directory.ancestors().take(count).all(is_own)
}

/// The sockets of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketsLayout {
    directory: PathBuf,
}

impl SocketsLayout {
    /// The layout in this directory.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The directory, 0700.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns `true` where the directories above them, `castra/<project>/<vm>`, are there and this user's. They may lie in /tmp,
    /// where others can make directories of these names, and links in them.
    pub fn is_own(&self) -> bool {
        are_own(&self.directory, 3)
    }

    /// Returns the directory of all VMs' sockets of the project, if it is there and this user's.
    pub fn own_project(&self) -> Option<&Path> {
        self.directory.parent().filter(|project| are_own(project, 2))
    }

    /// Returns `true` where something has removed those by which QEMU and its guest are reached: a logout, or a cleaner of
    /// temporary files. Another user may have put something in their place.
    pub fn are_gone(&self) -> bool {
        let is_gone = |path: PathBuf| path.symlink_metadata().is_err_and(|error| trusted::is_absence(&error));
        !self.is_own() || is_gone(self.qmp()) || is_gone(self.control())
    }

    /// QEMU's machine protocol.
    pub fn qmp(&self) -> PathBuf {
        self.directory.join("qmp.sock")
    }

    /// The guest agent's control port.
    pub fn control(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// The guest's serial console.
    pub fn console(&self) -> PathBuf {
        self.directory.join("console.sock")
    }

    /// All of them.
    pub fn all(&self) -> [PathBuf; 3] {
        [self.qmp(), self.control(), self.console()]
    }
}

/// A directory of images: the same layout in a project and in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagesLayout {
    root: PathBuf,
}

impl ImagesLayout {
    /// The layout below this directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of one image. Both names are checked by the configuration: no `/`, no leading dot.
    pub fn image(&self, id: &str, version: &str) -> PathBuf {
        self.root.join(id).join(version)
    }

    /// How the name of the directory begins in which one image is being made. It cannot be a version: those do not start
    /// with a dot, and have no tilde.
    pub fn work(&self, id: &str, version: &str) -> PathBuf {
        self.root.join(id).join(format!(".{version}~work"))
    }

    /// Held by whoever puts an image into this directory.
    pub fn lock(&self, id: &str, version: &str) -> PathBuf {
        self.root.join(id).join(format!(".{version}.lock"))
    }
}

/// A directory of warm templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplatesLayout {
    root: PathBuf,
}

impl TemplatesLayout {
    /// The layout below this directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A finished template. Keys are hexadecimal.
    pub fn template(&self, key: &str) -> TemplateLayout {
        TemplateLayout { directory: self.root.join(key) }
    }

    /// Where a template is being made. Each attempt has a place of its own: when the cache is removed, so is the lock that
    /// keeps two attempts apart.
    pub fn work(&self, key: &str, attempt: &str) -> TemplateLayout {
        TemplateLayout { directory: self.root.join(format!(".{key}.{attempt}.work")) }
    }

    /// The key of the template that is made in a directory of this name; nothing for any other name.
    pub fn key_of_work(name: &str) -> Option<&str> {
        name.strip_prefix('.')?.strip_suffix(".work")?.split('.').next()
    }

    /// The attempt that works in a directory of this name; nothing for any other name.
    pub fn attempt_of_work(name: &str) -> Option<&str> {
        name.strip_prefix('.')?.strip_suffix(".work")?.split('.').nth(1)
    }

    /// Why no template is made for this key, for a while.
    pub fn refusal(&self, key: &str) -> PathBuf {
        self.root.join(format!("{key}.refused.json"))
    }

    /// Where the sockets are of the VM that is made into a template.
    pub fn sockets(&self, runtime_root: &Path, attempt: &str) -> SocketsLayout {
        SocketsLayout::new(runtime_root.join("templates").join(attempt))
    }
}

/// The files of one warm template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateLayout {
    directory: PathBuf,
}

impl TemplateLayout {
    /// The layout in this directory.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The disk as it was at the template's moment: a layer on the image's disk.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.qcow2")
    }

    /// The guest's memory at that moment, with holes for what was never used.
    pub fn memory(&self) -> PathBuf {
        self.directory.join("memory.img")
    }

    /// The state of all devices at that moment, in QEMU's migration format.
    pub fn device_state(&self) -> PathBuf {
        self.directory.join("device.state")
    }

    /// The initramfs it was booted with, for a guest that reboots.
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs")
    }

    /// What the template is made of, written last.
    pub fn manifest(&self) -> PathBuf {
        self.directory.join("template.json")
    }

    /// While it is made: QEMU's pid file.
    pub fn pidfile(&self) -> PathBuf {
        self.directory.join("qemu.pid")
    }

    /// While it is made: the guest's console.
    pub fn console_log(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// While it is made: QEMU's own words.
    pub fn qemu_log(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }
}

/// Files of a user beside the cache, which are not made again when they are lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserStateLayout {
    root: PathBuf,
}

impl UserStateLayout {
    /// The layout below this directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Signs the marks of this user's state roots.
    pub fn key(&self) -> PathBuf {
        self.root.join("key")
    }

    /// Notes about the files of images that this user's castra made.
    pub fn products(&self) -> PathBuf {
        self.root.join("products")
    }
}

/// The user's shared cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheLayout {
    root: PathBuf,
}

impl CacheLayout {
    /// The layout below this directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Transformed images.
    pub fn images(&self) -> ImagesLayout {
        ImagesLayout::new(self.root.join("images"))
    }

    /// Notes about the files of images that this user's castra made.
    pub fn products(&self) -> PathBuf {
        self.root.join("products")
    }

    /// Written when the servers of an image took too long to answer.
    pub fn slow_source(&self, id: &str, version: &str) -> PathBuf {
        self.root.join(format!(".slow-{id}-{version}"))
    }

    /// The project of VMs that are thrown away.
    pub fn runs(&self) -> ProjectLayout {
        ProjectLayout { state_root: self.root.join("runs"), needs_mark: false }
    }

    /// Warm templates.
    pub fn templates(&self) -> TemplatesLayout {
        TemplatesLayout::new(self.root.join("templates"))
    }

    /// The directory of all downloads, one directory an algorithm.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The directory of all references.
    pub fn projects(&self) -> PathBuf {
        self.root.join("projects")
    }

    /// The directory of all notes of where projects are.
    pub fn known_projects(&self) -> PathBuf {
        self.root.join("known")
    }

    /// Where this project is: its state root's path, byte by byte.
    pub fn known_project(&self, project: &ProjectLayout) -> PathBuf {
        self.known_projects().join(project.short_digest(16))
    }

    /// What this project has of the cache.
    pub fn reference(&self, project: &ProjectLayout) -> PathBuf {
        self.projects().join(format!("{}.json", project.short_digest(16)))
    }

    /// Where damaged files are moved.
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// A verified download. `algorithm` is `sha256` or `sha512`, `hex` the digest.
    pub fn blob(&self, algorithm: &str, hex: &str) -> PathBuf {
        self.blobs().join(algorithm).join(hex)
    }

    /// A download that is not complete yet.
    pub fn partial(&self, algorithm: &str, hex: &str) -> PathBuf {
        self.blobs().join(algorithm).join(format!("{hex}.partial"))
    }

    /// What a resumed download must match: URL, ETag, total.
    pub fn partial_sidecar(&self, algorithm: &str, hex: &str) -> PathBuf {
        self.blobs().join(algorithm).join(format!("{hex}.partial.json"))
    }

    /// How the name of the directory begins in which pip puts what shall become this blob.
    pub fn pip(&self, algorithm: &str, hex: &str) -> PathBuf {
        self.blobs().join(algorithm).join(format!("{hex}.pip"))
    }

    /// A lock file; `name` is made of image ids, versions and digests.
    pub fn lock(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(format!("{name}.lock"))
    }

    /// Held by whoever makes an image in the cache.
    pub fn image_lock(&self, id: &str, version: &str) -> PathBuf {
        self.lock(&format!("image-{id}-{version}"))
    }

    /// Held by whoever fetches a download.
    pub fn blob_lock(&self, algorithm: &str, hex: &str) -> PathBuf {
        self.lock(&format!("blob-{algorithm}-{hex}"))
    }

    /// Says that the directory is a cache (bford.info/cachedir).
    pub fn tag(&self) -> PathBuf {
        self.root.join("CACHEDIR.TAG")
    }

    /// What the accelerator race found.
    pub fn accelerators(&self) -> PathBuf {
        self.root.join("accelerators.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_socket_path_fits() {
        let layout = ProjectLayout::unchecked("/home/someone/project/.castra".into());
        let vm = "v".repeat(MAX_VM_NAME_BYTES);
        let sockets = layout.sockets(Path::new("/run/user/4294967295/castra"), &vm);
        assert!(sockets.control().as_os_str().len() <= MAX_SOCKET_PATH_BYTES);
    }

    #[test]
    fn a_pid_file_tells_its_project() {
        let layout = ProjectLayout::unchecked("/home/me/shop/.castra".into());
        let pidfile = layout.vm("web").pidfile();
        assert_eq!(ProjectLayout::of_pidfile(&pidfile), Some((layout.clone(), "web".to_owned())));
        assert_eq!(layout.directory(), Path::new("/home/me/shop"));
        assert_eq!(ProjectLayout::of_pidfile(Path::new("/run/qemu.pid")), None);
        let runs = CacheLayout::new("/home/me/.cache/castra".into()).runs();
        assert!(runs.is_for_runs() && !layout.is_for_runs());
    }

    #[test]
    fn two_projects_never_share_sockets() {
        let runtime = Path::new("/run/user/1000/castra");
        let one = ProjectLayout::unchecked("/one/.castra".into()).sockets(runtime, "vm");
        let two = ProjectLayout::unchecked("/two/.castra".into()).sockets(runtime, "vm");
        assert_ne!(one, two);
    }
}
