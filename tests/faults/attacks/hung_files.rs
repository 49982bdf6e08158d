//! FIFOs and devices wherever castra reads a file: each is refused immediately.

use std::process::Stdio;
use std::time::Duration;

use castra_test_support::{Project, tool};

/// Runs `castra`, which must fail within a minute with this message.
#[track_caller]
fn refused(project: &Project, arguments: &[&str], words: &str) {
    let mut command = project.castra(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("castra runs");
    let mut is_over = false;
    // A castra that hangs is killed, so that the test leaves nothing behind.
    for _ in 0..600 {
        is_over = child.try_wait().expect("waited").is_some();
        if is_over {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    if !is_over {
        child.kill().expect("killed");
    }
    let output = child.wait_with_output().expect("castra ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(is_over, "castra {arguments:?} hangs");
    assert!(!output.status.success() && said.contains(words), "castra {arguments:?}: {said}");
}

fn fifo(project: &Project, name: &str) -> String {
    let path = project.path().join(name).to_str().expect("UTF-8").to_owned();
    tool("mkfifo", &[&path]);
    path
}

/// Returns a configuration whose image has one of its files at this path.
fn image_with(role: &str, path: &str) -> String {
    let digest = "0".repeat(64);
    let mut text = "[images.own]\ncommand_line = \"console=ttyS0\"\n".to_owned();
    for key in ["rootfs", "kernel", "initramfs"] {
        let path = if key == role { path } else { "honest" };
        text += &format!("[images.own.{key}]\npath = \"{path}\"\nsha256 = \"{digest}\"\n");
    }
    text + "[[vms]]\nname = \"dev\"\nmanaged_image = \"own\"\n"
}

#[test]
fn no_file_of_an_image_is_special() {
    let project = Project::isolated();
    let fifo = fifo(&project, "fifo");
    project.write("honest", "");
    for path in [&fifo, "/dev/zero"] {
        project.write("castra.toml", &image_with("rootfs", path));
        refused(&project, &["image", "pull", "own"], "regular file");
        refused(&project, &["up"], "regular file");
    }
}

#[test]
fn no_special_file_holds_castra_up() {
    let project = Project::isolated();
    let fifo = fifo(&project, "fifo");
    std::os::unix::fs::symlink(&fifo, project.path().join("link")).expect("a link");
    let link = project.path().join("link").to_str().expect("UTF-8").to_owned();
    for path in [&fifo, &link, "/dev/zero"] {
        refused(&project, &["image", "import", path], "not a regular file");
        refused(&project, &["--config", path, "config", "check"], "");
    }
}

#[test]
fn no_layer_of_a_disk_is_a_special_file() {
    let project = Project::isolated();
    let fifo = fifo(&project, "raw");
    let disk = project.path().join("disk.qcow2");
    let disk = disk.to_str().expect("UTF-8");
    tool("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-b", &fifo, "-F", "raw", disk, "1M"]);
    let vm = "[[vms]]\nname = \"dev\"\nbase_image = \"disk.qcow2\"\nallow_backing_file = true\n";
    project.write("castra.toml", vm);
    refused(&project, &["up"], "not a regular file");
}
