//! An image of a small disk on a server of the test's own, and changes to its files.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use castra_test_support::http::{Reply, Server};
use castra_test_support::{Project, noise};
use sha2::{Digest as _, Sha256};

pub(crate) const SIZE: usize = 256 * 1024;

/// Returns the disk's bytes as the server has them: noise with the signature of a boot sector,
/// which does not boot.
pub(crate) fn disk() -> Vec<u8> {
    let mut disk = noise(SIZE);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

pub(crate) fn serve() -> Server {
    let content = disk();
    Server::start(move |request| Reply::file(request, &content, Some("\"v1\"")))
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns a `castra.toml` with the image `disk`, pinned by `pin`, and a VM on it.
pub(crate) fn configuration(url: &str, pin: &str) -> String {
    format!(
        "[images.disk.rootfs]\nurl = \"{url}\"\n{pin}\n\
        pipeline = [{{ convert = {{ from = \"raw\", to = \"qcow2\" }} }}]\n\
        [[vms]]\nname = \"dev\"\nmanaged_image = \"disk\"\ndisk = \"1 GiB\"\n"
    )
}

/// Returns the configuration with the right pin.
pub(crate) fn pinned(server: &Server) -> String {
    configuration(&server.url("/disk.raw"), &format!("sha256 = \"{}\"", sha256(&disk())))
}

/// Returns a project with the image, which it has not pulled yet.
pub(crate) fn project(server: &Server) -> Project {
    let project = Project::isolated();
    project.write("castra.toml", &pinned(server));
    project
}

/// Returns another project with the same cache.
pub(crate) fn neighbour(project: &Project, server: &Server) -> Project {
    let mut neighbour = Project::with_cache(project.cache().parent().expect("a parent").to_owned());
    neighbour.set("XDG_STATE_HOME", project.user_state());
    neighbour.write("castra.toml", &pinned(server));
    neighbour
}

/// Returns the image's disk in a project.
pub(crate) fn rootfs(project: &Project) -> PathBuf {
    project.path().join(".castra/images/disk/v1/rootfs.qcow2")
}

/// Returns the image's disk in the cache.
pub(crate) fn cached(project: &Project) -> PathBuf {
    project.cache().join("images/disk/v1/rootfs.qcow2")
}

/// Returns the download of the image.
pub(crate) fn blob(project: &Project) -> PathBuf {
    project.cache().join("blobs/sha256").join(sha256(&disk()))
}

/// Flips one bit in the middle of a file, as a dying disk would: its time stays, so that no stamp
/// reveals it.
pub(crate) fn rot(file: &Path) {
    let before = fs::metadata(file).expect("is there");
    let open =
        fs::OpenOptions::new().read(true).write(true).open(file).expect("root or the owner may");
    let mut byte = [0];
    let middle = before.len() / 2;
    open.read_exact_at(&mut byte, middle).expect("read");
    open.write_all_at(&[byte[0] ^ 1], middle).expect("written");
    open.set_modified(before.modified().expect("has a time")).expect("set");
}

/// Makes read-only files writable for [`rot`], if the test does not run as root.
pub(crate) fn unlock(file: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).expect("is ours");
}

pub(crate) fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("is there").ino()
}

/// Returns the names in a directory, sorted; none if it does not exist.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
