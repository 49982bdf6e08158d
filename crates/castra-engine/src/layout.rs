//! Every path, file and socket name, once.
//!
//! ```text
//! <project>/castra.toml               optional
//! <project>/castra.lock               pinned builds of images, optional
//! <project>/.castra/
//!   images/<id>/<version>/            rootfs.qcow2  vmlinuz  initramfs  manifest.json    read-only
//!   templates/<digest>/disk.qcow2     warm template's disk, on which VMs are based       read-only
//!   <vm>-overlay.qcow2                the VM's own disk
//!   layer-<id>.qcow2                  layer shared by a VM and its clones, in the directory of the
//!                                     VM's disk                                          read-only
//!   disks/<vm>/<name>.qcow2           data disks, which stay when the VM is removed
//!   vms/<vm>/                         vm.json  clone.json  qemu.pid  lock  initramfs
//!                                     host_key  client_key  known_hosts
//!                                     machine.state: memory and devices of a suspended VM
//!                                     kernels/<digest>: kernel and initramfs of its disk
//!                                     uefi-vars  oem-string-<n>  seed.img  server_key.pub: of a
//!                                     native boot
//!                                     boots/<unix ms>.json: timelines of its last starts
//!   logs/                             castra.log[.1]  image-manager.log  <vm>-console.log
//!                                     <vm>-qemu.log
//!   linked-from                       path of the link to this directory, if `.castra` is one
//!   lock                              shared by operations on a VM, exclusive for `clean`
//!   mark                              an id signed by the user's key: made by this user's castra
//!   .gitignore                        keeps git from tracking any of it
//!   cache/                            substitute for a cache that cannot be written to
//!   quarantine/                       damaged files of images
//! $XDG_CACHE_HOME/castra/
//!   blobs/sha256/<digest>             verified downloads
//!     …<digest>.partial[.json]        unfinished download, named by its expected digest
//!   images/<id>/<version>/            as in a project
//!   templates/<key>/                  disk.qcow2  memory.img  device.state  initramfs
//!                                     template.json  kernel
//!   templates/<key>.refused.json      reason why no template is made for this key for a while
//!   digests/<identity's digest>       digest of a user's own disk
//!   projects/<root's digest>.json     images of a project, and their sources
//!   known/<root's digest>             path of the state root of a project that `up` has seen
//!   quarantine/                       damaged files
//!   runs/                             a project's layout, for throw-away VMs
//!   locks/                            one file per image, blob, project and template
//!   accelerators.json                 results of the accelerator race
//!   qemu-versions.json                versions of the QEMUs that were asked
//!   CACHEDIR.TAG                      keeps backups from copying the cache
//! $XDG_STATE_HOME/castra/key          signs the marks of this user's state roots     0700 / 0600
//! $XDG_RUNTIME_DIR/castra/<project>/<vm>/
//!                                     qmp.sock  control.sock  console.sock           0700 / 0600
//!                                     stream-<index>.sock: ports for commands
//!                                     stream-<index>.lock: held by the process that uses one
//! ```

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::hex::hex;
use crate::trusted;

/// Name of the configuration file.
pub const CONFIG_FILE: &str = "castra.toml";
/// Name of the file beside it that pins builds of images.
pub const LOCK_FILE: &str = "castra.lock";
/// Name of the default state root.
pub const STATE_DIRECTORY: &str = ".castra";
/// File of a state root behind a symbolic link, with the path of the link: see
/// `config/state_link.rs`.
pub const LINKED_FROM: &str = "linked-from";
/// Name of the root disk in an image's directory.
pub const ROOTFS: &str = "rootfs.qcow2";
/// Name of the kernel in an image's directory.
pub const KERNEL: &str = "vmlinuz";
/// Name of the initramfs in an image's directory.
pub const INITRAMFS: &str = "initramfs";
/// Name of the manifest in an image's directory.
pub const MANIFEST: &str = "manifest.json";

/// Longest VM name, in bytes: with it the longest socket path stays below the kernel's 108 bytes.
pub const MAX_VM_NAME_BYTES: usize = 40;
/// Longest path of a Unix socket, in bytes, without the final NUL (`sun_path` in `unix(7)`).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Most stream ports of a VM, see [`StreamPortCount`](crate::qemu::StreamPortCount).
pub const MAX_STREAM_PORTS: u32 = 14;

/// Name of the directory of data disks, and suffix of their names.
const DATA_DISKS: &str = "disks";
const DATA_DISK: &str = ".qcow2";

/// Suffixes of the names of QEMU's logs.
const CONSOLE_LOG: &str = "-console.log";
const QEMU_LOG: &str = "-qemu.log";

/// Returns `true` for the name of a log that QEMU holds open while it runs.
pub fn is_log_of_qemu(name: &OsStr) -> bool {
    [CONSOLE_LOG, QEMU_LOG].iter().any(|end| name.as_encoded_bytes().ends_with(end.as_bytes()))
}

/// Returns the path of a log's previous contents after rotation: `castra.log.1`.
pub fn earlier_log(log: &Path) -> PathBuf {
    let mut path = OsString::from(log);
    path.push(".1");
    path.into()
}

/// Returns the path of the layer that a disk becomes when its VM is cloned: in the same directory,
/// so that the names of its backing files stay valid.
pub fn frozen_layer(overlay: &Path, id: &str) -> PathBuf {
    overlay.with_file_name(format!("layer-{id}.qcow2"))
}

/// Returns `true` for a directory that holds the records of VMs, whatever its name: a state
/// directory.
pub fn is_state_root(path: &Path) -> bool {
    let Ok(vms) = std::fs::read_dir(path.join("vms")) else { return false };
    vms.flatten().any(|vm| vm.path().join("vm.json").is_file())
}

/// Returns `true` for the name of a lock beside an image, see [`ImagesLayout::lock`].
pub fn is_image_lock(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(".lock")
}

/// Prefix of the names of clones' unfinished disks.
pub const OVERLAY_TEMPORARY: &str = ".overlay-";

/// Returns `true` for the path of a layer as made by [`frozen_layer`].
pub fn is_frozen_layer(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let id = name.strip_prefix("layer-").and_then(|name| name.strip_suffix(".qcow2"));
    id.is_some_and(|id| id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Paths of one project's state. Commands get one only from [`crate::state_root::StateRoot::open`],
/// which verifies the contents first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectLayout {
    state_root: PathBuf,
    /// Set if the state root is in a project's directory, so that it needs a mark.
    needs_mark: bool,
}

impl ProjectLayout {
    /// Returns the layout below this state root (absolute), whose contents are unverified: to name
    /// paths, and for tests.
    pub fn unchecked(state_root: PathBuf) -> Self {
        Self { state_root, needs_mark: true }
    }

    /// Returns `true` if a castra has created the state root, as far as is visible from outside.
    pub(crate) fn is_made(&self) -> bool {
        let sign = if self.needs_mark { self.mark() } else { self.state_root.clone() };
        sign.symlink_metadata().is_ok()
    }

    /// Returns `false` for the state root of throw-away VMs, which is in the user's own cache.
    pub(crate) fn needs_mark(&self) -> bool {
        self.needs_mark
    }

    /// Returns the project and the VM whose QEMU has this pid file.
    pub fn of_pidfile(path: &Path) -> Option<(Self, String)> {
        let directory = path.parent()?;
        let layout = Self::unchecked(directory.parent()?.parent()?.to_owned());
        let vm = directory.file_name()?.to_str()?.to_owned();
        (path.is_absolute() && layout.vm(&vm).pidfile() == path).then_some((layout, vm))
    }

    /// Returns the project's directory, as its user knows it: the parent of `.castra`, or another
    /// directory that contains the state.
    pub fn directory(&self) -> &Path {
        let above = self.state_root.parent().filter(|_| self.state_root.ends_with(STATE_DIRECTORY));
        above.unwrap_or(&self.state_root)
    }

    /// Returns `true` for the project of throw-away VMs in some cache.
    pub fn is_for_runs(&self) -> bool {
        self.state_root.parent().is_some_and(|cache| {
            cache.ends_with("castra")
                && CacheLayout::new(cache.to_owned()).runs().state_root == self.state_root
        })
    }

    /// Returns the path of `.castra/`.
    pub fn state_root(&self) -> &Path {
        &self.state_root
    }

    /// Returns the layout of the substitute for a cache that cannot be written to.
    pub fn own_cache(&self) -> CacheLayout {
        CacheLayout::new(self.state_root.join("cache"))
    }

    /// Returns the directory for damaged files of the project's images.
    pub fn quarantine(&self) -> PathBuf {
        self.state_root.join("quarantine")
    }

    /// Returns the layout of the project's images.
    pub fn images(&self) -> ImagesLayout {
        ImagesLayout::new(self.state_root.join("images"))
    }

    /// Returns the path of a warm template's disk on which VMs of this project are based. Named by
    /// its SHA-256: a rebuilt template has the same key and another disk, and disks based on the
    /// old one still need that.
    pub fn layer(&self, sha256: &str) -> PathBuf {
        self.templates().template(sha256).disk()
    }

    /// Returns the layout of all such disks.
    pub fn templates(&self) -> TemplatesLayout {
        TemplatesLayout::new(self.state_root.join("templates"))
    }

    /// Returns the path of the project's lock: shared by operations that change a VM, and held
    /// exclusively by those that remove unused files.
    pub fn project_lock(&self) -> PathBuf {
        self.state_root.join("lock")
    }

    /// Returns the path of the mark, which proves that this user's castra made the state root.
    pub fn mark(&self) -> PathBuf {
        self.state_root.join("mark")
    }

    /// Returns the path of the image that was chosen for a project without a `castra.toml`.
    pub fn chosen_image(&self) -> PathBuf {
        self.state_root.join("image.json")
    }

    /// Returns the path of the `.gitignore`, which keeps git from tracking anything in the state
    /// root.
    pub fn git_ignore(&self) -> PathBuf {
        self.state_root.join(".gitignore")
    }

    /// Returns the default path of a VM's disk.
    pub fn overlay(&self, vm: &str) -> PathBuf {
        self.state_root.join(format!("{vm}-overlay.qcow2"))
    }

    /// Returns the directory of all data disks.
    pub fn data_disks(&self) -> PathBuf {
        self.state_root.join(DATA_DISKS)
    }

    /// Returns the directory of all records.
    pub fn vms(&self) -> PathBuf {
        self.state_root.join("vms")
    }

    /// Returns the layout of one VM.
    pub fn vm(&self, vm: &str) -> VmLayout {
        VmLayout { directory: self.vms().join(vm), logs: self.logs(), name: vm.to_owned() }
    }

    /// Returns the directory of the logs.
    pub fn logs(&self) -> PathBuf {
        self.state_root.join("logs")
    }

    /// Returns the path of the image manager's log, one line per step.
    pub fn image_manager_log(&self) -> PathBuf {
        self.logs().join("image-manager.log")
    }

    /// Returns the path of castra's log of the project's VMs, one line per event.
    pub fn castra_log(&self) -> PathBuf {
        self.logs().join("castra.log")
    }

    /// Returns the layout of a VM's sockets: below `runtime_root`, in a directory named by a digest
    /// of the state root, so that two projects never collide.
    pub fn sockets(&self, runtime_root: &Path, vm: &str) -> SocketsLayout {
        SocketsLayout { directory: runtime_root.join(self.short_digest(6)).join(vm) }
    }

    /// Returns the directory that contains the project's files: the parent of `.castra`, or the
    /// nearest directory above another state root that has a configuration.
    pub fn project_directory(&self) -> Option<&Path> {
        if self.state_root.ends_with(STATE_DIRECTORY) {
            return self.state_root.parent();
        }
        self.state_root.ancestors().skip(1).find(|directory| directory.join(CONFIG_FILE).is_file())
    }

    /// Returns the first bytes of a digest of the state root's path, which identifies the project.
    pub fn short_digest(&self, bytes: usize) -> String {
        let digest = Sha256::digest(self.state_root.as_os_str().as_encoded_bytes());
        hex(&digest[..bytes])
    }
}

/// Paths of one VM's files, except its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmLayout {
    directory: PathBuf,
    logs: PathBuf,
    name: String,
}

impl VmLayout {
    /// Returns the directory `vms/<vm>/`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the state root that contains it.
    pub fn state_root(&self) -> &Path {
        self.directory.ancestors().nth(2).unwrap_or(&self.directory)
    }

    /// Returns the directory of the VM's data disks, which stays when the VM is removed.
    pub fn data_disks(&self) -> PathBuf {
        self.state_root().join(DATA_DISKS).join(&self.name)
    }

    /// Returns the path of the data disk of this name.
    pub fn data_disk(&self, name: &str) -> PathBuf {
        self.data_disks().join(format!("{name}{DATA_DISK}"))
    }

    /// Returns the name of the data disk whose file has this name; `None` for another file.
    pub fn name_of_data_disk(file: &str) -> Option<&str> {
        file.strip_suffix(DATA_DISK).filter(|name| !name.is_empty() && !name.starts_with('.'))
    }

    /// Returns the path of the VM's record.
    pub fn record(&self) -> PathBuf {
        self.directory.join("vm.json")
    }

    /// Returns the path of the record with which a clone was created, which replaces a lost record:
    /// no configuration declares a clone.
    pub fn clone_record(&self) -> PathBuf {
        self.directory.join("clone.json")
    }

    /// Returns the path of the lock that is held by operations that change the VM.
    pub fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }

    /// Returns the path of the pid file, written and locked by QEMU while it lives.
    pub fn pidfile(&self) -> PathBuf {
        self.directory.join("qemu.pid")
    }

    /// Returns the path of the initramfs of this boot, with the guest agent appended.
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs")
    }

    /// Returns the directory of kernels and initramfs that were read from the VM's disk.
    pub fn kernels(&self) -> PathBuf {
        self.directory.join("kernels")
    }

    /// Returns the path of such a file with this SHA-256, in hexadecimal.
    pub fn kernel(&self, sha256: &str) -> PathBuf {
        self.kernels().join(sha256)
    }

    /// Returns the path of a suspended VM's memory and devices, in QEMU's migration format.
    pub fn machine_state(&self) -> PathBuf {
        self.directory.join("machine.state")
    }

    /// Returns the path of [`Self::machine_state`] while it is being written.
    pub fn unfinished_machine_state(&self) -> PathBuf {
        self.directory.join(".machine.state.new")
    }

    /// Returns the path of the lock that is held by the process that is connected to the console.
    pub fn console_lock(&self) -> PathBuf {
        self.directory.join("console.lock")
    }

    /// Returns the directory with the timelines of the VM's last starts, one file per start.
    pub fn boots(&self) -> PathBuf {
        self.directory.join("boots")
    }

    /// Returns the path of the timeline of the start at this time.
    pub fn boot(&self, started_unix_ms: u64) -> PathBuf {
        self.boots().join(format!("{started_unix_ms}.json"))
    }

    /// Returns the time of the start whose timeline has this file name.
    pub fn start_of_boot(name: &str) -> Option<u64> {
        name.strip_suffix(".json")?.parse().ok()
    }

    /// Returns the path of the SSH server's private key, which is sent to the guest.
    pub fn host_key(&self) -> PathBuf {
        self.directory.join("host_key")
    }

    /// Returns the path of the private key that may log in.
    pub fn client_key(&self) -> PathBuf {
        self.directory.join("client_key")
    }

    /// Returns the path of the public key of a guest's own SSH server, as it was first shown.
    pub fn server_key(&self) -> PathBuf {
        self.directory.join("server_key.pub")
    }

    /// Returns the path of the variables of the VM's UEFI firmware.
    pub fn uefi_variables(&self) -> PathBuf {
        self.directory.join("uefi-vars")
    }

    /// Returns the paths of texts for the guest's SMBIOS tables, of which there may be fewer.
    pub fn oem_strings(&self) -> [PathBuf; 2] {
        ["oem-string-0", "oem-string-1"].map(|name| self.directory.join(name))
    }

    /// Returns the path of the disk with data for cloud-init.
    pub fn seed(&self) -> PathBuf {
        self.directory.join("seed.img")
    }

    /// Returns the path of `known_hosts` for other SSH clients.
    pub fn known_hosts(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }

    /// Returns the path of the guest's output on its serial console, in this boot.
    pub fn console_log(&self) -> PathBuf {
        self.logs.join(format!("{}{CONSOLE_LOG}", self.name))
    }

    /// Returns the path of QEMU's stderr, in this boot.
    pub fn qemu_log(&self) -> PathBuf {
        self.logs.join(format!("{}{QEMU_LOG}", self.name))
    }

    /// Returns the paths of both logs, each with its previous contents after rotation.
    pub fn logs(&self) -> [PathBuf; 4] {
        let (console, qemu) = (self.console_log(), self.qemu_log());
        [earlier_log(&console), console, earlier_log(&qemu), qemu]
    }
}

/// Returns `true` if this directory and its parents, `count` in all, belong to this user and are no
/// links.
fn are_own(directory: &Path, count: usize) -> bool {
    let is_own = |directory: &Path| {
        directory.symlink_metadata().is_ok_and(|found| found.is_dir() && trusted::is_own(&found))
    };
    directory.ancestors().take(count).all(is_own)
}

/// Paths of one VM's sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketsLayout {
    directory: PathBuf,
}

impl SocketsLayout {
    /// Returns the layout in this directory.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Returns the directory, whose mode is 0700.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns `true` if the directories above the sockets, `castra/<project>/<vm>`, exist and
    /// belong to this user. They may be in /tmp, where other users can create directories with
    /// these names, and links in them.
    pub fn is_own(&self) -> bool {
        are_own(&self.directory, 3)
    }

    /// Returns the directory of all sockets of the project's VMs, if it exists and belongs to this
    /// user.
    pub fn own_project(&self) -> Option<&Path> {
        self.directory.parent().filter(|project| are_own(project, 2))
    }

    /// Returns `true` if the sockets of QEMU and its guest have been removed, by a logout or a
    /// cleaner of temporary files. Another user may have put something in their place.
    pub fn are_gone(&self) -> bool {
        let is_gone =
            |path: PathBuf| path.symlink_metadata().is_err_and(|error| trusted::is_absence(&error));
        !self.is_own() || is_gone(self.qmp()) || is_gone(self.control())
    }

    /// Returns the path of QEMU's machine protocol.
    pub fn qmp(&self) -> PathBuf {
        self.directory.join("qmp.sock")
    }

    /// Returns the path of the guest agent's control port.
    pub fn control(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    /// Returns the path of the guest's serial console.
    pub fn console(&self) -> PathBuf {
        self.directory.join("console.sock")
    }

    /// Returns the path of the stream port with this index.
    pub fn stream(&self, index: u32) -> PathBuf {
        self.directory.join(format!("stream-{index}.sock"))
    }

    /// Returns the path of the lock that is held by the process that uses a stream port.
    pub fn stream_lock(&self, index: u32) -> PathBuf {
        self.directory.join(format!("stream-{index}.lock"))
    }

    /// Returns the path of the socket of the VM's companion.
    pub fn companion(&self) -> PathBuf {
        self.directory.join("companion.sock")
    }

    /// Returns the path of the lock that the companion holds.
    pub fn companion_lock(&self) -> PathBuf {
        self.directory.join("companion.lock")
    }

    /// Returns the longest path of a socket.
    pub fn longest(&self) -> PathBuf {
        self.stream(castra_wire::STREAM_PORTS - 1)
    }

    /// Returns the paths of the sockets that QEMU listens at for every VM.
    pub fn of_every_vm(&self) -> [PathBuf; 3] {
        [self.qmp(), self.control(), self.console()]
    }

    /// Returns the paths of all files that castra and QEMU create in the directory.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let of_streams =
            (0..MAX_STREAM_PORTS).flat_map(|index| [self.stream(index), self.stream_lock(index)]);
        let of_companion = [self.companion(), self.companion_lock()];
        self.of_every_vm().into_iter().chain(of_streams).chain(of_companion)
    }
}

/// A directory of images, with the same layout in a project and in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagesLayout {
    root: PathBuf,
}

impl ImagesLayout {
    /// Returns the layout below this directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the directory of one image. The configuration has checked both names: no `/`, no
    /// leading dot.
    pub fn image(&self, id: &str, version: &str) -> PathBuf {
        self.root.join(id).join(version)
    }

    /// Returns the prefix of the directory in which an image is being built. It cannot collide with
    /// a version, which does not start with a dot and has no tilde.
    pub fn work(&self, id: &str, version: &str) -> PathBuf {
        self.root.join(id).join(format!(".{version}~work"))
    }

    /// Returns the path of the lock that is held while an image is put into this directory.
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
    /// Returns the layout below this directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the layout of a finished template. Keys are hexadecimal.
    pub fn template(&self, key: &str) -> TemplateLayout {
        TemplateLayout { directory: self.root.join(key) }
    }

    /// Returns the layout of a template that is being made. Each attempt has a directory of its
    /// own, because removing the cache also removes the lock that separates two attempts.
    pub fn work(&self, key: &str, attempt: &str) -> TemplateLayout {
        TemplateLayout { directory: self.root.join(format!(".{key}.{attempt}.work")) }
    }

    /// Returns the key of the template that is made in a directory with this name; `None` for any
    /// other name.
    pub fn key_of_work(name: &str) -> Option<&str> {
        name.strip_prefix('.')?.strip_suffix(".work")?.split('.').next()
    }

    /// Returns the attempt that works in a directory with this name; `None` for any other name.
    pub fn attempt_of_work(name: &str) -> Option<&str> {
        name.strip_prefix('.')?.strip_suffix(".work")?.split('.').nth(1)
    }

    /// Returns the path of the note that says why no template is made for this key for a while.
    pub fn refusal(&self, key: &str) -> PathBuf {
        self.root.join(format!("{key}.refused.json"))
    }

    /// Returns the layout of the sockets of the VM that is made into a template.
    pub fn sockets(&self, runtime_root: &Path, attempt: &str) -> SocketsLayout {
        SocketsLayout::new(runtime_root.join("templates").join(attempt))
    }
}

/// Paths of one warm template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateLayout {
    directory: PathBuf,
}

impl TemplateLayout {
    /// Returns the layout in this directory.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Returns the directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the path of the disk at the template's moment: a layer on the base image.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.qcow2")
    }

    /// Returns the path of the blank disk that is in the place of a data disk of this name while
    /// the template is made.
    pub fn data_disk(&self, name: &str) -> PathBuf {
        self.directory.join(format!("data-{name}{DATA_DISK}"))
    }

    /// Returns the path of the guest's memory at that moment, with holes for memory that was never
    /// used.
    pub fn memory(&self) -> PathBuf {
        self.directory.join("memory.img")
    }

    /// Returns the path of the state of all devices at that moment, in QEMU's migration format.
    pub fn device_state(&self) -> PathBuf {
        self.directory.join("device.state")
    }

    /// Returns the path of the kernel with which it was booted, if that is not the image's.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("kernel")
    }

    /// Returns the path of the initramfs with which it was booted, for a guest that reboots.
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs")
    }

    /// Returns the path of the manifest, which is written last.
    pub fn manifest(&self) -> PathBuf {
        self.directory.join("template.json")
    }

    /// Returns the path of the manifest of a layer of a provisioned disk, which is written last.
    pub fn step_manifest(&self) -> PathBuf {
        self.directory.join("step.json")
    }

    /// Returns the path of QEMU's pid file while the template is made.
    pub fn pidfile(&self) -> PathBuf {
        self.directory.join("qemu.pid")
    }

    /// Returns the path of the guest's console log while the template is made.
    pub fn console_log(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// Returns the path of QEMU's log while the template is made.
    pub fn qemu_log(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }
}

/// A user's files outside the cache, which cannot be recreated when they are lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserStateLayout {
    root: PathBuf,
}

impl UserStateLayout {
    /// Returns the layout below this directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of the key that signs the marks of this user's state roots.
    pub fn key(&self) -> PathBuf {
        self.root.join("key")
    }

    /// Returns the directory of `castra serve` and its sandboxes.
    pub fn serve(&self) -> PathBuf {
        self.root.join("serve")
    }

    /// Returns the directory of the slots of `castra mcp`, each with its sandboxes.
    pub fn mcp(&self) -> PathBuf {
        self.root.join("mcp")
    }

    /// Returns the path of the list of directories that the user lets VMs see.
    pub fn mounts(&self) -> PathBuf {
        self.root.join("mounts")
    }

    /// Returns the path of the list of variables that the user lets steps of `provision` see.
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// Returns the directory of notes about the images' files that this user's castra made.
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
    /// Returns the layout below this directory.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Returns the directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the layout of transformed images.
    pub fn images(&self) -> ImagesLayout {
        ImagesLayout::new(self.root.join("images"))
    }

    /// Returns the path of the list of variables that the user lets steps of `provision` see.
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// Returns the directory of notes about the images' files that this user's castra made.
    pub fn products(&self) -> PathBuf {
        self.root.join("products")
    }

    /// Returns the directory of notes about the digests of the user's own disks.
    pub fn digests(&self) -> PathBuf {
        self.root.join("digests")
    }

    /// Returns the path of the note that an image's servers took too long to answer.
    pub fn slow_source(&self, id: &str, version: &str) -> PathBuf {
        self.root.join(format!(".slow-{id}-{version}"))
    }

    /// Returns the project of throw-away VMs.
    pub fn runs(&self) -> ProjectLayout {
        ProjectLayout { state_root: self.root.join("runs"), needs_mark: false }
    }

    /// Returns the layout of warm templates.
    pub fn templates(&self) -> TemplatesLayout {
        TemplatesLayout::new(self.root.join("templates"))
    }

    /// Returns the layout of the layers of provisioned disks.
    pub fn steps(&self) -> TemplatesLayout {
        TemplatesLayout::new(self.root.join("steps"))
    }

    /// Returns the path of the lock that is held while the layer with this key is made.
    pub fn step_lock(&self, key: &str) -> PathBuf {
        self.lock(&format!("step-{key}"))
    }

    /// Returns the directory of all downloads, with one subdirectory per algorithm.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Returns the directory of all references.
    pub fn projects(&self) -> PathBuf {
        self.root.join("projects")
    }

    /// Returns the directory of all notes about the locations of projects.
    pub fn known_projects(&self) -> PathBuf {
        self.root.join("known")
    }

    /// Returns the path of the note about this project's location, which holds its state root's
    /// path, byte by byte.
    pub fn known_project(&self, project: &ProjectLayout) -> PathBuf {
        self.known_projects().join(project.short_digest(16))
    }

    /// Returns the path of this project's references into the cache.
    pub fn reference(&self, project: &ProjectLayout) -> PathBuf {
        self.projects().join(format!("{}.json", project.short_digest(16)))
    }

    /// Returns the directory for damaged files.
    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// Returns the path of a verified download. `algorithm` is `sha256` or `sha512`, `hex` the
    /// digest.
    pub fn blob(&self, algorithm: &str, hex: &str) -> PathBuf {
        self.blobs().join(algorithm).join(hex)
    }

    /// Returns the path of an unfinished download.
    pub fn partial(&self, algorithm: &str, hex: &str) -> PathBuf {
        self.blobs().join(algorithm).join(format!("{hex}.partial"))
    }

    /// Returns the path of the data that a resumed download must match: URL, ETag, total.
    pub fn partial_sidecar(&self, algorithm: &str, hex: &str) -> PathBuf {
        self.blobs().join(algorithm).join(format!("{hex}.partial.json"))
    }

    /// Returns the prefix of the directory in which pip puts the file that will become this blob.
    pub fn pip(&self, algorithm: &str, hex: &str) -> PathBuf {
        self.blobs().join(algorithm).join(format!("{hex}.pip"))
    }

    /// Returns the path of a lock file; `name` consists of image IDs, versions and digests.
    pub fn lock(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(format!("{name}.lock"))
    }

    /// Returns the path of the lock that is held while an image is made in the cache.
    pub fn image_lock(&self, id: &str, version: &str) -> PathBuf {
        self.lock(&format!("image-{id}-{version}"))
    }

    /// Returns the path of the lock that is held during a download.
    pub fn blob_lock(&self, algorithm: &str, hex: &str) -> PathBuf {
        self.lock(&format!("blob-{algorithm}-{hex}"))
    }

    /// Returns the path of the lock that is held while this `castra.lock` is read and replaced.
    pub fn lock_of_lock_file(&self, path: &Path) -> PathBuf {
        let name = hex(&Sha256::digest(path.as_os_str().as_encoded_bytes())[..16]);
        self.lock(&format!("pins-{name}"))
    }

    /// Returns the path of the tag that marks the directory as a cache (bford.info/cachedir).
    pub fn tag(&self) -> PathBuf {
        self.root.join("CACHEDIR.TAG")
    }

    /// Returns the path of the accelerator race's results.
    pub fn accelerators(&self) -> PathBuf {
        self.root.join("accelerators.json")
    }

    /// Returns the path of the versions of the QEMUs that were asked for theirs.
    pub fn qemu_versions(&self) -> PathBuf {
        self.root.join("qemu-versions.json")
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
        assert!(sockets.longest().as_os_str().len() <= MAX_SOCKET_PATH_BYTES);
        let lengths = sockets.files().map(|path| path.as_os_str().len());
        assert_eq!(lengths.max(), Some(sockets.longest().as_os_str().len()));
    }

    #[test]
    fn a_pid_file_names_its_project() {
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
