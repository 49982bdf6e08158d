//! The whole way of an image shaped like the official one, on real bits: a fixed VHD with a
//! whole-disk ext4, served over HTTP, interrupted halfway, stripped, extracted, converted and
//! booted.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use castra_test_support::http::{Reply, Server};
use castra_test_support::{Project, disks, tool};

/// Disk types of the VHD footer.
const FIXED: u32 = 2;

#[test]
fn a_fixed_vhd_is_fetched_resumed_taken_apart_and_booted() {
    let maker = Project::new();
    let disk = maker.path().join("disk.raw");
    disks::shrunken_ext4(&disks::alpine(), &disk);
    let dynamic = make_dynamic(&disk);
    disks::append_vhd_footer(&disk, FIXED);
    boots(&disk);
    is_refused(&dynamic);
}

fn boots(disk: &Path) {
    let bytes = fs::read(disk).expect("read");
    let length = bytes.len() as u64;
    let first = AtomicBool::new(true);
    let server = Server::start(move |request| {
        let reply = Reply::file(request, &bytes, Some("\"v1\""));
        if first.swap(false, Ordering::Relaxed) { reply.cut(bytes.len() / 2) } else { reply }
    });
    let project = Project::isolated();
    project.write("castra.toml", &configuration(&server.url("/mini.vhd"), disk, length));
    project.run(&["up"]).ok().says("retrying").says("ready in");
    let shown =
        project.run(&["exec", "--", "sh", "-c", "cat /etc/alpine-release; uname -r"]).ok().text();
    let lines: Vec<&str> = shown.lines().collect();
    assert!(
        matches!(
            lines[..],
            [release, kernel] if release.starts_with("3.") && kernel.ends_with("-virt")
        ),
        "{shown}"
    );
    let mounted = project.run(&["exec", "--", "sh", "-c", "grep ' / ' /proc/mounts"]).ok().text();
    assert!(mounted.contains("ext4 rw"), "{mounted}");

    let ranges = server.ranges();
    assert_eq!(ranges.first(), Some(&None));
    assert!(
        ranges.iter().flatten().any(|range| *range == format!("bytes={}-", length / 2)),
        "{ranges:?}"
    );
    assert!(server.bytes_sent() <= length, "{} bytes were sent of {length}", server.bytes_sent());
    project.run(&["down"]).ok();
    project.run(&["up"]).ok().says("in the cache");
}

fn is_refused(disk: &Path) {
    let bytes = fs::read(disk).expect("read");
    let length = bytes.len() as u64;
    let server = Server::start(move |request| Reply::file(request, &bytes, None));
    let project = Project::isolated();
    project.write("castra.toml", &configuration(&server.url("/mini.vhd"), disk, length));
    project.run(&["up"]).code(65).says("dynamic").says("vpc");
    assert!(
        !project.path().join(".castra/vm-overlay.qcow2").exists(),
        "a disk was made on a refused image"
    );
}

/// Returns the same disk as a VHD that qemu-img writes.
fn make_dynamic(disk: &Path) -> std::path::PathBuf {
    let target = disk.with_extension("vhd");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    tool(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "vpc",
            "-o",
            "subformat=dynamic",
            &text(disk),
            &text(&target),
        ],
    );
    target
}

fn configuration(url: &str, disk: &Path, length: u64) -> String {
    let digest = tool("sha256sum", &[disk.to_str().expect("UTF-8")]).stdout;
    let digest = String::from_utf8(digest).expect("text");
    let digest = digest.split_whitespace().next().expect("a digest");
    format!(
        r#"
[images.mini]
command_line = "root=/dev/vda rootfstype=ext4 rootflags=rw modules=ext4,virtio_blk,virtio_net console=ttyS0"

[images.mini.rootfs]
url = "{url}"
sha256 = "{digest}"
size = {length}
pipeline = ["strip-vhd-footer", {{ convert = {{ from = "raw", to = "qcow2" }} }}]

[images.mini.kernel]
pipeline = ["strip-vhd-footer", {{ extract-file = "/boot/vmlinuz-virt" }}]

[images.mini.initramfs]
pipeline = ["strip-vhd-footer", {{ extract-file = "/boot/initramfs-virt" }}]

[[vms]]
name = "vm"
managed_image = "mini"
memory = "512 MiB"
"#
    )
}
